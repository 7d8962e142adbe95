"""The documentation points at what is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_formula_points_at_the_line_that_computes_it(page: Path) -> None:
    for symbol, target, line in re.findall(r"\[`([\w.]+)`\]\(([^)#]+)#L(\d+)\)", page.read_text()):
        code = (page.parent / target).read_text().splitlines()[int(line) - 1]
        assert re.match(rf"\s*(def|class) {symbol.rpartition('.')[2]}\b", code), f"{symbol}: {code}"


def test_what_is_cited_is_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = dict(re.findall(r"^(version|license): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert cited == {"version": project["version"], "license": project["license"]}


@pytest.fixture
def retry() -> Any:
    """The environment that the page adds, from the code that it shows."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/environments.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    shown: dict[str, Any] = {"__name__": "shown"}
    exec(compile(code, "environments.md", "exec", dont_inherit=True), shown)
    return shown["Retry"]


def test_the_environment_of_the_page_runs_as_it_stands_and_costs_what_it_says(retry: Any) -> None:
    from scaling.engines.base import Limits
    from scaling.engines.simulated import SimulatedEngine
    from scaling.predict.efficiency import SERVING
    from scaling.predict.hardware import gpu
    from scaling.predict.roofline import Roofline
    from scaling.predict.shape import Shape, architecture
    from scaling.rollout import rollout

    environment = retry(context_size=16, iterations=3)
    assert retry(**environment.parameters()) == environment
    roofline = Roofline(Shape.from_config(architecture("tiny")), SERVING.machine(gpu("h100"), "bfloat16"))
    queries, lengths = [[7] * 5] * 3, [environment.expected_lengths(5, tokens) for tokens in (9, 32, 48)]
    engine = SimulatedEngine(roofline, Limits(1000, 1, 100), admission="paged")
    traces = rollout(engine, environment, queries, lengths=lengths)
    segments = [s for t in traces for s in environment.schedule(5, t.response_lengths)]
    assert [t.response_lengths for t in traces] == [[9], [16, 16], [16, 16, 16]]
    assert engine.stats().prefill_tokens == sum(s.prefill for s in segments)
    assert engine.stats().decode_tokens == sum(s.steps for s in segments)
    apart = [float(roofline.rollout(environment.schedule(5, t.response_lengths), 1).total) for t in traces]
    assert engine.now() == pytest.approx(sum(apart))


def test_the_environment_of_the_page_ends_where_the_model_does(retry: Any) -> None:
    import torch

    from scaling.decoder import Decoder
    from scaling.engines.local import LocalEngine
    from scaling.packing import samples_from
    from scaling.predict.shape import architecture
    from scaling.rollout import Sampling, rollout

    environment = retry(context_size=16, iterations=3)
    model = Decoder.from_config(architecture("tiny"), dtype=torch.float32, seed=0)
    engine = LocalEngine(model, kv_bytes=16 << 20, max_length=64, eos=tuple(range(0, 1024, 25)))
    traces = rollout(engine, environment, [[7] * 5] * 8, sampling=Sampling(seed=1))
    assert {len(t.chunks) for t in traces} > {1}
    assert all(t.chunks[-1].finish == "stop" or len(t.chunks) == 3 for t in traces)
    segments = [s for t in traces for s in environment.schedule(5, t.response_lengths)]
    assert engine.stats().prefill_tokens == sum(s.prefill for s in segments)
    assert engine.stats().decode_tokens == sum(s.steps for s in segments)
    samples = [s for t in traces for s in samples_from(t.chunks, t.logprobs, 1.0, t.index)]
    assert len(samples) == len(segments)


def test_the_environments_page_has_every_mode_and_its_commands_have_the_options_they_use(cli: Any) -> None:
    from scaling.thinking import MODES

    page = (ROOT / "docs/environments.md").read_text()
    assert re.findall(r"^\| `(\w[\w-]+)` \|", page, re.MULTILINE) == list(MODES)
    commands = re.findall(r"^scaling .*", page, re.MULTILINE) + re.findall(r"`(scaling plan [^`]*)`", page)
    assert len(commands) == 5
    for command in commands:
        _, name, *words = shlex.split(command)
        said = re.sub(r"\s+", " ", cli(name, "--help").out)
        assert all(word in said for word in words if word.startswith("--")), command


def test_the_commands_of_the_gates_page_have_the_options_they_use(cli: Any) -> None:
    page = (ROOT / "docs/gate.md").read_text()
    commands = re.findall(r"^(?:- run: )?(scaling \w+ [^#\n]*)", page, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        _, name, *words = shlex.split(command)
        said = re.sub(r"\s+", " ", cli(name, "--help").out)
        assert all(word in said for word in words if word.startswith("--")), command

"""`scaling test-time`: a real model, small and random, far beyond its budget, and what that costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling.results import Store
from studies.trace_frame import frame

pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

Cli = Callable[..., Any]
SIZES = ("--context-size", "16", "--state-size", "8", "--head", "0")
SMALL = ("--task", "chain_sum:max_terms=2,max_digits=1", "--problems", "2", "--samples", "2", *SIZES)


@pytest.fixture(scope="module")
def far(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scaling.cli import main

    out = tmp_path_factory.mktemp("runs") / "far"
    words = ["test-time", "--model", str(chat_model), *SMALL, "--thinking-tokens", "64", "--out", str(out)]
    assert main([*words, "--gpu", "h100", "--price", "2.5"]) == 0
    return out


def test_every_model_is_sampled_in_every_environment_with_the_longest_budget(far: Path) -> None:
    table = frame(far)
    assert set(table["arm"]) == {"bytes, in longcot", "bytes, in delethink"}
    assert set(table["budget"]) == {64}
    assert Store.open(far).manifest["budgets"] == [2, 4, 8, 16, 32, 64]
    assert Store.open(far).manifest["study"] == "test-time"


def test_what_an_interrupted_study_lacks_is_said_first(cli: Cli, far: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(far, tmp_path / "cut"))
    first, _ = sorted((run / "traces").iterdir())
    first.write_bytes(b"".join(first.read_bytes().splitlines(keepends=True)[:3]))
    lacking = "Not finished: 1 of 8 traces are still to be sampled."
    ran = cli("report", run)
    assert f"Test-time scaling, cut: {lacking}" in ran.out
    assert f"Thoughts, cut: {lacking}" in ran.out
    assert lacking in cli("thoughts", run).err
    assert "Not finished" not in cli("report", far, "--out", tmp_path / "whole").out


def test_a_trace_that_failed_and_was_asked_again_is_one(cli: Cli, far: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(far, tmp_path / "cut"))
    first, _ = sorted((run / "traces").iterdir())
    lines = first.read_bytes().splitlines(keepends=True)[:3]
    failed = json.loads(lines[0]) | {"error": "gone", "answer": None, "score": None, "scores": {}}
    first.write_bytes(b"".join([json.dumps(failed).encode() + b"\n", *lines]))
    assert "Not finished: 1 of 8 traces are still to be sampled." in cli("thoughts", run).err


def test_it_goes_on_by_its_directory_alone_and_tells_the_same(cli: Cli, far: Path) -> None:
    before = {path: path.read_bytes() for path in (far / "traces").iterdir()}
    ran = cli("test-time", "--resume", "--out", far, "--json")
    assert ran.code == 0, ran.err
    analysis = json.loads(ran.out)["analysis"]
    assert analysis["format"] == "test-time"
    assert {path: path.read_bytes() for path in (far / "traces").iterdir()} == before


def test_without_measured_runs_the_planner_prices_it_with_energy_and_money(cli: Cli, far: Path) -> None:
    costs = json.loads(cli("test-time", "--resume", "--out", far, "--json").out)["analysis"]["costs"]
    assert len(costs) == 12
    for point in costs:
        price = point["price"]
        assert price["method"].startswith("analytic: planner, bytes on 1 × ")
        assert price["money"] == pytest.approx(price["device_seconds"] / 3600 * 2.5)
        assert price["energy_joules"] > 0
    longcot = [p["price"]["device_seconds"] for p in costs if p["arm"] == "bytes, in longcot"]
    assert longcot == sorted(longcot)


def test_reported_with_measured_runs_their_law_is_the_price(cli: Cli, far: Path, chat_model: Path, tmp_path: Path):
    ran = cli("run", "--model", chat_model, *SIZES, "--lengths", "16,32,48,64", "--method", "full", "--traces", "2",
              "--concurrency", "2", "--prompt-tokens", "16", "--out", tmp_path / "costs")  # fmt: skip
    assert ran.code == 0, ran.err
    ran = cli("report", far, tmp_path / "costs", "--out", tmp_path / "report")
    assert ran.code == 0, ran.err
    prices = pd.read_csv(tmp_path / "report" / "tables" / "far-prices.csv")
    assert set(prices["arm"]) == {"bytes, in longcot", "bytes, in delethink"}
    assert prices["price_method"].str.startswith("fitted: ").all()
    assert (tmp_path / "report" / "figures" / "far-front.svg").exists()
    assert "2 · 2" not in (tmp_path / "report" / "report.md").read_text()
    page = (tmp_path / "report" / "index.html").read_text()
    for heading in ("Test-time scaling, far", "Thoughts, far", "What sampling took", "Measured costs"):
        assert heading in page
    assert (tmp_path / "report" / "traces.html").exists()


def test_a_price_that_cannot_be_told_is_remarked(cli: Cli, chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "far"
    ran = cli("test-time", "--model", chat_model, *SMALL, "--mode", "longcot", "--thinking-tokens", "32", "--out", out)
    assert ran.code == 0, ran.err
    ran = cli("report", out)
    assert ran.code == 0, ran.err
    assert "far has no prices: no run that measured its environments is reported with it" in ran.err


def test_a_run_is_priced_though_its_model_is_gone_and_reported_though_it_fits_no_gpu(
    cli: Cli, far: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(far, tmp_path / "far"))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["options"]["model"] = [str(tmp_path / "moved away")]
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert cli("report", run).code == 0
    assert "analytic: planner, bytes on 1 × " in (run / "report" / "tables" / "far-prices.csv").read_text()

    for arm in manifest["arms"]:
        arm["model"]["config"]["intermediate_size"] = 1 << 31
    (run / "manifest.json").write_text(json.dumps(manifest))
    ran = cli("report", run)
    assert ran.code == 0, ran.err
    assert "far has no prices: " in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpu", "h1000", "--thinking-tokens", "64"), "h1000"),
        (("--thinking-tokens", "64", "--budgets", "128"), "budget 128 is more than --thinking-tokens 64"),
        (("--thinking-tokens", "0"), "0"),
        (("--extensions", "2", "--thinking-tokens", "64"), "--extensions goes with --mode budget-forcing"),
        (("--answer", "gut-feeling", "--thinking-tokens", "64"), "unknown answer rule"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    cli: Cli, chat_model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ran = cli("test-time", "--model", chat_model, *SMALL, *arguments, "--out", tmp_path / "far")
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "far").exists()


def test_what_is_no_such_run_cannot_go_on(cli: Cli, tmp_path: Path) -> None:
    ran = cli("test-time", "--resume", "--out", tmp_path / "none")
    assert ran.code == 2
    assert "no run at" in ran.err
    ran = cli("test-time", "--resume")
    assert ran.code == 2
    assert "say which" in ran.err

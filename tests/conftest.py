"""What many tests share: rows as a measurement would make them, the command line run in this process, small models
and trainings."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from scaling.results import Row

if TYPE_CHECKING:
    from trainer.loop import Trainer
    from trainer.recipe import Recipe

settings.register_profile("steady", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("steady")

ROW = Row(
    schema_version="1.0",
    cell_id="0123abcd",
    repeat=0,
    method="full",
    phase="rollout",
    status="ok",
    reason=None,
    model="tiny",
    engine="local",
    device="test CPU",
    devices=1,
    tensor_parallel=1,
    data_parallel=1,
    weight_dtype="float32",
    activation_dtype="float32",
    kv_dtype="float32",
    environment="delethink",
    context_size=1024,
    state_size=512,
    head=100,
    iterations=3,
    carryover="algorithm1",
    prompt_tokens=64,
    thinking_budget=2048,
    mean_thinking_tokens=2048,
    traces=4,
    concurrency_limit=4,
    actual_thinking_tokens=2048.0,
    failed_traces=0,
    chunks=12,
    prefill_computed_tokens=5664,
    prefill_cached_tokens=0,
    decode_tokens=8192,
    processed_tokens=13844,
    concurrency_mean=4.0,
    concurrency_peak=4,
    preemptions=0,
    wall_seconds=2.0,
    device_seconds_per_trace=0.5,
    prefill_seconds=0.25,
    decode_seconds=1.75,
    elapsed_seconds=2.0,
    tokens_per_second=4096.0,
    flops=5e10,
    flops_convention="causal",
    kv_bytes_per_token=4096.0,
    peak_kv_bytes=6.8e6,
    peak_memory_bytes=3.5e8,
    memory_method="peak resident set",
    energy_joules=None,
    energy_reason="no energy counter",
    seconds_valid=True,
    seconds_reason=None,
    memory_valid=True,
    memory_reason=None,
    grid_id=None,
    started_unix=1.76e9,
    fingerprint_id="fp0",
    seed=0,
)


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A finished Delethink row with the given fields changed."""
    return lambda **changes: replace(ROW, **changes)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `scaling ARGUMENTS…` in this process: its exit code and what it printed."""
    from scaling.cli import main

    def run(*arguments: Any) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny random Llama with a chat tokenizer of single bytes: any text is tokens, and back."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from scaling.decoder import Decoder

    path = tmp_path_factory.mktemp("models") / "bytes"
    special = ["<|start|>", "<|end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])
    fast.chat_template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 258,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
    }
    Decoder.from_config(config, dtype=torch.float32, seed=0).save(path)
    return path


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that half knows short walks."""
    from scaling.decoder import Decoder
    from scaling.tasks.walk import CONFIG, demonstrations
    from trainer.supervised import batches, warm_start

    path = tmp_path_factory.mktemp("models") / "taught"
    policy = Decoder.from_config(CONFIG, seed=0)
    shown = demonstrations(0, 48, 2, windows=0.0, slips=0.1)
    warm_start(policy, batches(shown, 32), 150, 5e-3)
    policy.save(path)
    return path


@pytest.fixture
def small(taught: Path) -> Recipe:
    """Walks of no step to two, in chunks so short that most need several."""
    from trainer.recipes import recipe

    sizes = ["task=walk:0-2", "problems=64", "context_size=8", "state_size=4", "thinking_budget=24", "warm_steps=0"]
    return recipe("walk-delethink-cpu").override(
        [*sizes, f"model={taught}", "steps=2", "queries=4", "group=6", "save_every=1", "replay_examples=4"]
    )


@pytest.fixture
def start(tmp_path: Path, small: Recipe) -> Iterator[Callable[..., Trainer]]:
    """`start(setting, …, recipe=…, out=…)`: a run that is set up but not trained."""
    from trainer.loop import Trainer

    with ExitStack() as stack:

        def make(*settings: str, recipe: Recipe = small, out: Path = tmp_path / "run") -> Trainer:
            trainer = Trainer.start(recipe.override(settings), out)
            stack.callback(trainer.close)
            return trainer

        yield make


@pytest.fixture(scope="session")
def completions_server() -> Any:
    """The module of a completions server on loopback that misbehaves as it is told to."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("completions_server", Path(__file__).parent / "engines" / "server.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "quick"
version = "1"
"""

ONE_BENCHMARK = """
from quick import work

def test_work(benchmark):
    benchmark.pedantic(work, rounds=5)
"""


QUICK_ENDS = """
def pytest_benchmark_generate_machine_info():
    return {"cpu": {}}

def pytest_benchmark_generate_commit_info():
    return {}
"""
"""For a `conftest.py`: what pytest-benchmark asks the machine and git at its end takes longer than all else it does."""


class Project:
    """A small project with one benchmark, in a git repository.

    Its commits are builds: `commit` makes one, whose `work` is this code, and returns its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "quick").mkdir(parents=True)
        (folder / "benchmarks").mkdir()
        (folder / "benchmarks" / "conftest.py").write_text(QUICK_ENDS)
        (folder / "pyproject.toml").write_text(PYPROJECT)
        self.git("init", "--quiet")

    def commit(self, work: str, benchmark: str = ONE_BENCHMARK) -> str:
        self.write(work)
        (self.folder / "benchmarks" / "test_quick.py").write_text(benchmark)
        self.git("add", "--all")
        self.git("-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "work")
        return self.git("rev-parse", "HEAD")

    def write(self, work: str) -> None:
        """Changes the working tree alone."""
        (self.folder / "quick" / "__init__.py").write_text(f"import time\n\n\ndef work():\n    {work}\n")

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def lean_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the processes of pytest that a test starts load no plugin but that of the benchmarks: half of their time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_benchmark.plugin")


@pytest.fixture
def quick_ends() -> str:
    """A `conftest.py` for benchmarks."""
    return QUICK_ENDS


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A small project without a commit yet, in the current directory."""
    made = Project(tmp_path / "project")
    monkeypatch.chdir(made.folder)
    return made

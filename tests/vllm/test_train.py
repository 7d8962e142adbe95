"""Training with vLLM as its engine: it is handed the policy after every step, and samples what the trainer computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from scaling.decoder import Decoder
from scaling.errors import UsageError
from scaling.results import Store
from scaling.tasks.walk import CONFIG
from trainer.loop import Trainer
from trainer.metrics import read
from trainer.recipe import Recipe

pytest.importorskip("vllm", reason="vLLM is not installed here; `nox -s vllm` installs and tests it")

Start = Callable[..., Trainer]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The walk's model, untaught, with heads that vLLM's attention on CPUs takes: it refuses the walk's own."""
    path = tmp_path_factory.mktemp("models") / "wide"
    Decoder.from_config({**CONFIG, "hidden_size": 128, "head_dim": 32}, seed=0).save(path)
    return path


@pytest.fixture
def learner(small: Recipe, model: Path) -> Recipe:
    return small.override(
        [f"model={model}", "engine=vllm", "queries=8", "group=8", "replay=0", "learning_rate=3e-3", "save_every=15"]
    )


def commas(trainer: Trainer) -> None:
    """Sets a reward that a random policy can earn by chance: the share of commas in a trace that ends itself."""
    comma = trainer.questions.walk.tokenizer.encode(",")[0]  # type: ignore[attr-defined]

    def reward(_: int, responses: Sequence[Sequence[int]]) -> float:
        ids = [id for response in responses for id in response]
        return ids.count(comma) / len(ids)

    trainer.questions.reward = reward  # type: ignore[method-assign]


def test_a_policy_learns_from_what_vllm_samples_of_it(start: Start, learner: Recipe) -> None:
    trainer = start("mode=delethink", "steps=15", recipe=learner)
    commas(trainer)
    trainer.train()
    lines = read(trainer.run)
    assert sum(line["reward"] for line in lines[:3]) / 3 < 0.1
    assert sum(line["reward"] for line in lines[-3:]) / 3 > 0.3
    for line in lines:  # each step's weights are those that the trainer has
        assert line["logprob_difference"] < 1e-3
        assert all(weight == pytest.approx(1, abs=1e-4) for weight in line["importance_weight"])
        assert set(line["importance_capped_fraction"]) == {0.0}
    assert any(line["clip_fraction"][1] > 0 for line in lines)
    rows = Store.open(trainer.run).frame()
    assert set(rows["engine"]) == {"vllm"}
    assert (rows[rows["phase"] == "sync"]["wall_seconds"] > 0).all()


def test_bfloat16_is_of_vllm_too_and_the_weights_stay_float32(start: Start, learner: Recipe) -> None:
    trainer = start("mode=longcot", "steps=3", "dtype=bfloat16", recipe=learner)
    commas(trainer)
    trainer.train()
    for line in read(trainer.run):
        assert 1e-6 < line["mean_logprob_difference"] < 0.02  # two implementations in bfloat16
        assert all(weight == pytest.approx(1, abs=0.02) for weight in line["importance_weight"])
    assert all(parameter.dtype.itemsize == 4 for parameter in trainer.policy.parameters())


def test_a_run_goes_on_where_it_was_with_either_engine(start: Start, learner: Recipe) -> None:
    trainer = start("steps=2", "advantage=vineppo", "value_rollouts=2", recipe=learner)
    commas(trainer)
    trainer.train()
    for change, steps in (("steps=3", 3), ("engine=local", 4)):
        resumed = Trainer.resume(trainer.run, [change, f"steps={steps}"])
        commas(resumed)
        resumed.train()
        resumed.close()
    lines = read(trainer.run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["logprob_difference"] < 1e-3 for line in lines)
    rows = Store.open(trainer.run).frame()
    assert dict(zip(rows["repeat"], rows["engine"], strict=True)) == {1: "vllm", 2: "vllm", 3: "vllm", 4: "local"}


def test_heads_that_vllm_does_not_take_are_said_before_anything_is_written(
    start: Start, small: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"vLLM takes heads of 32, 64, .* dimensions, and the model's have 16"):
        start("engine=vllm", recipe=small, out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_several_processes_are_refused_in_one_line(learner: Recipe, tmp_path: Path) -> None:
    settings = [f"model={learner.model}", "engine=vllm", "warm_steps=0", "task=walk:0-2", "problems=8", "queries=4"]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer"),
            *("walk-delethink-cpu", *settings, "--out", str(tmp_path / "run")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode != 0
    assert "scaling: error: engine=vllm samples in one process, and torchrun started several" in ran.stderr
    assert not (tmp_path / "run").exists()

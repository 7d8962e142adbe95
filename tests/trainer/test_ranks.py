"""Several ranks do together what one does alone, and bfloat16 is of the arithmetic, not of the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoint import newest
from trainer.engine import hand_over
from trainer.loop import Trainer
from trainer.metrics import read
from trainer.recipe import Recipe

Start = Callable[..., Trainer]

RUN = """
import json, sys
from pathlib import Path
from trainer.loop import Trainer
from trainer.recipe import Recipe

trainer = Trainer.start(Recipe.from_json(json.loads(sys.argv[1])), Path(sys.argv[2]))
trainer.train()
trainer.close()
"""


def torchrun(ranks: int, recipe: Recipe, run: Path) -> subprocess.CompletedProcess[str]:
    """The recipe's run on so many ranks, which talk over loopback."""
    script = run.with_suffix(".py")
    script.write_text(RUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(script)]
    return subprocess.run(
        [*command, json.dumps(recipe.to_json()), str(run)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def numbers(metric: object) -> list[float]:
    """A metric's value or values; what a recipe has no use for is null."""
    values = metric if isinstance(metric, list) else [metric]
    return [value for value in values if value is not None]


@pytest.mark.parametrize(
    "settings",
    [("mode=delethink", "kl=0.1"), ("mode=longcot", "advantage=vineppo", "value_rollouts=2")],
    ids=["delethink-grpo-kl", "longcot-vineppo"],
)
def test_two_ranks_give_the_losses_of_one(
    start: Start, small: Recipe, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    odd = small.override([*settings, "steps=2", "queries=5", "token_budget=100"])  # shares are not equal
    alone = start(recipe=odd, out=tmp_path / "one")
    alone.train()
    ran = torchrun(2, odd, tmp_path / "two")
    assert ran.returncode == 0, ran.stderr

    timed = ("seconds", "per_second", "mfu")
    for one, two in zip(read(tmp_path / "one"), read(tmp_path / "two"), strict=True):
        assert two.keys() == one.keys()
        for name in one:
            if not any(word in name for word in timed):
                assert numbers(two[name]) == pytest.approx(numbers(one[name]), rel=1e-4, abs=1e-5), name
        assert any(norm > 0 for norm in one["grad_norm"])
    weights, other = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("one", "two"))
    assert weights.keys() == other.keys()
    assert all(torch.allclose(tensor, other[name], atol=1e-5) for name, tensor in weights.items())
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2  # the lead alone writes

    again = Trainer.resume(tmp_path / "two", ["steps=3"])  # one rank goes on with what two have written
    again.train()
    alone.recipe = alone.recipe.override(["steps=3"])
    alone.train()
    one, two = read(tmp_path / "one")[-1], read(tmp_path / "two")[-1]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-4)


def test_rows_count_the_devices_of_all_ranks(small: Recipe, tmp_path: Path) -> None:
    from scaling.results import Store

    ran = torchrun(2, small.override(["steps=1"]), tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    rows = Store.open(tmp_path / "run").frame()
    assert len(rows) == 4
    assert set(rows["devices"]) == set(rows["data_parallel"]) == {2}
    timed = rows[rows["phase"] == "rollout"].iloc[0]
    assert timed["device_seconds_per_trace"] == pytest.approx(2 * timed["wall_seconds"] / timed["traces"])


def test_bfloat16_computes_in_half_precision_and_keeps_whole_weights(start: Start) -> None:
    trainer = start("dtype=bfloat16", "steps=2", "learning_rate=1e-4", "replay=0")
    before = load_file(newest(trainer.run) / "model.safetensors")
    saved = trainer.train()
    assert trainer.engine.model.head.dtype == torch.bfloat16
    after = load_file(saved / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    # A step of 1e-4 on weights of about 0.1 is below bfloat16's resolution, and must not be lost.
    moved = [(after[name] - tensor).abs().max() for name, tensor in before.items()]
    assert 0 < max(moved) < 1e-3
    differences = [line["mean_logprob_difference"] for line in read(trainer.run) if line["clip_fraction"]]
    assert differences
    assert all(0 < difference < 0.05 for difference in differences)  # two roundings of one policy, weights alike


def test_a_bfloat16_policy_scores_far_positions_as_the_engine_that_sampled_them(start: Start) -> None:
    trainer = start("dtype=bfloat16", "steps=1")
    trainer.train()
    hand_over(trainer.policy, trainer.engine, 0)
    tokens = torch.arange(4096) % trainer.policy.shape.vocabulary
    with torch.no_grad():
        ours, sampled = (model.hidden(tokens, [4096]) for model in (trainer.policy, trainer.engine.model))
    assert torch.equal(ours, sampled)


def test_bfloat16_goes_on_bit_for_bit(start: Start, tmp_path: Path) -> None:
    half = ["dtype=bfloat16", "save_every=1", "queries=2"]
    whole = start("steps=2", *half, out=tmp_path / "whole")
    whole.train()
    start("steps=1", *half, out=tmp_path / "half").train()
    Trainer.resume(tmp_path / "half", ["steps=2"]).train()
    left, right = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())

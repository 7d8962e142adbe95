"""The live view of a training: what a step looks like, and how long the rest takes."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.cli.train_view import HEADS_EVERY, TrainView, duration
from trainer.recipes import RECIPES, recipe

STEP: dict[str, Any] = {
    "step": 999,
    "reward": 0.3456,
    "finished": 0.92,
    "equal_groups": 4,
    "groups": 128,
    "thinking_tokens": 12345.6,
    "longest_thinking_tokens": 98304,
    "chunks": 12.3,
    "entropy": 1.2345,
    "clip_fraction": [0.0, 0.0123],
    "policy_kl": [0.0, 0.000456],
    "reference_kl": [0.0, 0.00789],
    "tokens_per_second": 123456.0,
    "mfu": 0.314,
    "rollout_seconds": 1234.5,
    "logprob_seconds": 16.123,
    "update_seconds": 64.3,
}


def shown(capsys: pytest.CaptureFixture[str], *lines: dict[str, Any], settings: tuple[str, ...] = ()) -> list[str]:
    view = TrainView(recipe("math-r1-distill-1.5b-delethink-24k").override(settings), "a run")
    for line in lines:
        view.step(line)
    heading, *told = capsys.readouterr().err.splitlines()
    assert heading == "a run"
    return told


def test_a_step_is_a_row_of_numbers_under_their_heads(capsys: pytest.CaptureFixture[str]) -> None:
    heads, row = shown(capsys, STEP)
    told = dict(zip(heads.split(), row.split(), strict=True))
    assert told.pop("left").endswith("s")
    assert told == {
        "step": "999/1000",
        "reward": "0.346",
        "ended": "92%",
        "equal": "4/128",
        "tokens": "12.3k",
        "most": "98.3k",
        "chunks": "12.3",
        "entropy": "1.234",
        "clip": "1.2%",
        "KL": "4.6e-04",
        "tok/s": "123k",
        "MFU": "31%",
        "rollout": "1234s",
        "logp": "16.12s",
        "update": "64.30s",
    }


def test_a_reference_has_a_column_where_the_policy_is_held_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    heads, row = shown(capsys, STEP, settings=("kl=0.1",))
    assert "KL ref" in heads
    assert "7.9e-03" in row


def test_a_row_fits_into_120_columns_and_every_number_stands_under_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    for name in RECIPES:
        chosen = recipe(name).override(["kl=0.1"])
        TrainView(chosen, "a run").step({**STEP, "step": chosen.steps, "groups": chosen.queries})
        _, heads, row = capsys.readouterr().err.splitlines()
        assert len(heads) == len(row) <= 120


def test_all_equal_rewards_are_said_and_what_was_not_there_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"clip_fraction": [], "policy_kl": [], "reference_kl": [], "entropy": None, "mfu": None}
    heads, row, said = shown(capsys, {**STEP, **nothing, "equal_groups": 128})
    told = dict(zip(heads.split(), row.split(), strict=True))
    assert [told[name] for name in ("entropy", "clip", "KL", "MFU")] == ["-"] * 4
    assert said == "no gradient: all rewards of every group are equal"


def test_heads_come_again_where_they_have_scrolled_away(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, *[STEP] * (HEADS_EVERY + 1))
    assert [i for i, line in enumerate(lines) if line.split()[0] == "step"] == [0, HEADS_EVERY + 1]


def test_a_warm_start_counts_its_steps_over_all_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    view = TrainView(recipe("walk-delethink-cpu").override(["warm_steps=150"]), "a run")
    for done in [*range(1, 51), *range(1, 101)]:
        view.warm(done, 1.5)
    said = capsys.readouterr().err.splitlines()[1:]
    assert [line.split("  ")[:2] for line in said] == [
        ["warm start 100/150", "loss 1.500"],
        ["warm start 150/150", "loss 1.500"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (185, "3m05s"), (7500, "2h05m"), (360_000, "4d04h"), (8_640_000, "100d00h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_before_the_first_step_there_is_nothing_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    TrainView(recipe("walk-delethink-cpu"), "a run").close()
    assert capsys.readouterr().err == ""

"""The chapter on training: rewards, seconds and lengths of runs, as the trainer wrote them."""

from __future__ import annotations

from typing import Any

import pytest

from reports.training import training_chapter


def run(mode: str, rewards: list[float]) -> dict[str, Any]:
    lines = [
        {"step": n, "reward": r, "thinking_tokens": 10.0 * n, "rollout_seconds": 2.0, "logprob_seconds": None,
         "update_seconds": 1.0, "sync_seconds": 0.5}
        for n, r in enumerate(rewards, 1)
    ]  # fmt: skip
    return {"recipe": {"name": f"walk-{mode}", "mode": mode, "seed": 3}, "lines": lines}


def test_a_line_a_run_with_rewards_smoothed_and_seconds_added_up():
    rewards = [0.0, 0.5, 0.5, 0.5, 0.5, 1.0]
    chapter = training_chapter({"a": run("longcot", rewards), "b": run("delethink", [0.25])})
    (section,) = chapter.sections
    assert [drawing.name for drawing in section.drawings] == [
        "training-reward-step", "training-reward-seconds", "training-thinking-tokens-step"
    ]  # fmt: skip
    (table,) = section.tables
    mine = table.data[table.data["run"] == "a"]
    assert list(mine["seconds"]) == [3.5, 7, 10.5, 14, 17.5, 21]
    assert mine["reward"].iloc[-1] == pytest.approx(0.6)  # the mean of the last five
    assert chapter.sentences == [
        "a (walk-longcot): reward 0 % at its first step, 60 % over the last 5 of 6, 21.0 s.",
        "b (walk-delethink): reward 25 % at its first step, 25 % over the last 1 of 1, 3.50 s.",
    ]
    assert list(table.shown["seed"]) == ["3", "3"]

"""What a training looks like while it runs: a row of numbers a step, and on a terminal a bar beneath them."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from scaling.cli.console import console, say

if TYPE_CHECKING:
    from rich.progress import Progress

    from trainer.recipe import Recipe

HEADS_EVERY = 25
"""Rows after which the heads of the columns come again."""

RECENT = 20
"""Steps whose mean time says how long the rest takes: later ones think longer."""

WARM_EVERY = 100
"""Steps of a warm start to a line."""


class TrainView:
    """Lines for steps of the warm start and of RL, as they come, within 120 columns at the paper's sizes.

    It says nothing before the first step, so that an error before that stands alone, and so does the rank that leads.
    Close it after use.
    """

    def __init__(self, recipe: Recipe, heading: str) -> None:
        self._recipe, self._heading = recipe, heading
        self._columns = _columns(recipe)
        self._ends: deque[float] = deque([time.monotonic()], maxlen=RECENT + 1)
        self._rows = self._warmed = 0
        self._left = "-"
        self._bar: Progress | None = None

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def warm(self, _: int, loss: float) -> None:
        """A step of the warm start, which counts the steps of each of its parts by itself."""
        self._warmed += 1
        done, total = self._warmed, self._recipe.warm_steps
        self._move("warm start", done, total)
        if done % WARM_EVERY == 0 or done == total:
            say(f"warm start {done}/{total}  loss {loss:.3f}  {self._left} left")
        if done == total:
            self._ends = deque([time.monotonic()], maxlen=RECENT + 1)

    def step(self, line: dict[str, Any]) -> None:
        """`line`: as of `metrics.jsonl`."""
        self._move("training", line["step"], self._recipe.steps)
        if self._rows % HEADS_EVERY == 0:
            say(" ".join(head.rjust(width) for head, width in self._columns))
        self._rows += 1
        told = _told(line, self._recipe) | {"left": self._left}
        say(" ".join(told[head].rjust(width) for head, width in self._columns))
        if line["equal_groups"] == line["groups"]:
            say("no gradient: all rewards of every group are equal")

    def _move(self, what: str, done: int, total: int) -> None:
        if self._heading:
            say(self._heading)
            self._heading = ""
            if console.is_terminal:
                self._bar = _bar()
        self._ends.append(time.monotonic())
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        self._left = duration(each * (total - done))
        if self._bar is not None:
            (task,) = self._bar.task_ids
            self._bar.update(task, description=what, completed=done, total=total, left=self._left)


def _bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    left = TextColumn("{task.fields[left]} left")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left)
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task("", left="-")
    bar.start()
    return bar


def duration(seconds: float) -> str:
    """At most six characters: `12s`, `3m05s`, `2h05m`, `4d03h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 100 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _columns(recipe: Recipe) -> list[tuple[str, int]]:
    """Heads and widths; `KL ref` only where the recipe holds the policy to a reference."""
    step, equal = 2 * len(str(recipe.steps)) + 1, 2 * len(str(recipe.queries)) + 1
    return [
        ("step", max(4, step)),
        ("reward", 6),
        ("ended", 5),
        ("equal", max(5, equal)),
        ("tokens", 6),
        ("most", 5),
        ("chunks", 6),
        ("entropy", 7),
        ("clip", 5),
        ("KL", 7),
        *([("KL ref", 7)] if recipe.kl else []),
        ("tok/s", 5),
        ("MFU", 4),
        ("rollout", 7),
        ("logp", 6),
        ("update", 6),
        ("left", 6),
    ]


def _told(line: dict[str, Any], recipe: Recipe) -> dict[str, str]:
    """The step's numbers by the heads of their columns; a dash for what was not there to measure."""
    return {
        "step": f"{line['step']}/{recipe.steps}",
        "reward": f"{line['reward']:.3f}",
        "ended": f"{line['finished']:.0%}",
        "equal": f"{line['equal_groups']}/{line['groups']}",
        "tokens": _short(line["thinking_tokens"]),
        "most": _short(line["longest_thinking_tokens"]),
        "chunks": f"{line['chunks']:.1f}",
        "entropy": _number(line["entropy"], ".3f"),
        "clip": _number(_most(line["clip_fraction"]), ".1%"),
        "KL": _number(_most(line["policy_kl"]), ".1e"),
        "KL ref": _number(_most(line["reference_kl"]), ".1e"),
        "tok/s": _short(line["tokens_per_second"]),
        "MFU": _number(line["mfu"], ".0%"),
        "rollout": _seconds(line["rollout_seconds"]),
        "logp": _seconds(line["logprob_seconds"]),
        "update": _seconds(line["update_seconds"]),
    }


def _most(of_updates: list[float | None]) -> float | None:
    """The largest of a step's updates: the first of them moves from nowhere, so its shares are 0."""
    return max((value for value in of_updates if value is not None), default=None)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _seconds(value: float) -> str:
    return f"{value:.2f}s" if value < 99.995 else f"{value:.0f}s"


def _short(value: float) -> str:
    """At most five characters: `123`, `12.3k`, `123k`, `1.2M`."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= 9.9995 * size or (unit == "M" and value >= size):
            return f"{value / size:.1f}{unit}" if value < 99.95 * size else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"

"""What was measured, as passes that the roofline can price: a row's rollout or training, a grid's single steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.errors import UsageError
from scaling.predict.roofline import Array, Machine, Precision, Roofline
from scaling.predict.shape import Shape
from scaling.thinking import Environment, Segment, for_budget

if TYPE_CHECKING:
    import pandas as pd

PIECES = 16
"""Into which a chunk's decode steps are cut, each at its mean context: exact where seconds are linear in the context,
which they are but where a layer's window fills up within a piece."""


@dataclass(frozen=True)
class Passes:
    """Passes of a model, one a row: `decode` (rows, keys, how often), `prefill` (new tokens, past ones, how often) and
    `training` (tokens, logits, how often)."""

    decode: tuple[tuple[float, float, float], ...] = ()
    prefill: tuple[tuple[float, float, float], ...] = ()
    training: tuple[tuple[float, float, float], ...] = ()

    @classmethod
    def of_step(cls, kind: str, rows: int, tokens: int) -> Passes:
        """A point of a profile's grid: one decode step of `rows` at context `tokens`, or `rows` prompts of them."""
        if kind == "decode":
            return cls(decode=((rows, rows * tokens, 1.0),))
        return cls(prefill=((tokens, 0.0, float(rows)),))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Passes:
        """All traces of a rollout, log-probability or update row: in lockstep, in waves of its peak concurrency."""
        counted = Counter(_segments(row))
        traces = int(row["traces"])
        if row["phase"] != "rollout":
            times = traces * (4 if row["phase"] == "update" else 1)
            return cls(
                training=tuple(
                    (float(s.prompt + s.steps), float(s.decode), float(times * count)) for s, count in counted.items()
                )
            )
        peak = row["concurrency_peak"]
        at_once = int(min(traces, peak or row["concurrency_limit"]))
        waves = Counter([at_once] * (traces // at_once) + ([traces % at_once] if traces % at_once else []))
        return cls(
            decode=tuple(
                (float(rows), rows * context, steps * count * times)
                for rows, times in waves.items()
                for segment, count in counted.items()
                for context, steps in _contexts(segment)
            ),
            prefill=tuple((float(s.prefill), float(s.reused), float(traces * count)) for s, count in counted.items()),
        )

    @property
    def encoding(self) -> Passes:
        """The prefills alone."""
        return replace(self, decode=())

    @property
    def decoding(self) -> Passes:
        """The decode steps alone."""
        return replace(self, prefill=())


class Batch:
    """Several `Passes`, priced at once."""

    def __init__(self, passes: Sequence[Passes]) -> None:
        self._count = len(passes)
        self._decode = _table([p.decode for p in passes])
        self._prefill = _table([p.prefill for p in passes])
        self._training = _table([p.training for p in passes])

    def seconds(self, roofline: Roofline) -> Array:
        """Of each, in order."""
        total = np.zeros(self._count)
        for table, price in (
            (self._decode, roofline.decode),
            (self._prefill, roofline.prefill),
            (self._training, roofline.training),
        ):
            if len(table):
                owner, first, second, times = table.T
                spent = price(first, second).total * times
                total += np.bincount(owner.astype(np.int64), weights=spent, minlength=self._count)
        return total


@dataclass(frozen=True)
class Probed:
    """What a run's manifest says of where it ran: the model, and the machine as it was probed before measuring."""

    shape: Shape
    machine: Machine
    precision: Precision

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Probed:
        """Raises `UsageError` where the run was simulated or the manifest has no probed machine or no model, and
        `CheckpointError` where the model is of a kind that cannot be priced."""
        if manifest.get("config", {}).get("engine") == "simulated":
            raise UsageError("a simulated run repeats what it was told of its device; take one that was measured")
        machine, config = manifest.get("machine"), manifest.get("model", {}).get("config")
        if not machine or not config:
            raise UsageError(
                "the run's manifest has no probed machine or no model config; measure one with `scaling run`"
            )
        known = {f.name: machine[f.name] for f in fields(Machine) if f.name in machine}
        return cls(
            Shape.from_config(config),
            Machine(**known),
            Precision.of(manifest.get("config", {}).get("dtype", "float32")),
        )

    @cached_property
    def roofline(self) -> Roofline:
        return Roofline(self.shape, self.machine, self.precision)


def predicted(roofline: Roofline, rows: Iterable[Mapping[str, Any]]) -> Array:
    """Device-seconds per trace that the roofline gives for rollout, log-probability and update rows; NaN for others."""
    every = list(rows)
    priced = [index for index, row in enumerate(every) if row["phase"] != "sync"]
    found = np.full(len(every), np.nan)
    distinct: dict[Passes, int] = {}
    place = [distinct.setdefault(Passes.of_row(every[index]), len(distinct)) for index in priced]
    seconds = Batch(list(distinct)).seconds(roofline)
    for index, at in zip(priced, place, strict=True):
        found[index] = seconds[at] * every[index]["devices"] / every[index]["traces"]
    return found


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts by column; whatever is missing is None."""
    known = rows.astype(object).where(rows.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in known.to_dict("records")]


def at_length(row: Mapping[str, Any], thinking_tokens: int) -> dict[str, Any]:
    """The row of the same environment that it would take to think so long."""
    longer = _environment(row, thinking_tokens)
    changed = {"thinking_budget": longer.budget, "iterations": longer.parameters().get("iterations")}
    return {**row, **changed, "mean_thinking_tokens": thinking_tokens}


def _environment(row: Mapping[str, Any], budget: int) -> Environment:
    """The row's environment with so much to think."""
    names = ("context_size", "state_size", "head", "summary_size", "extensions", "cue_tokens")
    sizes: dict[str, Any] = {name: None if row.get(name) is None else int(row[name]) for name in names}
    return for_budget(str(row["environment"]), budget, carryover=row["carryover"], **sizes)


def _segments(row: Mapping[str, Any]) -> list[Segment]:
    """Of one of the row's traces."""
    environment, prompt = _environment(row, int(row["thinking_budget"])), int(row["prompt_tokens"])
    return environment.schedule(prompt, environment.expected_lengths(prompt, int(row["mean_thinking_tokens"])))


def _contexts(segment: Segment) -> Iterable[tuple[float, float]]:
    """(mean context, decode steps) of pieces of one segment."""
    edges = np.unique(np.linspace(0, segment.steps, PIECES + 1).round())
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield segment.prompt + (start + end + 1) / 2, end - start


def _table(parts: Sequence[Sequence[tuple[float, float, float]]]) -> Array:
    """[(owner, first, second, times)]."""
    rows = [(float(owner), *each) for owner, part in enumerate(parts) for each in part]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 4)

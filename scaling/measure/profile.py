"""Measures a rollout by its steps: prefill and decode timed on a grid of (context, rows), integrated over the schedule.

Minutes instead of hours at 96K tokens. Points are visited many times in shuffled order, between the steps of full
measurements where there are any, because a machine's speed drifts over minutes. Visits are averaged, not reduced to
their median: a rollout's total holds the stalls too.
"""

from __future__ import annotations

import hashlib
import json
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from scaling.engines.base import Limits, Profilable
from scaling.errors import MemoryLimitError
from scaling.measure.cells import Cell
from scaling.results import Store

if TYPE_CHECKING:
    from pandas import DataFrame

FloatArray = npt.NDArray[np.float64]

CONTEXT_RATIO = 1.5  # between neighbouring contexts: a step's seconds are close to linear within
VISITS = 6  # of each decode point a repeat; of each prefill point, which are a few percent of a rollout, half
WARM_UP_STEPS, STEPS = 2, 6  # of a visit of a decode point

Kind = Literal["decode", "prefill"]


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One decode step of `rows` sequences at context `tokens`, or one prefill of `rows` prompts of `tokens`."""

    kind: Kind
    rows: int
    tokens: int


@dataclass(slots=True)
class Grid:
    """Points and the seconds of every visit to each."""

    visits: dict[Point, list[float]] = field(default_factory=dict)

    def mean(self) -> dict[Point, float]:
        return {point: statistics.fmean(seconds) for point, seconds in self.visits.items()}

    def resample(self, generator: np.random.Generator) -> dict[Point, float]:
        """Means of visits drawn with replacement within each point: of n visits n−1, which makes the spread of the
        means that of a mean of n."""
        return {
            point: float(np.mean(generator.choice(seconds, size=max(len(seconds) - 1, 1))))
            for point, seconds in self.visits.items()
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": "seconds a step",
            "points": [
                {"kind": p.kind, "rows": p.rows, "tokens": p.tokens, "seconds": s} for p, s in self.visits.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grid:
        return cls({Point(p["kind"], p["rows"], p["tokens"]): list(p["seconds"]) for p in data["points"]})


def rows_of(cell: Cell, limits: Limits) -> list[int]:
    """Sequences in lockstep in each wave of a cell's traces, under the engine's limits.

    All traces of a cell have one length, so they advance together: full waves, then what is left.
    """
    fits = min(cell.concurrency, cell.traces, limits.max_sequences, limits.kv_tokens // cell.peak_context)
    if fits < 1:
        raise MemoryLimitError(
            f"one sequence of {cell.peak_context} tokens does not fit in KV memory for {limits.kv_tokens}"
        )
    full, left = divmod(cell.traces, fits)
    return [fits] * full + ([left] if left else [])


def points_for(cells: Sequence[Cell], limits: Limits) -> list[Point]:
    """The grid that the cells need: every prompt length, and contexts `CONTEXT_RATIO` apart over their range."""
    points: set[Point] = set()
    ranges: dict[int, tuple[int, int]] = {}
    for cell in cells:
        segments = cell.segments
        low = min(s.prompt for s in segments) + 1
        high = max(s.prompt + s.steps for s in segments)
        for rows in set(rows_of(cell, limits)):
            points |= {Point("prefill", rows, s.prefill) for s in segments}
            if any(s.steps for s in segments):
                least, most = ranges.get(rows, (low, high))
                ranges[rows] = (min(least, low), max(most, high))
    for rows, (low, high) in ranges.items():
        steps = max(1, int(np.ceil(np.log(high / low) / np.log(CONTEXT_RATIO))))
        points |= {Point("decode", rows, round(t)) for t in np.geomspace(low, high, steps + 1)}
    return sorted(points)


def visit(engine: Profilable, point: Point) -> tuple[float, int]:
    """Mean seconds of the point's step, and the tokens put through the model for it, warm-up included."""
    if point.kind == "prefill":
        return engine.measure([], [point.tokens] * point.rows), point.tokens * point.rows
    first = max(point.tokens - STEPS // 2, 1)
    seconds = engine.measure([first] * point.rows, warm_up=WARM_UP_STEPS, steps=STEPS)
    return seconds, (WARM_UP_STEPS + STEPS) * point.rows


def shuffled_visits(points: Sequence[Point], seed: int) -> list[Point]:
    """Every decode point `VISITS` times, in rounds that are each shuffled; prefill points in every other round."""
    generator = random.Random(seed)
    order: list[Point] = []
    for round_ in range(VISITS):
        due = [point for point in points if point.kind == "decode" or round_ % 2 == 0]
        order += generator.sample(due, len(due))
    return order


def weights(cell: Cell, limits: Limits, points: Iterable[Point]) -> dict[Point, float]:
    """How often each point's step counts towards the cell: its seconds are Σ weight × seconds of a step.

    Of every wave of `rows` traces in lockstep: each segment's prefill once, and its decode steps at contexts
    prompt+1 … prompt+steps, each shared between the two neighbouring grid contexts (linear interpolation). What is
    prefilled behind reused tokens must look at them, which no prefill of the grid does: a decode step at context
    `prompt` more stands for that. It reads the weights once too often, in one step of a chunk.
    Raises `MemoryLimitError` where a point that is needed is not among `points`: it did not fit.
    """
    segments = Counter((s.prompt, s.prefill, s.steps, s.reused > 0) for s in cell.segments)
    known = set(points)
    totals: defaultdict[Point, float] = defaultdict(float)
    for rows, waves in Counter(rows_of(cell, limits)).items():
        contexts = np.array(sorted(p.tokens for p in known if p.kind == "decode" and p.rows == rows), dtype=np.int64)
        shares = np.zeros(len(contexts))
        for (prompt, new, steps, behind), count in segments.items():
            prefill = Point("prefill", rows, new)
            if prefill not in known:
                raise MemoryLimitError(f"{rows} prompts of {new} tokens did not fit in memory while profiling")
            totals[prefill] += waves * count
            at = np.arange(prompt + (0 if behind else 1), prompt + steps + 1)
            if not len(at):
                continue
            if not len(contexts) or not contexts[0] <= at[0] <= at[-1] <= contexts[-1]:
                raise MemoryLimitError(f"{rows} sequences at context {at[-1]} did not fit while profiling")
            right = np.clip(np.searchsorted(contexts, at), 1, max(len(contexts) - 1, 1))
            left = right - 1
            if len(contexts) == 1:
                shares[0] += count * len(at)
                continue
            share = (at - contexts[left]) / (contexts[right] - contexts[left])
            np.add.at(shares, left, count * (1 - share))
            np.add.at(shares, right, count * share)
        for context, share_of in zip(contexts.tolist(), shares.tolist(), strict=True):
            if share_of:
                totals[Point("decode", rows, context)] += waves * share_of
    return dict(totals)


def cell_seconds(seconds: Mapping[Point, float], cell: Cell, limits: Limits) -> tuple[float, float]:
    """(prefill, decode) seconds of all of a cell's traces."""
    parts = {"prefill": 0.0, "decode": 0.0}
    for point, weight in weights(cell, limits, seconds).items():
        parts[point.kind] += weight * seconds[point]
    return parts["prefill"], parts["decode"]


def replicates(store: Store, *, count: int = 400, seed: int = 0) -> Callable[[DataFrame], FloatArray]:
    """For the intervals of laws: a function that re-integrates profiled rows over resampled grids.

    Rows integrated from one grid are not independent, so it is the grid's visits that are drawn again, with
    replacement within each point. Returns [count, rows] device-seconds a trace for a frame of rows of `store`.
    """
    cells = {data["cell_id"]: Cell.from_json(data) for data in store.manifest["cells"]}
    limits = Limits(**store.manifest["profile_limits"])

    def resample(frame: DataFrame) -> FloatArray:
        drawn = np.full((count, len(frame)), np.nan)
        for name, rows in frame.reset_index(drop=True).groupby("grid_id"):
            grid = Grid.from_json(store.grid(str(name)))
            generator = np.random.default_rng([seed, int(str(name)[:8], 16)])
            means = [grid.resample(generator) for _ in range(count)]
            for at, row in zip(rows.index.to_numpy(dtype=np.int64), rows.to_dict("records"), strict=True):
                weight = weights(cells[row["cell_id"]], limits, grid.visits)
                scale = row["devices"] / row["traces"]
                drawn[:, at] = [scale * sum(w * mean[p] for p, w in weight.items()) for mean in means]
        return drawn

    return resample


def grid_id(grid: Grid, identity: str) -> str:
    """Names a grid after what it was measured on and every second in it: two writers never mean one id differently."""
    text = json.dumps([identity, grid.to_json()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

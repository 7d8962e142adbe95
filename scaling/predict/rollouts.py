"""The rollouts of one training step in closed form: traces on a replica from the first token to the last trace's end.

The simulated engine (`scaling/engines/simulated.py`) steps the same traces one token at a time; the two share only the
seconds of one pass.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.predict.roofline import Array, Roofline, Seconds
from scaling.thinking.base import Environment

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a trace that thinks its whole budget goes through, chunk by chunk; a shorter one stops on the way.

    `prompt[j]`, `new[j]`: tokens of chunk j's prompt, and those of them that must be encoded. `start[j]`: thinking
    tokens before it.
    """

    prompt: Ints
    new: Ints
    start: Ints

    @classmethod
    def of(cls, environment: Environment, query_len: int, longest: int, cached: int = 0) -> Schedule:
        """The schedule of `environment` up to `longest` thinking tokens.

        `cached`: first tokens of every later chunk's prompt that the engine's prefix cache holds.
        """
        lengths = environment.expected_lengths(query_len, longest)
        segments = environment.schedule(query_len, lengths)
        kept = [
            s.reused if index == 0 else max(s.reused, min(cached, s.prompt - 1)) for index, s in enumerate(segments)
        ]
        return cls(
            np.array([s.prompt for s in segments]),
            np.array([s.prompt - reused for s, reused in zip(segments, kept, strict=True)]),
            np.cumsum([0, *lengths[:-1]]),
        )

    def chunks(self, lengths: Ints) -> tuple[Ints, Ints, Ints]:
        """(trace, chunk, response tokens) of every chunk of traces that think `lengths`, trace by trace."""
        ends = np.append(self.start[1:], max(int(lengths.max()), int(self.start[-1]) + 1))
        decode = np.minimum(lengths[:, None], ends[None, :]) - self.start[None, :]
        trace, chunk = np.nonzero(decode > 0)
        return trace, chunk, decode[trace, chunk]

    def longest_context(self, thinking_tokens: int) -> int:
        """Most tokens that the context of a trace of this length comes to."""
        _, chunk, decode = self.chunks(np.array([thinking_tokens]))
        return int(np.max(self.prompt[chunk] + decode))


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What a replica's traces take: seconds at work by what rules them, and the `tail`: seconds in which the weights
    were read, and the host was busy, for rows that had already ended."""

    seconds: Seconds
    tail: float
    concurrency_mean: float
    concurrency_peak: int

    @property
    def total(self) -> float:
        return float(self.seconds.total) + self.tail


def mean_context(schedule: Schedule, lengths: Ints) -> float:
    """Tokens that a trace's context holds, averaged over the decode steps of all traces."""
    _, chunk, decode = schedule.chunks(lengths)
    steps = decode - 1
    return float(np.sum(schedule.prompt[chunk] * steps + steps * (steps + 1) / 2) / max(steps.sum(), 1))


def synchronous(roofline: Roofline, schedule: Schedule, lengths: Ints, concurrency: int) -> Rollouts:
    """All of a step's traces on one replica, at most `concurrency` at once, drained to the last one's end.

    A trace that ends hands its place to the next in order. Between two events (a chunk begins or ends) the number of
    rows is constant and the keys grow by one a row and step, so the seconds of the steps between are an arithmetic
    series, summed exactly but where a layer's window fills up. Prefills stop the decoding of all rows.
    """
    if not len(lengths):
        return Rollouts(Seconds(), 0.0, 0.0, 0)
    trace, chunk, decode = schedule.chunks(lengths)
    steps = decode - 1
    total_steps = np.bincount(trace, weights=steps, minlength=len(lengths)).astype(np.float64)
    begin = _starts(total_steps, concurrency)
    before = np.cumsum(steps) - steps  # of all chunks in order; less those of earlier traces: of this trace
    at = begin[trace] + before - (np.cumsum(total_steps) - total_steps)[trace]
    times = np.concatenate([at, at + steps])
    rows_change = np.concatenate([np.ones(len(at)), -np.ones(len(at))])
    keys_change = np.concatenate([schedule.prompt[chunk], -(schedule.prompt[chunk] + steps)])
    order = np.argsort(times, kind="stable")
    span = np.diff(times[order])
    rows = np.cumsum(rows_change[order])[:-1]
    keys = np.cumsum(keys_change[order])[:-1] + np.concatenate([[0.0], np.cumsum(rows * span)[:-1]])
    busy = (span > 0) & (rows > 0)
    span, rows, keys = span[busy], rows[busy], keys[busy] + rows[busy] * (span[busy] + 1) / 2
    decoding = roofline.decode(rows, keys) * span
    new, counts = _counted(schedule, chunk)
    encoding = (roofline.prefill(new[:, 0], new[:, 1]) * counts).sum()
    peak = int(rows.max(initial=1))
    idle = roofline.decode(1.0, 0.0).sum() * float(np.sum(span * (1 - rows / peak)))
    seconds = decoding.total
    return Rollouts(
        seconds=decoding.sum() + encoding + idle * -1.0,
        tail=float(idle.total),
        concurrency_mean=float(np.sum(rows * seconds) / seconds.sum()) if len(rows) else 1.0,
        concurrency_peak=peak,
    )


def steady(roofline: Roofline, schedule: Schedule, lengths: Ints, concurrency: int) -> Rollouts:
    """The same traces where a next one always waits: `concurrency` rows at any time, at their mean context."""
    _, chunk, decode = schedule.chunks(lengths)
    steps = float(np.sum(decode - 1)) / concurrency
    keys = concurrency * mean_context(schedule, lengths)
    new, counts = _counted(schedule, chunk)
    encoding = (roofline.prefill(new[:, 0], new[:, 1]) * counts).sum()
    decoding = (roofline.decode(concurrency, keys) * steps).sum()
    return Rollouts(decoding + encoding, 0.0, float(concurrency), concurrency)


def _counted(schedule: Schedule, chunk: Ints) -> tuple[Array, Array]:
    """[(new, past)] of the chunks' prefills, and how many there are of each."""
    counts = np.bincount(chunk, minlength=len(schedule.prompt)).astype(np.float64)
    return np.column_stack([schedule.new, schedule.prompt - schedule.new]).astype(np.float64), counts


def _starts(steps: Array, places: int) -> Array:
    """When each trace begins, in decode steps: in order, each in the place that is free first."""
    begin = np.zeros(len(steps))
    if len(steps) <= places:
        return begin
    free = [float(n) for n in steps[:places]]
    heapq.heapify(free)
    for index in range(places, len(steps)):
        begin[index] = free[0]
        heapq.heapreplace(free, free[0] + float(steps[index]))
    return begin

"""The rollouts of one training step in closed form: traces on a replica from the first token to the last trace's end.

The simulated engine (`scaling/engines/simulated.py`) steps the same traces one token at a time; the two share only the
seconds of one pass, and the tests hold them together. `synchronous` agrees within 0.1 % where both know the same of
lengths and memory. Apart they are where they do not:

- An engine that reserves `max_tokens` knows what a trace was asked for. Told the true lengths, it ran 128 traces of
  log-normal lengths (mean 8000, longest 24000) in 512K tokens of memory in 0.6 to 0.7 of the time that reserving the
  longest for all of them takes.
- A prefix cache keeps whole pages: up to 15 tokens a prompt less than `Schedule.of` assumes, 0.05 % of the seconds.
- Equal traces fill a full memory in step, and then it matters which of those that end at once begins first: another
  order moved 128 Delethink traces of 8 chunks in 200K tokens by 6 to 9 %.
- Where memory has room, what follows a chunk of a single token begins at once here, and a step later in an engine.
- `steady` has no beginning and no end, and where memory is full no preemptions; see there.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.errors import UsageError
from scaling.predict.crowd import WATERMARK, Crowd
from scaling.predict.roofline import Array, Roofline, Seconds
from scaling.thinking.base import Environment

Ints = NDArray[np.int64]

MAX_THINKING_TOKENS = 1 << 26
MAX_CHUNKS = 1 << 12
"""Of one trace."""
MAX_CHUNKS_A_STEP = 1 << 20

_PIECE = 64  # steps, or more where there would be more pieces than
_MOST_PIECES = 1 << 17


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

        `cached`: first tokens of every later chunk's prompt that the engine's prefix cache holds. Raises `UsageError`
        for a trace of more than `MAX_THINKING_TOKENS` or about `MAX_CHUNKS`.
        """
        limit_chunks(environment, longest)
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
        """(trace, chunk, response tokens) of every chunk of traces that think `lengths`, trace by trace.

        Raises `UsageError` for more than `MAX_CHUNKS_A_STEP`.
        """
        counts = np.searchsorted(self.start, lengths)
        if (chunks := int(counts.sum())) > MAX_CHUNKS_A_STEP:
            raise UsageError(
                f"{len(lengths):,} traces have {chunks:,} chunks in all, and at most {MAX_CHUNKS_A_STEP:,} are "
                "reckoned; take fewer prompts or samples, or a larger context size"
            )
        trace = np.repeat(np.arange(len(lengths)), counts)
        chunk = np.arange(chunks) - np.repeat(np.cumsum(counts) - counts, counts)
        ends = np.append(self.start[1:], max(int(lengths.max()), int(self.start[-1]) + 1))
        return trace, chunk, np.minimum(lengths[trace], ends[chunk]) - self.start[chunk]

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


def limit_chunks(environment: Environment, thinking_tokens: int) -> None:
    """Raises `UsageError` for a trace of more thinking tokens or chunks than can be reckoned one by one."""
    if thinking_tokens > MAX_THINKING_TOKENS:
        raise UsageError(
            f"traces of {thinking_tokens:,} thinking tokens are too long; at most {MAX_THINKING_TOKENS:,} are reckoned"
        )
    chunks = thinking_tokens * int(environment.parameters().get("iterations", 1)) // environment.budget
    if chunks > MAX_CHUNKS:
        raise UsageError(
            f"traces of {thinking_tokens:,} thinking tokens have about {chunks:,} chunks, and at most {MAX_CHUNKS:,} "
            "are reckoned; take a larger context size, or a smaller state size"
        )


def mean_context(schedule: Schedule, lengths: Ints) -> float:
    """Tokens that a trace's context holds, averaged over the decode steps of all traces."""
    _, chunk, decode = schedule.chunks(lengths)
    steps = np.maximum(decode - 1, 1)
    return float(np.sum(schedule.prompt[chunk] * steps + steps * (steps + 1) / 2) / steps.sum())


def synchronous(
    roofline: Roofline, schedule: Schedule, lengths: Ints, concurrency: int, kv_tokens: float = math.inf
) -> Rollouts:
    """All of a step's traces on one replica, at most `concurrency` at once, drained to the last one's end.

    A trace that ends hands its place to the next in order. Between two events (a chunk begins, ends, or is preempted)
    the number of rows is constant and the keys grow by one a row and step, so the seconds of the steps between are an
    arithmetic series, summed exactly but in the few of them, out of `_PIECE`, in which a layer's window fills up or
    a kernel's bound changes. Prefills stop the decoding of all rows.

    `kv_tokens`: what memory holds of all contexts, paged. Where it runs out, the youngest chunk is preempted, and
    encoded again once there is room; traces that grow together so become fewer as they grow.
    """
    if not len(lengths):
        return Rollouts(Seconds(), 0.0, 0.0, 0)
    trace, chunk, decode = schedule.chunks(lengths)
    spans = _undisturbed(schedule, trace, chunk, decode, len(lengths), concurrency)
    again: Array = np.empty(0)
    if float(np.max(spans[2] + spans[0] * spans[1], initial=0)) + concurrency + 1 > (1 - WATERMARK) * kv_tokens:
        first = np.append(True, trace[1:] != trace[:-1])
        crowd = Crowd(schedule.prompt[chunk].tolist(), decode.tolist(), first.tolist(), concurrency, int(kv_tokens))
        spans, again = crowd.run()
    span, rows, before = _pieces(*spans)
    keys = before + rows * (span + 1) / 2  # in the middle
    decoding = roofline.decode(rows, keys) * span
    new, counts = _counted(schedule, chunk)
    encoding = (roofline.prefill(new[:, 0], new[:, 1]) * counts).sum() + roofline.prefill(again).sum()
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
    """The same traces where a next one always waits: `concurrency` rows at any time, at their mean context.

    In the middle of 1024 simulated traces of log-normal lengths the rate was within 1 % of this where memory has room;
    where it was full, 1 to 5 % less than `concurrency` that fits at the mean context gives: traces that are preempted
    are encoded again, which this leaves out.
    """
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


def _pieces(span: Array, rows: Array, before: Array) -> tuple[Array, Array, Array]:
    """The same steps in spans of at most `_PIECE`, or of what makes about `_MOST_PIECES`."""
    counts = np.ceil(span / max(_PIECE, float(span.sum()) / _MOST_PIECES)).astype(np.int64)
    of = np.repeat(np.arange(len(span)), counts)
    steps = (span / np.maximum(counts, 1))[of]
    return steps, rows[of], before[of] + rows[of] * steps * (np.arange(len(of)) - (np.cumsum(counts) - counts)[of])


def _undisturbed(
    schedule: Schedule, trace: Ints, chunk: Ints, decode: Ints, traces: int, places: int
) -> tuple[Array, Array, Array]:
    """(steps, rows, keys before) of every span between two events, where memory has room for whatever runs."""
    steps = decode - 1
    total_steps = np.bincount(trace, weights=steps, minlength=traces).astype(np.float64)
    begin = _starts(total_steps, places)
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
    return span[busy], rows[busy], keys[busy]


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

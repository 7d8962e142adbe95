"""The rollouts of one training step in closed form: traces on a replica from the first token to the last trace's end.

The simulated engine (`scaling/engines/simulated.py`) steps the same traces one token at a time; the two share only the
seconds of one pass.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.predict.roofline import Array, Roofline, Seconds
from scaling.thinking.base import Environment

Ints = NDArray[np.int64]

WATERMARK = 0.01
"""Share of KV memory that an engine leaves free where it begins a chunk, so that none is preempted at once: vLLM's."""


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
    steps = np.maximum(decode - 1, 1)
    return float(np.sum(schedule.prompt[chunk] * steps + steps * (steps + 1) / 2) / steps.sum())


def synchronous(
    roofline: Roofline, schedule: Schedule, lengths: Ints, concurrency: int, kv_tokens: float = math.inf
) -> Rollouts:
    """All of a step's traces on one replica, at most `concurrency` at once, drained to the last one's end.

    A trace that ends hands its place to the next in order. Between two events (a chunk begins, ends, or is preempted)
    the number of rows is constant and the keys grow by one a row and step, so the seconds of the steps between are an
    arithmetic series, summed exactly but where a layer's window fills up or a kernel's bound changes on the way.
    Prefills stop the decoding of all rows.

    `kv_tokens`: what memory holds of all contexts, paged. Where it runs out, the youngest chunk is preempted, and
    encoded again once there is room; traces that grow together so become fewer as they grow.
    """
    if not len(lengths):
        return Rollouts(Seconds(), 0.0, 0.0, 0)
    trace, chunk, decode = schedule.chunks(lengths)
    spans = _undisturbed(schedule, trace, chunk, decode, len(lengths), concurrency)
    again: Array = np.empty(0)
    if float(np.max(spans[2] + spans[0] * spans[1], initial=0)) + concurrency + 1 > (1 - WATERMARK) * kv_tokens:
        spans, again = _crowded(schedule, trace, chunk, decode, concurrency, int(kv_tokens))
    span, rows, before = spans
    keys = before + rows * (span + 1) / 2  # in the middle of the span
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


def _crowded(
    schedule: Schedule, trace: Ints, chunk: Ints, decode: Ints, places: int, kv_tokens: int
) -> tuple[tuple[Array, Array, Array], Array]:
    """The same spans where memory is full at times, and the tokens that each preempted chunk encodes again."""
    last = np.append(trace[1:] != trace[:-1], True).tolist()
    prompt, response = schedule.prompt[chunk].tolist(), decode.tolist()
    unbegun = deque(np.flatnonzero(np.append(True, trace[1:] != trace[:-1])).tolist())  # first chunks
    begun = [unbegun.popleft() for _ in range(min(places, len(unbegun)))]  # in the order in which they queued
    queue = deque((at, 0) for at in range(len(begun)))  # places in `begun`, and the tokens that the chunk has
    running: dict[int, int] = {}  # by place in `begun`: the step that ends it; the oldest first
    endings: list[tuple[int, int]] = []  # a heap of (step, place), some of chunks that were preempted
    spans: list[tuple[int, int, int]] = []
    again: list[int] = []
    margin = int(WATERMARK * kv_tokens) + 1
    now = held = 0
    while queue or running:
        while queue:
            place, tokens = queue[0]
            index = begun[place]
            context = prompt[index] + tokens
            if running and held + context + len(running) + margin > kv_tokens:
                break
            queue.popleft()
            held += context
            running[place] = now + response[index] - tokens - 1
            heapq.heappush(endings, (running[place], place))
            if tokens:
                again.append(context)
        rows, room = len(running), kv_tokens - held
        steps = min(endings[0][0] - now, max(room // rows, int(rows == 1)))
        if steps:
            spans.append((steps, rows, held))
            now += steps
            held += steps * rows
        while endings and endings[0][0] == now:
            ends, place = heapq.heappop(endings)
            if running.get(place) != ends:
                continue
            del running[place]
            index = begun[place]
            held -= prompt[index] + response[index] - 1
            if not last[index] or unbegun:
                queue.append((len(begun), 0))
                begun.append(index + 1 if not last[index] else unbegun.popleft())
        while len(running) > 1 and held + len(running) > kv_tokens:
            place, ends = running.popitem()
            index = begun[place]
            tokens = response[index] - 1 - (ends - now)
            held -= prompt[index] + tokens
            queue.appendleft((place, tokens + 1))
    found = np.array(spans, dtype=np.float64).reshape(-1, 3).T
    return (found[0], found[1], found[2]), np.array(again, dtype=np.float64)


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

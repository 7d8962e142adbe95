"""Traces that do not all fit in memory: which rows decode between which events, and what is encoded twice."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np

from scaling.predict.roofline import Array

WATERMARK = 0.01
"""Share of KV memory that an engine leaves free where it begins a chunk, so that none is preempted at once: vLLM's."""


class Crowd:
    """Chunks of `prompt` and `response` tokens, trace by trace, over `kv_tokens` of memory; `first` begin a trace.

    At most `places` traces are under way. First come, first served; where memory is full, the youngest chunk goes back
    to the front of the queue and is encoded again, with the tokens that it has, once there is room. At least one runs.
    """

    def __init__(
        self, prompt: Sequence[int], response: Sequence[int], first: Sequence[bool], places: int, kv_tokens: int
    ) -> None:
        self.prompt, self.response, self.kv_tokens = prompt, response, kv_tokens
        self.follows = [not new for new in first[1:]] + [False]  # whether the next chunk belongs to the same trace
        self.unbegun = deque(index for index, new in enumerate(first) if new)
        self.begun: list[int] = []  # chunks, in the order in which they queued
        self.queue: deque[tuple[int, int]] = deque()  # (place in `begun`, tokens that it has)
        self.running: dict[int, int] = {}  # place: the step that ends it; the oldest first
        self.endings: list[tuple[int, int]] = []  # a heap of (step, place), some of them preempted
        self.now = self.held = 0
        self.again: list[int] = []
        for _ in range(min(places, len(self.unbegun))):
            self._queue(self.unbegun.popleft())

    def run(self) -> tuple[tuple[Array, Array, Array], Array]:
        """(steps, rows, keys before) of every span between two events, and the tokens of every second encoding."""
        spans: list[tuple[int, int, int]] = []
        while self.queue or self.running:
            self._admit()
            at_once = self._end()  # those whose prefill gave the last token
            while len(self.running) > 1 and self.held + len(self.running) > self.kv_tokens:
                self._preempt()
            if rows := len(self.running):
                room = max((self.kv_tokens - self.held) // rows, 1)
                steps = 1 if at_once else min(self.endings[0][0] - self.now, room)
                spans.append((steps, rows, self.held))
                self.now += steps
                self.held += steps * rows
                self._end()
        steps_, rows_, held = np.array(spans, dtype=np.float64).reshape(-1, 3).T
        return (steps_, rows_, held), np.array(self.again, dtype=np.float64)

    def _queue(self, chunk: int) -> None:
        self.queue.append((len(self.begun), 0))
        self.begun.append(chunk)

    def _admit(self) -> None:
        while self.queue:
            place, tokens = self.queue[0]
            chunk = self.begun[place]
            context = self.prompt[chunk] + tokens
            margin = int(WATERMARK * self.kv_tokens) + len(self.running) + 1  # and a token each for the next step
            if self.running and self.held + context + margin > self.kv_tokens:
                return
            self.queue.popleft()
            self.held += context
            self.running[place] = self.now + self.response[chunk] - tokens - 1
            heapq.heappush(self.endings, (self.running[place], place))
            if tokens:
                self.again.append(context)

    def _end(self) -> bool:
        """Takes out what ends by now and queues what follows it; whether anything did."""
        before = len(self.running)
        while self.endings and self.endings[0][0] <= self.now:
            step, place = heapq.heappop(self.endings)
            if self.running.get(place) != step:
                continue
            del self.running[place]
            chunk = self.begun[place]
            self.held -= self.prompt[chunk] + self.response[chunk] - 1
            if self.follows[chunk]:
                self._queue(chunk + 1)
            elif self.unbegun:
                self._queue(self.unbegun.popleft())
        return len(self.running) < before

    def _preempt(self) -> None:
        place, ends = self.running.popitem()
        chunk = self.begun[place]
        tokens = self.response[chunk] - 1 - (ends - self.now)
        self.held -= self.prompt[chunk] + tokens
        self.queue.appendleft((place, tokens + 1))

"""The simulated engine: every step of every request on a virtual clock, priced by a roofline, without a model."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from scaling.engines.base import Completion, FinishReason, Limits, Request, Stats
from scaling.engines.prefixes import Prefixes
from scaling.errors import MemoryLimitError, UsageError, unknown
from scaling.predict.crowd import WATERMARK
from scaling.predict.roofline import Roofline

if TYPE_CHECKING:
    from torch import Tensor

Admission = Literal["paged", "reserved"]

_BLOCK = 4096  # decode steps priced in one call, at most


@dataclass(slots=True, eq=False)
class _Row:
    """A request on its way. `tokens` were sampled when it `joined` the batch, at that step; it ends at step `ends`."""

    id: int
    request: Request
    table: tuple[int, ...]
    submitted: float
    tokens: int = 0
    joined: int = 0
    ends: int = 0
    computed: int = 0
    cached: int = 0
    first_token: float = 0.0
    weights_version: int = 0

    @property
    def most(self) -> int:
        """KV tokens that it comes to hold: its last token is never fed back."""
        return len(self.request.prompt) + self.request.max_tokens - 1

    def response(self, count: int) -> tuple[int, ...]:
        first = self.request.seed % (len(self.table) // 2)
        repeats = -(-(first + count) // len(self.table))
        return (self.table * repeats)[first : first + count] if repeats > 1 else self.table[first : first + count]


class SimulatedEngine:
    """Takes the time that `roofline` gives each pass, on a clock that nothing else moves.

    A `step` admits what fits, first come first served, encodes prompts one by one while decoding waits, and makes one
    decode step of all rows, at the sum of the contexts that they have. Admission `reserved`: a request starts once
    its prompt and `max_tokens` fit beside those of all running ones. `paged`: once its prompt does, leaving
    `WATERMARK` free; where memory then runs out, the youngest request is preempted, waits in front of the queue, and
    is encoded again with the tokens that it had (counted in `Completion.computed` and `Stats.prefill_tokens`).

    Memory is counted in tokens, also of models whose windowed layers stop holding more. `prefix_caching`: whole pages
    that a prompt shares with an earlier context are not encoded again; see `Prefixes` for what that leaves out.

    The KV of a request is there in the next step for one that follows it, and no longer.

    There is no model. The tokens of a response count upwards from the request's seed over the ids that do not end it,
    so it always has `max_tokens`; as they are certain, their log-probabilities are 0. New weights are only numbered.
    """

    name = "simulated"

    def __init__(
        self,
        roofline: Roofline,
        limits: Limits,
        *,
        admission: Admission,
        prefix_caching: bool = False,
        eos: Sequence[int] = (),
    ) -> None:
        for field in ("kv_tokens", "max_sequences", "max_length"):
            if getattr(limits, field) < 1:
                raise MemoryLimitError(f"{field} {getattr(limits, field)} leaves no room for any request")
        if admission not in get_args(Admission):
            raise unknown("admission", admission, get_args(Admission))
        self.roofline = roofline
        self.admission = admission
        self.eos = tuple(eos)
        self.vocabulary = roofline.shape.vocabulary
        self._limits = limits
        self._watermark = int(WATERMARK * limits.kv_tokens)
        self._prefixes = Prefixes() if prefix_caching else None
        self._awake = True
        self._clock = 0.0
        self._waiting: deque[_Row] = deque()
        self._running: dict[int, _Row] = {}  # the oldest first
        self._ending: list[tuple[int, int, _Row]] = []  # a heap: (step, id, row), some of rows that left before
        self._ended: list[Completion] = []
        self._before: dict[int, _Row] = {}  # that ended in the last step
        self._prices: Iterator[float] = iter(())  # of the coming steps, as long as the same rows run
        self._held = self._reserved = 0  # KV tokens of running rows: now, and at the most
        self._next_id = self._version = 0
        self._peak_held = self._peak_rows = 0
        self._preemptions = self._prefix_hits = 0
        self._prefilled = self._decoded = self._steps = 0
        self._prefill_seconds = self._decode_seconds = 0.0
        self._prefill_price = lru_cache(maxsize=4096)(self._priced_prefill)

    def submit(self, request: Request) -> int:
        """Queues a request.

        Raises `UsageError` if it makes no sense for this model, `MemoryLimitError` if it could never fit.
        """
        self._check_awake()
        request.check(self.vocabulary)
        ends = frozenset() if request.ignore_eos else frozenset((*self.eos, *request.stop))
        row = _Row(self._next_id, request, _table(self.vocabulary, ends), self._clock)
        total = len(request.prompt) + request.max_tokens
        if total > self._limits.max_length:
            raise MemoryLimitError(f"{total} tokens do not fit a sequence of at most {self._limits.max_length}")
        if row.most > self._limits.kv_tokens:
            raise MemoryLimitError(f"{total} tokens do not fit a KV memory of {self._limits.kv_tokens} tokens")
        self._next_id += 1
        (self._waiting.append if request.follows is None else self._waiting.appendleft)(row)
        return row.id

    def abort(self, id: int) -> None:
        """Ends a request early; an unknown or finished one is left alone."""
        self._check_awake()
        row = self._running.get(id)
        if row is not None:
            self._leave(row)
        else:
            row = next((waiting for waiting in self._waiting if waiting.id == id), None)
            if row is None:
                return
            self._waiting.remove(row)
        self._ended.append(self._completion(row, "abort"))

    def step(self) -> list[Completion]:
        """Admits and encodes what fits, then decodes one token for every running row; what finished, by id."""
        self._check_awake()
        done, self._ended = self._ended, []
        before, self._before = self._before, {}
        if self._waiting:
            self._admit(before, done)
        if self._running:
            self._decode(done)
        return sorted(done, key=lambda completion: completion.id)

    def measure(
        self, contexts: Sequence[int], prefill: Sequence[int] = (), *, warm_up: int = 0, steps: int = 1
    ) -> float:
        """Seconds of encoding prompts of lengths `prefill` and of a decode step at `contexts`; the clock stands still.

        Raises `MemoryLimitError` for more KV tokens than the engine has.
        """
        rows, held = len(contexts), sum(contexts)
        if max(held + rows * (steps - 1), sum(prefill)) > self._limits.kv_tokens:
            raise MemoryLimitError(
                f"{rows} rows and {len(prefill)} prompts do not fit a KV memory of {self._limits.kv_tokens} tokens"
            )
        seconds = sum(self._prefill_price(length, 0) for length in prefill)
        if rows:
            seconds += float(np.mean(self.roofline.decode(rows, held + rows * np.arange(steps)).total))
        return seconds

    def limits(self) -> Limits:
        return self._limits

    def stats(self, *, new_peaks: bool = False) -> Stats:
        found = Stats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_tokens=self._held,
            peak_kv_tokens=self._peak_held,
            peak_running=self._peak_rows,
            preemptions=self._preemptions,
            prefix_hits=self._prefix_hits,
            prefill_tokens=self._prefilled,
            decode_tokens=self._decoded,
            decode_steps=self._steps,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
        )
        if new_peaks:
            self._peak_rows, self._peak_held = len(self._running), self._held
        return found

    def now(self) -> float:
        """Seconds that all passes took so far."""
        return self._clock

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Numbers the weights of the requests that start from here; their transfer takes no time on this clock."""
        self._version = version

    def sleep(self) -> None:
        """Refuses requests until `wake`; raises `UsageError` unless idle."""
        if self._waiting or self._running:
            raise UsageError("the engine can sleep only when no request runs or waits")
        self._awake = False

    def wake(self) -> None:
        self._awake = True

    def close(self) -> None:
        """Drops all requests."""
        self._waiting.clear()
        for row in list(self._running.values()):
            self._leave(row)
        self._awake = False

    def _admit(self, before: dict[int, _Row], done: list[Completion]) -> None:
        """Takes from the front of the queue what fits beside the running rows, and encodes it; of the rows that ended
        `before`, the KV is still there."""
        admitted: list[_Row] = []
        while self._waiting and self._fits(self._waiting[0]):
            row = self._waiting.popleft()
            row.joined = self._steps
            row.ends = self._steps + row.request.max_tokens - row.tokens - 1
            self._running[row.id] = row
            self._held += len(row.request.prompt) + row.tokens
            self._reserved += row.most
            admitted.append(row)
        if not admitted:
            return
        self._prices = iter(())
        self._see_peaks()
        for row in admitted:
            self._encode(row, before.get(-1 if row.request.follows is None else row.request.follows))
            if row.ends == self._steps:
                self._finish(row, done)
            else:
                heapq.heappush(self._ending, (row.ends, row.id, row))

    def _fits(self, row: _Row) -> bool:
        running, room = len(self._running), self._limits.kv_tokens
        if running >= self._limits.max_sequences:
            return False
        if self.admission == "reserved":
            return self._reserved + row.most <= room
        needed = len(row.request.prompt) + row.tokens
        return not running or self._held + needed + running + 1 + self._watermark <= room

    def _encode(self, row: _Row, before: _Row | None) -> None:
        """The prompt, behind what it shares with the row `before`, and the tokens that a preempted row had; their
        logits give the next token."""
        again, tokens, cached = row.tokens, len(row.request.prompt) + row.tokens, 0
        if not again:
            row.weights_version = self._version
            if before is not None:
                held = (*before.request.prompt, *before.response(before.tokens - 1))
                if len(row.request.prompt) > len(held) and tuple(row.request.prompt[: len(held)]) == held:
                    cached = len(held)
            if self._prefixes is not None:
                cached = max(cached, self._prefixes.known(row.request.prompt))
                self._prefixes.add(row.request.prompt)
                self._prefix_hits += cached > 0
            row.cached = cached
        seconds = self._prefill_price(tokens - cached, cached)
        self._clock += seconds
        self._prefill_seconds += seconds
        self._prefilled += tokens - cached
        row.computed += tokens - cached
        row.tokens += 1
        if not again:
            row.first_token = self._clock

    def _decode(self, done: list[Completion]) -> None:
        rows = len(self._running)
        while self._held + rows > self._limits.kv_tokens:
            self._preempt()
            rows -= 1
        seconds = next(self._prices, None)
        if seconds is None:
            self._prices = self._priced_steps(rows)
            seconds = next(self._prices)
        self._clock += seconds
        self._decode_seconds += seconds
        self._held += rows
        self._decoded += rows
        self._steps += 1
        self._see_peaks()
        while self._ending and self._ending[0][0] <= self._steps:
            ends, id, row = heapq.heappop(self._ending)
            if self._running.get(id) is row and row.ends == ends:
                self._finish(row, done)

    def _priced_steps(self, rows: int) -> Iterator[float]:
        """Seconds of each coming step until, at the earliest, a row ends or memory runs out."""
        steps = min(self._ending[0][0] - self._steps, (self._limits.kv_tokens - self._held) // rows, _BLOCK)
        keys = self._held + rows * np.arange(1, steps + 1)
        return iter(self.roofline.decode(rows, keys).total.tolist())

    def _priced_prefill(self, new: int, past: int) -> float:
        return float(self.roofline.prefill(new, past).total)

    def _preempt(self) -> None:
        row = next(reversed(self._running.values()))
        self._leave(row)
        self._waiting.appendleft(row)
        self._preemptions += 1

    def _finish(self, row: _Row, done: list[Completion]) -> None:
        self._leave(row)
        self._before[row.id] = row
        done.append(self._completion(row, "length"))
        if self._prefixes is not None:
            self._prefixes.add((*row.request.prompt, *row.response(row.tokens - 1)))

    def _leave(self, row: _Row) -> None:
        """Takes a row out of the batch, with the tokens that it has by now."""
        row.tokens += self._steps - row.joined
        self._held -= len(row.request.prompt) + row.tokens - 1
        self._reserved -= row.most
        del self._running[row.id]
        self._prices = iter(())

    def _see_peaks(self) -> None:
        self._peak_rows = max(self._peak_rows, len(self._running))
        self._peak_held = max(self._peak_held, self._held)

    def _completion(self, row: _Row, reason: FinishReason) -> Completion:
        return Completion(
            id=row.id,
            tokens=row.response(row.tokens),
            logprobs=_zeros(row.tokens),
            finish=reason,
            computed=row.computed,
            cached=row.cached,
            submitted=row.submitted,
            first_token=row.first_token,
            last_token=self._clock,
            weights_version=row.weights_version,
        )

    def _check_awake(self) -> None:
        if not self._awake:
            raise UsageError("the engine sleeps or is closed; wake it first")


@lru_cache(maxsize=8)
def _table(vocabulary: int, ends: frozenset[int]) -> tuple[int, ...]:
    """The ids that do not end a response, twice in a row, so that most responses are one slice of it."""
    ids = tuple(id for id in range(vocabulary) if id not in ends)
    if not ids:
        raise UsageError(f"every one of the {vocabulary} token ids ends a response")
    return ids * 2


@lru_cache(maxsize=256)
def _zeros(count: int) -> tuple[float, ...]:
    return (0.0,) * count

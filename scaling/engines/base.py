"""The engine contract: continuous batching of token-id requests, whatever runs the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from scaling.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length", "error", "abort"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue.

    `prompt`: token ids, at least one. `stop`: token ids that end the response, beside the model's own
    end-of-sequence ids; the id that ended it is part of the response. `ignore_eos`: only `max_tokens` ends it, for
    measuring at a fixed length. `seed`: makes the sample a function of the request alone, whatever else is
    in the batch. `temperature` 0 is greedy. `follows`: the id of a request that the last `step` returned, whose prompt
    and response, its last token apart, this prompt begins with: an engine may keep their KV, and says so in
    `Completion.cached`; it goes to the front of the queue. It is a hint, and changes no token.
    """

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0
    follows: int | None = None

    def check(self, vocabulary: int) -> None:
        """Raises `UsageError` if it makes no sense for a model of so many token ids."""
        if not self.prompt:
            raise UsageError("the prompt is empty; give at least one token id")
        if min(self.prompt) < 0 or max(self.prompt) >= vocabulary:
            bad = next(token for token in self.prompt if not 0 <= token < vocabulary)
            raise UsageError(f"token id {bad} is outside the vocabulary of {vocabulary}")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens {self.max_tokens} is not positive")
        if self.temperature < 0:
            raise UsageError(f"temperature {self.temperature} is negative; 0 is greedy")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p} is not above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request.

    `logprobs`: natural log-probability of each token under the distribution it was sampled from,
    temperature and top-p included (0 where greedy). `computed` and `cached`: prompt tokens encoded and taken
    from KV that was there. Times are seconds on the engine's own clock `Engine.now`.
    """

    id: int
    tokens: Sequence[int]
    logprobs: Sequence[float]
    finish: FinishReason
    computed: int
    cached: int
    submitted: float
    first_token: float
    last_token: float
    weights_version: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What fits: `kv_tokens` in KV memory over all sequences, `max_sequences` at once, `max_length` tokens each."""

    kv_tokens: int
    max_sequences: int
    max_length: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Now: `running`, `waiting` requests, `kv_tokens` held. Since peaks were asked anew: `peak_kv_tokens`,
    `peak_running`, and `peak_waiting` where the engine says. Since the start: the rest.

    `prefill_tokens` and `decode_tokens` count tokens put through the model; `decode_steps` counts batched
    forward passes of one token a row; `prefill_seconds` and `decode_seconds` are their time, sampling included.
    Of a server's engine: `retries` counts requests that were sent again, `drifted_tokens` those of
    `retokenised_tokens` that text brought back as others.
    """

    running: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    peak_kv_tokens: int = 0
    peak_running: int = 0
    peak_waiting: int | None = None
    preemptions: int = 0
    prefix_hits: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    decode_steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    retries: int = 0
    retokenised_tokens: int = 0
    drifted_tokens: int = 0


class Engine(Protocol):
    """Runs requests. Not thread-safe: one driver calls `submit`, `step` and `abort`."""

    name: str
    eos: tuple[int, ...]
    vocabulary: int

    def submit(self, request: Request) -> int:
        """Queues a request, returns its id; raises `MemoryLimitError` if it could never fit."""
        ...

    def abort(self, id: int) -> None:
        """Ends a request early; the next `step` returns it with finish `abort` and the tokens it has."""
        ...

    def step(self) -> list[Completion]:
        """Blocks until some progress and returns what finished; with nothing to do, returns at once."""
        ...

    def limits(self) -> Limits: ...

    def stats(self, *, new_peaks: bool = False) -> Stats:
        """Counters; with `new_peaks`, the peaks count anew from here."""
        ...

    def now(self) -> float:
        """Seconds on the engine's clock: wall time, or virtual time."""
        ...

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies tensors, under Hugging Face names, into the running model."""
        ...

    def sleep(self) -> None:
        """Gives KV memory back until `wake`; only when idle."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Profilable(Protocol):
    """An engine that can time single steps on synthetic KV, without disturbing the requests it runs."""

    def measure(
        self, contexts: Sequence[int], prefill: Sequence[int] = (), *, warm_up: int = 0, steps: int = 1
    ) -> float:
        """Mean seconds of one step, synchronised and sampling included.

        Encodes prompts of the lengths in `prefill`, as `step` would; then, after `warm_up` decode steps, times
        `steps` more without a pause, as a rollout makes them, of `len(contexts)` rows. Row i attends over
        `contexts[i]` tokens (itself included) in the first step that is timed and over one more in each next one.
        Returns the seconds of the prefill plus the mean seconds of those steps. The KV need not hold any real text.
        """
        ...

"""Runs any thinking environment over any engine: the one driver of benchmarks, studies and training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from scaling.engines.base import Completion, Engine, Request
from scaling.errors import UsageError
from scaling.thinking import Chunk, Environment, Finish, Turn


@dataclass(frozen=True, slots=True)
class Sampling:
    """How every chunk is sampled; chunk c of trace i gets its own seed from (`seed`, i, c)."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def chunk_seed(self, trace: int, chunk: int) -> int:
        digest = hashlib.blake2b(f"{self.seed}/{trace}/{chunk}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(slots=True)
class Trace:
    """All chunks of one query, in order.

    `logprobs[c][t]` belongs to `chunks[c].response[t]`. `computed` and `cached` are prompt tokens over all chunks.
    `error` says why the trace failed; its finished chunks are kept. Times are seconds on the engine's clock.
    """

    index: int
    query: tuple[int, ...]
    chunks: list[Chunk] = field(default_factory=list)
    logprobs: list[Sequence[float]] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    error: str | None = None
    started: float = 0.0
    finished: float = 0.0

    @property
    def response_lengths(self) -> list[int]:
        return [len(chunk.response) for chunk in self.chunks]

    @property
    def thinking_tokens(self) -> int:
        """Response tokens of all chunks."""
        return sum(self.response_lengths)


def rollout(
    engine: Engine,
    environment: Environment,
    queries: Sequence[Sequence[int]],
    *,
    sampling: Sampling = Sampling(),
    lengths: Sequence[Sequence[int]] | None = None,
    starts: Sequence[Sequence[Chunk]] | None = None,
    numbers: Sequence[int] | None = None,
    concurrency: int | None = None,
    on_trace: Callable[[Trace], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Trace]:
    """Samples one trace for each query and returns them in order.

    At most `concurrency` traces are in flight (all, unless given); one whose chunk ends goes straight back into the
    batch. `lengths[i]` fixes the response lengths of trace i, end-of-sequence tokens ignored: for measuring, or for
    replaying recorded lengths. `starts[i]` are chunks that trace i has behind it already; it goes on from there, and
    holds new chunks alone. If the last of them is `open`, the first new chunk is what its turn had left, after a
    prompt that ends in what it said so far; `joined` puts the two together. `numbers[i]` is what trace i is called
    among others that are sampled elsewhere: its index, and its seed, so that where it is sampled makes no difference.
    `on_trace` sees each trace as it ends, `on_step` is called after every engine step.
    A request that the engine fails makes a failed trace, not a failed rollout. If anything raises, what is in
    flight is aborted first.
    """
    traces = [
        Trace(number, tuple(query)) for number, query in zip(numbers or range(len(queries)), queries, strict=True)
    ]
    places = {trace.index: place for place, trace in enumerate(traces)}
    waiting = list(reversed(traces))
    flying: dict[int, tuple[Trace, Turn]] = {}

    def advance(trace: Trace, after: int | None = None) -> bool:
        """Submits the trace's next chunk, which comes after the request of that id; False if it has ended."""
        before = starts[places[trace.index]] if starts is not None else ()
        turn = _turn(environment, trace.query, joined(before, trace.chunks))
        done = len(trace.chunks)
        fixed = lengths[places[trace.index]] if lengths is not None else None
        if turn is None or (fixed is not None and done >= len(fixed)):
            return False
        request = Request(
            prompt=turn.prompt,
            max_tokens=turn.max_tokens if fixed is None else fixed[done],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=turn.stop if fixed is None else (),
            ignore_eos=fixed is not None,
            seed=sampling.chunk_seed(trace.index, done),
            follows=after if turn.reused else None,
        )
        flying[engine.submit(request)] = (trace, turn)
        return True

    def finish(trace: Trace) -> None:
        trace.finished = engine.now()
        if on_trace is not None:
            on_trace(trace)

    try:
        while waiting or flying:
            while waiting and (concurrency is None or len(flying) < concurrency):
                trace = waiting.pop()
                trace.started = engine.now()
                if not advance(trace):
                    finish(trace)
            for completion in engine.step():
                trace, turn = flying.pop(completion.id)
                _record(trace, turn, completion)
                if trace.error is not None or not advance(trace, completion.id):
                    finish(trace)
            if on_step is not None:
                on_step()
    except BaseException:
        for id in flying:
            engine.abort(id)
        with suppress(Exception):  # the engine may be what raised
            engine.step()  # hands the aborted requests back
        raise
    return traces


def joined(before: Sequence[Chunk], new: Sequence[Chunk]) -> list[Chunk]:
    """What a trace had behind it and the chunks that it went on with as one trace, an `open` chunk made whole."""
    if not (before and new and before[-1].finish == "open"):
        return [*before, *new]
    begun, ended = before[-1], new[0]
    return [*before[:-1], Chunk(begun.prompt, begun.response + ended.response, ended.finish), *new[1:]]


def _turn(environment: Environment, query: tuple[int, ...], chunks: list[Chunk]) -> Turn | None:
    """The next turn, or the rest of the one whose chunk is open."""
    if not (chunks and chunks[-1].finish == "open"):
        return environment.next(query, chunks)
    turn, said = environment.next(query, chunks[:-1]), chunks[-1].response
    if turn is None or turn.prompt != chunks[-1].prompt or len(said) >= turn.max_tokens:
        raise UsageError(f"an open chunk of {len(said)} tokens leaves nothing to say in its turn of {environment}")
    return replace(turn, prompt=turn.prompt + said, max_tokens=turn.max_tokens - len(said))


def _record(trace: Trace, turn: Turn, completion: Completion) -> None:
    """Adds to a trace what the completion of its `turn` brought."""
    trace.computed += completion.computed
    trace.cached += completion.cached
    if completion.finish in ("error", "abort"):
        trace.error = completion.error or completion.finish
        return
    finish: Finish = "stop" if completion.finish == "stop" else "length"
    trace.chunks.append(Chunk(turn.prompt, tuple(completion.tokens), finish))
    trace.logprobs.append(completion.logprobs)

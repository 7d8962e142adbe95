"""Delethink: fixed-size chunks, each starting from the query and a bounded textual state.

Algorithm 1 of *The Markovian Thinker* (arXiv 2510.06557, §4.1) and the other carryover rules of its authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, get_args

from scaling.errors import UsageError, unknown
from scaling.thinking.base import Chunk, Segment, Turn

Carryover = Literal["algorithm1", "chunkwise", "recipe", "untrimmed"]
"""What the prompt of chunk l ≥ 2 keeps of the past, after the query:

`algorithm1`  the first `head` tokens of response 1, then the last m tokens of *response* l−1. With
              m > C−m it carries fewer than m from chunk 3 on, because a response has C−m tokens.
`chunkwise`   the same, but the last m *thinking* tokens of chunk l−1, its own carried state included:
              always m. Equal to `algorithm1` wherever m ≤ C−m.
`recipe`      the authors' training recipe: head and tail together are m tokens, so every prompt has one size.
`untrimmed`   the authors' path without a trimmer: as `algorithm1`, but each boundary also keeps the first
              `head` tokens of the state that it drops, so the prompt grows by `head` a chunk.
"""


@dataclass(frozen=True, slots=True)
class Delethink:
    """Chunk 1 thinks up to C = `context_size` new tokens, each later chunk up to C − m, m = `state_size`.

    At most I = `iterations` chunks, so a budget of C + (I−1)(C−m). A chunk that the model ends itself ends
    the trace. The KV cache is dropped at a boundary and the carryover encoded again: `reused` is always 0.
    """

    name: ClassVar[str] = "delethink"
    context_size: int = 8192
    state_size: int = 4096
    iterations: int = 5
    head: int = 100
    carryover: Carryover = "algorithm1"

    def __post_init__(self) -> None:
        if self.carryover not in get_args(Carryover):
            raise unknown("carryover", self.carryover, get_args(Carryover))
        if self.iterations < 1:
            raise UsageError(f"iterations {self.iterations} is not positive; the paper's 24K setting has 5")
        if self.state_size < 1:
            raise UsageError(f"state size {self.state_size} is not positive; the paper uses half the context size")
        if self.state_size >= self.context_size:
            raise UsageError(
                f"state size {self.state_size} must be below context size {self.context_size}, "
                "or a chunk has no room to think; the paper uses half"
            )
        if not 0 <= self.head < self.context_size - self.state_size:
            raise UsageError(
                f"head {self.head} must be at least 0 and below context size − state size = "
                f"{self.context_size - self.state_size}; the paper uses 100"
            )
        if self.carryover == "recipe" and self.head >= self.state_size:
            raise UsageError(f"head {self.head} must be below state size {self.state_size} with carryover 'recipe'")

    @classmethod
    def for_length(
        cls, thinking_tokens: int, context_size: int, state_size: int, head: int, carryover: Carryover = "algorithm1"
    ) -> Delethink:
        """The environment with the fewest iterations that lets a trace think `thinking_tokens`."""
        fresh = max(context_size - state_size, 1)
        iterations = 1 + max(0, -(-(thinking_tokens - context_size) // fresh))
        return cls(context_size, state_size, iterations, head, carryover)

    @property
    def budget(self) -> int:
        return self.context_size + (self.iterations - 1) * (self.context_size - self.state_size)

    def parameters(self) -> dict[str, int | str]:
        return asdict(self)

    def next(self, query: Sequence[int], chunks: Sequence[Chunk]) -> Turn | None:
        if not chunks:
            return Turn(tuple(query), self.context_size)
        if chunks[-1].finish == "stop" or len(chunks) >= self.iterations:
            return None
        return Turn(tuple(query) + self._carried(len(query), chunks), self.context_size - self.state_size)

    def schedule(self, query_len: int, response_lens: Sequence[int]) -> list[Segment]:
        if len(response_lens) > self.iterations:
            raise UsageError(f"{len(response_lens)} response lengths, but iterations is {self.iterations}")
        head, state = 0, 0  # kept at the front, kept at the back
        segments: list[Segment] = []
        for index, length in enumerate(response_lens):
            segments.append(Segment(0, query_len + head + state, length))
            if self.carryover == "recipe":
                state = min(self.state_size, state + length)
            elif self.carryover == "untrimmed":
                head += min(self.head, length if index == 0 else state)
                state = min(self.state_size, length)
            else:
                head = min(self.head, response_lens[0])
                before = state if self.carryover == "chunkwise" else 0
                state = min(self.state_size, before + length)
        return segments

    def expected_lengths(self, query_len: int, thinking_tokens: int) -> list[int]:
        if not 1 <= thinking_tokens <= self.budget:
            raise UsageError(
                f"{thinking_tokens} thinking tokens do not fit a budget of {self.budget} ({self.iterations} iterations)"
            )
        first, step = min(thinking_tokens, self.context_size), self.context_size - self.state_size
        whole, rest = divmod(thinking_tokens - first, step) if thinking_tokens > first else (0, 0)
        return [first] + [step] * whole + ([rest] if rest else [])

    def _carried(self, query_len: int, chunks: Sequence[Chunk]) -> tuple[int, ...]:
        """The past that the next prompt keeps, after the query."""
        last = chunks[-1]
        past = last.prompt[query_len:]  # what the last chunk itself carried: empty for chunk 1
        if self.carryover == "recipe":
            seen = past + last.response
            if len(seen) <= self.state_size:
                return seen
            return seen[: self.head] + seen[len(seen) - (self.state_size - self.head) :]
        if self.carryover == "untrimmed":
            if len(chunks) == 1:
                return last.response[: self.head] + last.response[-self.state_size :]
            dropped = min(self.state_size, len(chunks[-2].response))
            return past[: len(past) - dropped + self.head] + last.response[-self.state_size :]
        head = chunks[0].response[: self.head]
        thought = past[len(head) :] + last.response if self.carryover == "chunkwise" else last.response
        return head + thought[-self.state_size :]

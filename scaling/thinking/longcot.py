"""LongCoT: one context that grows with every thinking token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from scaling.errors import UsageError
from scaling.thinking.base import Chunk, Segment, Turn


@dataclass(frozen=True, slots=True)
class LongCoT:
    """The usual environment: query in, up to `budget` thinking tokens out, nothing forgotten."""

    name: ClassVar[str] = "longcot"
    budget: int

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise UsageError(f"thinking budget {self.budget} is not positive; give at least 1 token")

    def parameters(self) -> dict[str, int | str]:
        return asdict(self)

    def next(self, query: Sequence[int], chunks: Sequence[Chunk]) -> Turn | None:
        return None if chunks else Turn(tuple(query), self.budget)

    def schedule(self, query_len: int, response_lens: Sequence[int]) -> list[Segment]:
        if len(response_lens) > 1:
            raise UsageError(f"a LongCoT trace is one chunk, got {len(response_lens)} response lengths")
        return [Segment(0, query_len, n) for n in response_lens]

    def expected_lengths(self, query_len: int, thinking_tokens: int) -> list[int]:
        if not 1 <= thinking_tokens <= self.budget:
            raise UsageError(f"{thinking_tokens} thinking tokens do not fit a budget of {self.budget}")
        return [thinking_tokens]

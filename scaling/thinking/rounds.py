"""Rounds of thought that each close with a summary: the sizes that `summary` and `folding` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from scaling.errors import UsageError

SUMMARY_SHARE = 8
"""A summary gets this part of the context size, C/8, where no size is given."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """A round writes up to C = `context_size` new tokens: up to C − s of thought, then a summary of up to s =
    `summary_size`. The last of I = `iterations` rounds needs no summary and may think all C. So the budget is I·C.

    A trace's chunks are thought, summary, thought, …: those of even index are thoughts. Both are sampled by the model
    and both are thinking tokens.
    """

    context_size: int = 8192
    summary_size: int = 1024
    iterations: int = 3

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise UsageError(f"iterations {self.iterations} is not positive; give at least 1")
        if self.summary_size < 1:
            raise UsageError(f"summary size {self.summary_size} is not positive; the default is C/{SUMMARY_SHARE}")
        if self.summary_size >= self.context_size:
            raise UsageError(
                f"summary size {self.summary_size} must be below context size {self.context_size}, "
                f"or a round has no room to think; the default is C/{SUMMARY_SHARE}"
            )

    @classmethod
    def for_length(cls, thinking_tokens: int, context_size: int, summary_size: int | None = None) -> Self:
        """The environment with the fewest iterations that lets a trace think `thinking_tokens`."""
        if summary_size is None:
            summary_size = max(context_size // SUMMARY_SHARE, 1)
        return cls(context_size, summary_size, max(1, -(-thinking_tokens // max(context_size, 1))))

    @property
    def budget(self) -> int:
        return self.iterations * self.context_size

    def expected_lengths(self, query_len: int, thinking_tokens: int) -> list[int]:
        """Every thought and summary as long as it may be, up to the last chunk."""
        if not 1 <= thinking_tokens <= self.budget:
            raise UsageError(
                f"{thinking_tokens} thinking tokens do not fit a budget of {self.budget} ({self.iterations} iterations)"
            )
        lengths: list[int] = []
        left = thinking_tokens
        while left > 0:
            lengths.append(min(left, self._most(len(lengths))))
            left -= lengths[-1]
        return lengths

    def _most(self, chunk: int) -> int:
        """Tokens that the chunk of this index may have."""
        if chunk % 2:
            return self.summary_size
        return self.context_size - (self.summary_size if chunk < self._chunks - 1 else 0)

    @property
    def _chunks(self) -> int:
        return 2 * self.iterations - 1

    def _check_chunks(self, count: int) -> None:
        if count > self._chunks:
            raise UsageError(f"{count} response lengths, but {self.iterations} iterations have {self._chunks} chunks")

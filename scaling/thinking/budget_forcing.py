"""Budget forcing: LongCoT that is told to go on when the model ends its thinking early.

After s1 (arXiv 2501.19393): where the model would end its thinking, the end mark is suppressed and "Wait" is appended,
a set number of times (once in its authors' example). The paper's other half, ending the thinking at the budget and
asking for the answer, is not part of this environment: at the budget the trace ends. What ends thinking is the model's
end of sequence and, for a model with think tags, `</think>`, as long as extensions are left; after that the model may
answer. The mark that is suppressed was sampled, and counts as a thinking token; but no answer is read behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scaling.errors import UsageError
from scaling.thinking.base import Chunk, Segment, Turn, spelled


@dataclass(frozen=True, slots=True)
class BudgetForcing:
    """One context of up to `budget` thinking tokens. Up to N = `extensions` times, where the model ends before that,
    its last token gives place to `cue`, token ids, and it goes on; the KV of all before is `reused`.

    `stop`: ids that end thinking, beside the model's own. How long a model thinks between two ends is its choice;
    `expected_lengths` takes ends at equal distances over the budget.
    """

    name: ClassVar[str] = "budget-forcing"
    budget: int
    extensions: int = 1
    cue: tuple[int, ...] = (0,)
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise UsageError(f"thinking budget {self.budget} is not positive; give at least 1 token")
        if self.extensions < 1:
            raise UsageError(f"extensions {self.extensions} is not positive; without any it is mode longcot")
        if not self.cue:
            raise UsageError("the cue is empty; give at least one token, as in 'Wait'")

    def parameters(self) -> dict[str, int | str]:
        return {
            "budget": self.budget,
            "extensions": self.extensions,
            "cue": spelled(self.cue),
            "stop": spelled(self.stop),
        }

    def next(self, query: Sequence[int], chunks: Sequence[Chunk]) -> Turn | None:
        left = self.budget - sum(len(chunk.response) for chunk in chunks)
        if left < 1 or len(chunks) > self.extensions:
            return None
        stop = self.stop if len(chunks) < self.extensions else ()
        if not chunks:
            return Turn(tuple(query), left, stop)
        kept = (*chunks[-1].prompt, *chunks[-1].response[:-1])
        return Turn((*kept, *self.cue), left, stop, reused=len(kept))

    def schedule(self, query_len: int, response_lens: Sequence[int]) -> list[Segment]:
        if len(response_lens) > 1 + self.extensions:
            raise UsageError(f"{len(response_lens)} response lengths, but extensions is {self.extensions}")
        segments: list[Segment] = []
        for length in response_lens:
            if segments:
                before = segments[-1]
                segments.append(Segment(before.prompt + before.decode - 1, len(self.cue), length))
            else:
                segments.append(Segment(0, query_len, length))
        return segments

    def expected_lengths(self, query_len: int, thinking_tokens: int) -> list[int]:
        if not 1 <= thinking_tokens <= self.budget:
            raise UsageError(f"{thinking_tokens} thinking tokens do not fit a budget of {self.budget}")
        apart = -(-self.budget // (1 + self.extensions))
        whole, left = divmod(thinking_tokens, apart)
        return [apart] * whole + ([left] if left else [])

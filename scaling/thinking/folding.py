"""Folding: the model closes each step of its thought with a summary; the summaries stay, the thoughts are dropped.

After the Fold mode of Accordion-Thinking (arXiv 2602.03249): reasoning in steps, each closed by the model with a
summary between two special tokens, `<step>` and `</step>` in spirit, whereupon the step's thoughts leave the context.
Its authors' code bounds a step by 6144 tokens and a trace by 6 steps in training, 8 in evaluation. What is left open is
chosen so: a step that has not been closed when its room is used up is closed for the model; summaries are thinking
tokens; and a fold encodes query and summaries anew, as Delethink does at a boundary, where they could also keep the KV
that they got while the dropped thoughts were still seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scaling.errors import UsageError
from scaling.thinking.base import Chunk, Segment, Turn
from scaling.thinking.rounds import Rounds


@dataclass(frozen=True, slots=True)
class Folding(Rounds):
    """Sizes as in `Rounds`, a round being a step: how long a step is within them is the model's choice, and what
    `expected_lengths` says is the longest.

    The token `opening` ends a step's thoughts and opens its summary, the token `closing` ends that. A thought that
    ends in another way ends the trace, unless it has filled its turn: then `opening` takes its last token's place.
    `closing` likewise takes the place of a summary's last token. While the summary is written the step's own KV is
    `reused`; then prompts hold the query and `opening`, summary, `closing` of every step so far.
    """

    name: ClassVar[str] = "folding"
    opening: int = 0
    closing: int = 1

    def __post_init__(self) -> None:
        Rounds.__post_init__(self)
        if self.opening == self.closing:
            raise UsageError(f"token {self.opening} cannot both open and close a summary; name two, as <step> </step>")

    def parameters(self) -> dict[str, int | str]:
        return {
            "context_size": self.context_size,
            "summary_size": self.summary_size,
            "iterations": self.iterations,
            "opening": self.opening,
            "closing": self.closing,
        }

    def next(self, query: Sequence[int], chunks: Sequence[Chunk]) -> Turn | None:
        done = len(chunks)
        if done % 2 == 0:
            prompt = tuple(query)
            if chunks:
                folded = chunks[-2].prompt[len(query) :]
                prompt += (*folded, self.opening, *chunks[-1].response[:-1], self.closing)
            return Turn(prompt, self._most(done), stop=(self.opening,) if done < self._chunks - 1 else ())
        last = chunks[-1]
        if done >= self._chunks or (last.finish == "stop" and last.response[-1] != self.opening):
            return None
        return Turn(
            (*last.prompt, *last.response[:-1], self.opening),
            self._most(done),
            stop=(self.closing,),
            reused=len(last.prompt) + len(last.response) - 1,
        )

    def schedule(self, query_len: int, response_lens: Sequence[int]) -> list[Segment]:
        self._check_chunks(len(response_lens))
        segments: list[Segment] = []
        prompt = query_len
        for index, length in enumerate(response_lens):
            if index % 2:
                thought = segments[-1]
                segments.append(Segment(thought.prompt + thought.steps, 1, length))
                prompt += length + 1
            else:
                segments.append(Segment(0, prompt, length))
        return segments

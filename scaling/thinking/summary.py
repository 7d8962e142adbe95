"""Summary: rounds of thought, each summed up by the model on request; the summary is all that the next round knows.

After InftyThink (arXiv 2503.06692): reasoning in short segments, each followed by a summary of the progress so far,
from which, with the query, the next segment starts; the last one is followed by the answer. Its authors cut reasoning
data into segments of η = 4096 tokens. There the model is fine-tuned and closes segments itself, in tags; here any model
is asked, by a cue. What the paper leaves open is chosen so: thought and summary of a round share C new tokens, so that
a trace of I rounds thinks I·C; summary tokens are thinking tokens, as all tokens are that the model samples, and the
cue's are prompt tokens; the answer is read from the whole trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scaling.thinking.base import Chunk, Segment, Turn, spelled
from scaling.thinking.rounds import Rounds

CUE_TOKENS = 32
"""Of a cue without a tokenizer: about what a sentence has."""


@dataclass(frozen=True, slots=True)
class Summary(Rounds):
    """Sizes as in `Rounds`. A thought that the model ends itself ends the trace.

    A thought that fills its turn is followed by `cue`, token ids that ask for a summary, behind the round's own
    context, whose KV is `reused`. The summary's last token, its end mark as a rule, is not carried over: what is kept
    after the query is up to s − 1 tokens. `stop`: ids that end a summary, beside the model's own.
    """

    name: ClassVar[str] = "summary"
    cue: tuple[int, ...] = (0,) * CUE_TOKENS
    stop: tuple[int, ...] = ()

    def parameters(self) -> dict[str, int | str]:
        return {
            "context_size": self.context_size,
            "summary_size": self.summary_size,
            "iterations": self.iterations,
            "cue": spelled(self.cue),
            "stop": spelled(self.stop),
        }

    def next(self, query: Sequence[int], chunks: Sequence[Chunk]) -> Turn | None:
        done = len(chunks)
        if not chunks:
            return Turn(tuple(query), self._most(0))
        last = chunks[-1]
        if done % 2 == 0:
            return Turn((*query, *last.response[:-1]), self._most(done))
        if last.finish == "stop" or done >= self._chunks:
            return None
        return Turn(
            (*last.prompt, *last.response, *self.cue),
            self._most(done),
            stop=self.stop,
            reused=len(last.prompt) + len(last.response) - 1,
        )

    def schedule(self, query_len: int, response_lens: Sequence[int]) -> list[Segment]:
        self._check_chunks(len(response_lens))
        segments: list[Segment] = []
        for index, length in enumerate(response_lens):
            if index % 2:
                thought = segments[-1]
                segments.append(Segment(thought.prompt + thought.steps, 1 + len(self.cue), length))
            else:
                carried = response_lens[index - 1] - 1 if index else 0
                segments.append(Segment(0, query_len + carried, length))
        return segments

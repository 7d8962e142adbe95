"""What a thinking environment is: the rule that turns what was thought so far into the next prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, Protocol

Finish = Literal["stop", "length", "open"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy sees next.

    `prompt`: token ids; the first `reused` of them are the previous chunk's whole context, its last token apart (which
    was never fed back), so an engine may keep their KV; 0 if they are not. `max_tokens`: most response tokens. `stop`:
    token ids that end the chunk, beside the model's own end-of-sequence ids.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    stop: tuple[int, ...] = ()
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One prompt and the response sampled from it; `finish` is `stop` if the model ended it, else `length`.

    `open` is one that is not finished: a rollout may start from it (`scaling.rollout`), no environment sees it.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class Segment:
    """The cost side of a chunk, in tokens.

    `reused` prompt tokens keep their KV, `prefill` prompt tokens are encoded, `decode` response tokens are
    sampled. The prefill's logits already give the first response token, and the last one is never fed back:
    a segment takes `decode - 1` decode steps, the first of them at context `reused + prefill + 1`.
    """

    reused: int
    prefill: int
    decode: int

    @property
    def prompt(self) -> int:
        """Prompt tokens, reused ones included."""
        return self.reused + self.prefill

    @property
    def steps(self) -> int:
        """Decode steps: forward passes of one token each."""
        return max(self.decode - 1, 0)


class Environment(Protocol):
    """A thinking environment, written once and used to execute, to cost and to train.

    For every environment the tokens an engine processes while executing `next` equal `schedule` of the
    lengths that were actually sampled; the tests hold the two together.
    """

    name: ClassVar[str]

    @property
    def budget(self) -> int:
        """Most thinking tokens of one trace."""
        ...

    def parameters(self) -> dict[str, int | str]:
        """Every parameter, for the record: two environments with equal parameters behave equally."""
        ...

    def next(self, query: Sequence[int], chunks: Sequence[Chunk]) -> Turn | None:
        """The next turn of the trace of `query` whose `chunks` are done, or None when it has ended."""
        ...

    def schedule(self, query_len: int, response_lens: Sequence[int]) -> list[Segment]:
        """What a trace with these response lengths costs; needs no model and no tokens."""
        ...

    def expected_lengths(self, query_len: int, thinking_tokens: int) -> list[int]:
        """Response lengths of a trace that thinks exactly `thinking_tokens`; raises `UsageError` past the budget."""
        ...


def standing(chunks: Sequence[Chunk]) -> list[tuple[int, ...]]:
    """The responses of a trace as it goes on from them: without a last token that gave place to a cue or a marker."""
    responses = [chunk.response for chunk in chunks]
    for index, (chunk, after) in enumerate(pairwise(chunks)):
        kept = chunk.prompt + chunk.response[:-1]
        goes_on = len(after.prompt) > len(kept) and after.prompt[: len(kept)] == kept
        if goes_on and chunk.response and after.prompt[len(kept)] != chunk.response[-1]:
            responses[index] = chunk.response[:-1]
    return responses


def spelled(ids: Sequence[int]) -> str:
    """Token ids as a parameter of the record, `17 4 4`; `token_ids` reads it."""
    return " ".join(map(str, ids))


def token_ids(text: str) -> tuple[int, ...]:
    """The ids that `spelled` wrote."""
    return tuple(map(int, text.split()))

"""Traces cut off at smaller budgets, and judged again: what they would have earned had they been asked to stop there.

Under greedy decoding a trace that is cut at b thinking tokens equals one that was sampled with budget b: in LongCoT
and budget forcing for any b, in Delethink for b = C + (I−1)(C−m), which are its budgets. It is not so in `summary` and
`folding`: where a longer trace sums up, the last round of a shorter one would have thought on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from scaling.tasks import Problem, Task
from scaling.text import Text
from scaling.thinking import Chunk, standing


def trim(chunks: Sequence[Chunk], budget: int) -> list[Chunk]:
    """The chunks that hold the first `budget` response tokens; the last of them is cut where those end.

    A chunk that was cut has finish `length`: the model has not ended it.
    """
    kept: list[Chunk] = []
    left = budget
    for chunk in chunks:
        if left <= 0:
            break
        whole = len(chunk.response) <= left
        kept.append(chunk if whole else Chunk(chunk.prompt, chunk.response[:left], "length"))
        left -= len(chunk.response)
    return kept


def scores(
    chunks: Sequence[Chunk],
    problem: Problem,
    budgets: Iterable[int],
    *,
    text: Text,
    task: Task,
    known: Mapping[str | None, float] = MappingProxyType({}),
) -> dict[int, float]:
    """What a trace earns at each of the budgets, 0 to 1: its answer is sought and judged anew in what is left of it.

    A budget that it does not reach leaves all of it. Equal answers are judged once, `known` ones not again.
    """
    judged = dict(known)
    found: dict[int, float] = {}
    for budget in budgets:
        answer = text.answer(standing(trim(chunks, budget)))
        said = answer.text if answer else None
        if said not in judged:
            judged[said] = task.score(problem, said)
        found[budget] = judged[said]
    return found

"""What tasks share that make their own problems: a ladder of difficulties, a seed, and no question asked twice."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from scaling.errors import UsageError
from scaling.tasks.base import Problem, Verdict

TRIES = 10_000
"""Draws of a question that was not asked before. Where the last of 81 is missing, all fail once in 10^54 times."""


class Drawn(NamedTuple):
    """A question, its reference answer and what else is known about it."""

    question: str
    answer: str
    meta: dict[str, Any]


class Generated(ABC):
    """Problems whose difficulties are `levels` in turn; `meta["difficulty"]` tells a problem's.

    The j-th problem of a difficulty depends on the seed, the task's other parameters, the difficulty and j alone: it
    is the same one in every ladder.
    """

    name: ClassVar[str]
    rules: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, levels: range, seed: int) -> None:
        self.levels, self.seed = levels, seed

    @abstractmethod
    def parameters(self) -> dict[str, Any]: ...

    @abstractmethod
    def draw(self, chance: random.Random, difficulty: int) -> Drawn:
        """A problem of a difficulty, by chance."""

    @abstractmethod
    def judge(self, problem: Problem, answer: str) -> float:
        """The score of an answer, which may be any text: compared as text, in time linear in its length."""

    def problems(self, count: int) -> list[Problem]:
        seen: set[str] = set()
        return [self._problem(self.levels[i % len(self.levels)], i // len(self.levels), seen) for i in range(count)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        return Verdict(0.0 if answer is None else self.judge(problem, answer))

    def score(self, problem: Problem, answer: str | None) -> float:
        return self.verify(problem, answer).score

    def close(self) -> None:  # noqa: B027 - nothing is open
        pass

    def _problem(self, difficulty: int, place: int, seen: set[str]) -> Problem:
        others = {k: v for k, v in self.parameters().items() if k not in ("task", "seed", "levels")}
        chance = random.Random(f"{self.name}/{others}/{self.seed}/{difficulty}/{place}")
        for _ in range(TRIES):
            drawn = self.draw(chance, difficulty)
            if drawn.question not in seen:
                seen.add(drawn.question)
                id = f"{self.name}-{difficulty}-{self.seed}-{place}"
                return Problem(id, drawn.question, drawn.answer, {"difficulty": difficulty, **drawn.meta})
        raise UsageError(
            f"{self.name} has no more than {place} different problems of difficulty {difficulty}; ask fewer"
        )

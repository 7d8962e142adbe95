"""What a task is: problems in any number, and a verifier of answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its reference `answer`. `id` is unique within the task; `meta` is the task's own.

    `meta["difficulty"]`, where the task knows one, is a number that rises with how hard the problem is.
    """

    id: str
    question: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`score` in 0 to 1, 1 being right; `error` says what went wrong where an answer could not be judged (score 0)."""

    score: float
    error: str | None = None


class Task(Protocol):
    """Problems and their verifier. `rules`: how its answers are found in a text (`scaling.text`), None as usual."""

    @property
    def name(self) -> str: ...

    @property
    def rules(self) -> tuple[str, ...] | None: ...

    def parameters(self) -> dict[str, Any]:
        """Everything that decides the problems, for the record."""
        ...

    def problems(self, count: int) -> list[Problem]:
        """The first `count` problems; the same ones for the same parameters, however many are asked for.

        Raises `UsageError` where there are fewer.
        """
        ...

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Judges an answer, which may be any text at all; None is no answer. Never raises because of its content."""
        ...

    def score(self, problem: Problem, answer: str | None) -> float:
        """The score of `verify`."""
        ...

    def close(self) -> None: ...

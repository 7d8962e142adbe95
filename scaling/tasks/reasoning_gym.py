"""Any dataset of reasoning-gym as a task; it runs in a process of its own, which hostile answers may kill."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from scaling.errors import UsageError
from scaling.tasks.base import Problem, Verdict
from scaling.tasks.worker import VERIFY_SECONDS, Worker

PROBLEMS = 10_000  # the size datasets are made with: most make problems when asked, a few make them all at once


class ReasoningGym:
    """One dataset of reasoning-gym, by its name and its own parameters, judged by its own verifier.

    Problem i depends on the parameters, the seed and i alone.
    """

    rules = None

    def __init__(
        self,
        name: str,
        parameters: dict[str, str] | None = None,
        *,
        seed: int = 0,
        seconds: float = VERIFY_SECONDS,
        beside: tuple[str, ...] = (),
    ) -> None:
        """`parameters`: the dataset's configuration, values as text. `seconds`: time limit of one verification.
        `beside`: names of tasks that there are beside its own, for the message about an unknown one.

        Raises `UsageError` for an unknown dataset or parameter, a value it refuses, or where the extra is missing.
        """
        if find_spec("reasoning_gym") is None:
            others = f" is none of {', '.join(beside)}; any other" if beside else ""
            raise UsageError(
                f"task {name!r}{others} needs reasoning-gym; install the extra: pip install 'thinking-cost[tasks]'"
            )
        self.name = name
        self.seed = seed
        self._seconds = seconds
        setup = {"name": name, "seed": seed, "size": PROBLEMS, "parameters": parameters or {}, "beside": beside}
        self._worker = Worker("scaling.tasks.gym_worker", name, setup)
        self._parameters = self._worker.ask({"do": "parameters"})["parameters"]

    def parameters(self) -> dict[str, Any]:
        return {"task": self.name, "seed": self.seed, **self._parameters}

    def problems(self, count: int) -> list[Problem]:
        if count > PROBLEMS:
            raise UsageError(
                f"{count} problems asked of {self.name}; a seed gives at most {PROBLEMS}, try another seed too"
            )
        return [self._problem(index) for index in range(count)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        return self._worker.verify(answer, {"index": problem.meta["index"]}, self._seconds)

    def score(self, problem: Problem, answer: str | None) -> float:
        return self.verify(problem, answer).score

    def close(self) -> None:
        """Ends the verifier's process."""
        self._worker.close()

    def _problem(self, index: int) -> Problem:
        reply = self._worker.ask({"do": "problem", "index": index})
        meta = {"index": index, "metadata": reply["metadata"]}
        if (difficulty := _difficulty(reply["metadata"])) is not None:
            meta["difficulty"] = difficulty
        return Problem(f"{self.name}-{self.seed}-{index}", reply["question"], reply["answer"], meta)


def _difficulty(metadata: Any) -> float | None:
    """The difficulty that a problem's metadata tells, where it is one number, whatever it is called."""
    told = metadata.get("difficulty") if isinstance(metadata, dict) else None
    if isinstance(told, dict) and len(told) == 1:
        (told,) = told.values()
    return told if isinstance(told, int | float) and not isinstance(told, bool) else None

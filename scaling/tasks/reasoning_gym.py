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

    def __init__(
        self, name: str, parameters: dict[str, str] | None = None, *, seed: int = 0, seconds: float = VERIFY_SECONDS
    ) -> None:
        """`parameters`: the dataset's configuration, values as text. `seconds`: time limit of one verification.

        Raises `UsageError` for an unknown dataset or parameter, a value it refuses, or where the extra is missing.
        """
        if find_spec("reasoning_gym") is None:
            raise UsageError(
                f"task {name!r} needs reasoning-gym; install the extra: pip install 'thinking-cost[tasks]'"
            )
        self.name = name
        self.seed = seed
        self._seconds = seconds
        setup = {"name": name, "seed": seed, "size": PROBLEMS, "parameters": parameters or {}}
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
        return Problem(f"{self.name}-{self.seed}-{index}", reply["question"], reply["answer"], meta)

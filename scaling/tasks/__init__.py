"""Problems and verifiers, one file a task family."""

from __future__ import annotations

from scaling.errors import UsageError
from scaling.tasks.base import Problem, Task, Verdict
from scaling.tasks.reasoning_gym import ReasoningGym

__all__ = ["Problem", "Task", "Verdict", "load"]


def load(spec: str, *, seed: int = 0) -> Task:
    """The task that `spec` names, such as `chain_sum` or `chain_sum:max_terms=2,max_digits=1`.

    `seed` decides which problems it has. Close it after use: a verifier may be a process of its own. Raises
    `UsageError` for a malformed spec, an unknown task or parameter, or a missing extra.
    """
    name, _, rest = spec.partition(":")
    parameters: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UsageError(f"task parameter {part!r} in {spec!r}; expected name=value, e.g. chain_sum:max_terms=2")
        parameters[key.strip()] = value.strip()
    return ReasoningGym(name.strip(), parameters, seed=seed)

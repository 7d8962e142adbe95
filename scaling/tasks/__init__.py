"""Problems and verifiers, one file a task family."""

from __future__ import annotations

from collections.abc import Callable

from scaling.errors import UsageError
from scaling.tasks import grid, multiplication, published, recall, rows, walk
from scaling.tasks.base import Problem, Task, Verdict
from scaling.tasks.parameters import Parameters
from scaling.tasks.reasoning_gym import ReasoningGym

__all__ = ["TASKS", "Problem", "Task", "Verdict", "load"]

TASKS: dict[str, Callable[[Parameters, int], Task]] = {
    **dict.fromkeys(published.PUBLISHED, published.make),
    "rows": rows.make,
    "walk": walk.make,
    "multiplication": multiplication.make,
    "grid": grid.make,
    "self-recall": recall.make,
}
"""By name; any other name is a data set of reasoning-gym."""


def load(spec: str, *, seed: int = 0) -> Task:
    """The task that `spec` names, such as `math500`, `grid:size=6` or `chain_sum:max_terms=2,max_digits=1`.

    `seed` decides which problems it has, or of a published set in what order their choices stand. Close it after use:
    a verifier may be a process of its own. Raises `UsageError` for a malformed spec, an unknown task or parameter, a
    missing extra, or a data set that cannot be read.
    """
    name, _, rest = spec.partition(":")
    name = name.strip()
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UsageError(f"task parameter {part!r} in {spec!r}; expected name=value, e.g. chain_sum:max_terms=2")
        if key in given:
            raise UsageError(f"task parameter {key!r} comes twice in {spec!r}; give it once")
        given[key] = value
    if name in TASKS:
        parameters = Parameters(name, given)
        task = TASKS[name](parameters, seed)
        parameters.done()
        return task
    return ReasoningGym(name, given, seed=seed, beside=tuple(TASKS))

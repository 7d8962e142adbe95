"""Reads the traces of studies back: one by one, or as a table that every analysis starts from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import UsageError, unknown
from scaling.results import Run, Store, open_runs
from scaling.traces import read_traces

if TYPE_CHECKING:
    import pandas as pd

TRACES = "traces"
"""The folder of a run that holds them, a file an arm."""

COLUMNS = {
    "run": "object",
    "arm": "object",
    "model": "object",
    "trained": "object",
    "environment": "object",
    "environment_parameters": "object",
    "context_size": "Int64",
    "state_size": "Int64",
    "budget": "int64",
    "task": "object",
    "problem": "object",
    "difficulty": "float64",
    "sample": "int64",
    "thinking_tokens": "int64",
    "chunks": "int64",
    "response_lengths": "object",
    "ended": "bool",
    "correct": "boolean",
    "score": "float64",
    "answer": "object",
    "error": "object",
    "seconds": "float64",
    "scores": "object",
}
"""Of `frame`, with their types."""


def is_study(store: Store) -> bool:
    """Whether a run holds traces of a study."""
    return isinstance(store.manifest.get("study"), str)


def labels(store: Store) -> list[str]:
    """The arms of a study's run, in order; raises `UsageError` for any other run."""
    if not is_study(store):
        raise UsageError(f"{store.path} holds no traces; expected a run of `scaling probe` or `scaling test-time`")
    return [arm["label"] for arm in store.manifest["arms"]]


def file_of(store: Store, arm: str) -> Path:
    """Where the traces of the arm with this label are, or will be; raises as `records` does."""
    if arm not in (known := labels(store)):
        raise unknown("arm", arm, known)
    return store.path / str(store.manifest["arms"][known.index(arm)]["file"])


def records(store: Store, arm: str) -> Iterator[dict[str, Any]]:
    """The traces of the arm with this label, as they were written, texts and token ids included.

    A trace that failed and was asked again is what came of it then; what failed comes last. Raises `UsageError` for a
    run that is no study's or has no such arm, `StoreError` for a damaged or newer file.
    """
    path = file_of(store, arm)
    return _last(read_traces(path) if path.exists() else ())


def _last(written: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    failed: dict[str, dict[str, Any]] = {}
    for record in written:
        problem = record.get("problem")  # of a line that is no trace, anything; who asked finds out
        name = problem.get("id") if isinstance(problem, dict) else problem
        key = json.dumps([record.get("task_label"), name, record.get("sample")])
        failed.pop(key, None)
        if record.get("error") is None:
            yield record
        else:
            failed[key] = record
    yield from failed.values()


def frame(runs: Run | Sequence[Run]) -> pd.DataFrame:
    """The traces of one or several studies, one row a trace in the order in which they were asked, with the `COLUMNS`.

    A problem is told by `task` and `problem` together: two tasks of a study may differ in their parameters alone, and
    have equal ids. `task` is the label that the study gave it. `budget` is what the environment lets a trace think;
    `scores` (budget → score, budgets as integers) is what the trace earns cut off at each of the study's budgets.
    `correct` is whether `score` is 1. A failed trace has an `error`, null `correct` and `score`, and empty `scores`:
    leave it out, do not count it as wrong. `difficulty` is null where the problem has none that is a number.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name, store in open_runs(runs).items():
        for arm in labels(store):
            numbered = [(record["index"], _row(name, record)) for record in records(store, arm)]
            rows += [row for _, row in sorted(numbered, key=lambda pair: pair[0])]
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()})


def _row(run: str, record: dict[str, Any]) -> dict[str, Any]:
    parameters, problem, score = record["environment_parameters"], record["problem"], record["score"]
    difficulty = problem["meta"].get("difficulty")
    numeric = isinstance(difficulty, int | float) and not isinstance(difficulty, bool)
    return {
        "run": run,
        "arm": record["arm"],
        "model": record["model"]["name"],
        "trained": record["trained"],
        "environment": record["environment"],
        "environment_parameters": json.dumps(parameters, sort_keys=True),
        "context_size": parameters.get("context_size"),
        "state_size": parameters.get("state_size"),
        "budget": record["thinking_budget"],
        "task": record["task_label"],
        "problem": problem["id"],
        "difficulty": difficulty if numeric else None,
        "sample": record["sample"],
        "thinking_tokens": record["thinking_tokens"],
        "chunks": len(record["chunks"]),
        "response_lengths": [len(chunk["response"]) for chunk in record["chunks"]],
        "ended": record["ended"],
        "correct": None if score is None else score == 1,
        "score": score,
        "answer": record["answer"],
        "error": record["error"],
        "seconds": record["seconds"],
        "scores": {int(budget): earned for budget, earned in record["scores"].items()},
    }

"""Problems from rows of questions and answers: a local JSONL or Parquet file, or a data set of the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from scaling.errors import UsageError, first_line, unknown
from scaling.tasks.base import Problem, Verdict
from scaling.tasks.worker import VERIFY_SECONDS, Worker

Verifier = Literal["exact", "math"]
Row = tuple[str, Mapping[str, Any]]
"""Where it stands, for messages, and its columns."""

QUESTIONS, ANSWERS = ("question", "problem"), ("answer", "expected_answer")
"""Columns that hold a row's question and answer, by preference: data sets name them differently."""

SPLIT = "train"
HUB_TIMEOUT_SECONDS = 5.0

_EXAMPLE = '{"question": "What is 2 + 3?", "answer": "5"}'


class Rows:
    """Every row's question with its answer, judged `exact` (equal but for spaces) or by `math`-verify.

    `source`: a file that ends in `.jsonl` or `.parquet`, the directory of a data set, or the name of one on the Hub,
    with `:split` where that is not `train`. No more is read of it than its first `limit` questions, None for all; one
    that comes again, as where a data set has several solutions of it, is asked once.
    """

    def __init__(
        self, source: str, verifier: Verifier = "exact", *, limit: int | None = None, seconds: float = VERIFY_SECONDS
    ) -> None:
        """`seconds`: time limit of one verification by math-verify, in a process that hostile answers may kill.

        Raises `UsageError` for what is not there or not installed, and naming the row that lacks an answer.
        """
        if verifier not in ("exact", "math"):
            raise unknown("verifier", verifier, ("exact", "math"))
        if verifier == "math":
            _require("math_verify", "math-verify", "to judge answers")
        self.name = Path(source.partition(":")[0]).stem
        self._source, self._verifier, self._seconds = source, verifier, seconds
        found: dict[str, Problem] = {}
        for where, row in _rows(source):
            problem = _problem(where, row)
            found.setdefault(problem.question, problem)
            if len(found) == limit:
                break
        if not found:
            raise UsageError(f"{source} has no rows; expected some such as {_EXAMPLE}")
        self._problems = list(found.values())
        self._worker = Worker("scaling.tasks.math_worker", "math-verify", {}) if verifier == "math" else None
        if self._worker is not None:
            self._worker.start()

    def __len__(self) -> int:
        return len(self._problems)

    def parameters(self) -> dict[str, Any]:
        texts = json.dumps([(problem.question, problem.answer) for problem in self._problems])
        return {
            "task": self.name,
            "source": self._source,
            "verifier": self._verifier,
            "problems": len(self),
            "digest": hashlib.sha256(texts.encode()).hexdigest(),
        }

    def problems(self, count: int) -> list[Problem]:
        if count > len(self):
            raise UsageError(f"{count} problems asked of {self._source}, which has {len(self)}")
        return self._problems[:count]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        if answer is not None and answer.split() == problem.answer.split():
            return Verdict(1.0)
        if self._worker is None:
            return Verdict(0.0)
        return self._worker.verify(answer, {"expected": problem.answer}, self._seconds)

    def score(self, problem: Problem, answer: str | None) -> float:
        return self.verify(problem, answer).score

    def close(self) -> None:
        """Ends the verifier's process."""
        if self._worker is not None:
            self._worker.close()


def _problem(where: str, row: Mapping[str, Any]) -> Problem:
    question, answer = _first(row, QUESTIONS), _first(row, ANSWERS)
    for kind, found in (("question", question), ("answer", answer)):
        if not found:
            raise UsageError(f"{where} has no {kind}; expected a row such as {_EXAMPLE}")
    return Problem(where, question, answer)


def _first(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    return next((str(row[column]).strip() for column in columns if row.get(column) is not None), "")


def _rows(source: str) -> Iterator[Row]:
    path = Path(source)
    if path.suffix == ".jsonl":
        return _jsonl(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.is_file():
        raise UsageError(f"{source} ends in neither .jsonl nor .parquet, which are what is read")
    return _data_set(source)


def _jsonl(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _object(where, line)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _object(where: str, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not a JSON object; expected one such as {_EXAMPLE}")
    return row


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as stream:
            file = ParquetFile(stream)
            batches = file.iter_batches(columns=_columns(file.schema_arrow.names))
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield f"{path}, row {number}", row
    except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors too
        raise _unreadable(path, error) from None


def _data_set(source: str) -> Iterator[Row]:
    """Rows as they stream in: of a data set of gigabytes, those that are asked for."""
    _require("datasets", "datasets", f"to read {source}")
    name, colon, split = source.partition(":")
    split = split if colon else SPLIT
    try:
        from datasets import load_dataset

        if not Path(name).is_dir():
            from huggingface_hub import HfApi

            HfApi().dataset_info(name, timeout=HUB_TIMEOUT_SECONDS)  # asks once, where loading would ask for minutes
        rows = load_dataset(name, split=split, streaming=True)
        if rows.column_names:
            rows = rows.select_columns(_columns(rows.column_names))
        for number, row in enumerate(rows, 1):
            yield f"{name}, row {number}", row
    except Exception as error:  # the Hub's client and the readers of formats have errors of their own
        raise UsageError(
            f"cannot load data set {name}, split {split}: {first_line(error)}; expected a local .jsonl or .parquet, or "
            f"a name of the Hub with its split, as in {name}:{SPLIT}"
        ) from None


def _columns(names: Iterable[str]) -> list[str]:
    """Those worth reading: solutions are many times as long."""
    return [name for name in names if name in QUESTIONS + ANSWERS]


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or first_line(error)}")


def _require(module: str, package: str, what_for: str) -> None:
    if find_spec(module) is None:
        raise UsageError(f"{package} is needed {what_for}; install the extra: pip install 'thinking-cost[math]'")

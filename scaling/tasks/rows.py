"""Problems from rows of questions and answers: a local JSONL file, or a data set of the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from scaling.errors import UsageError, unknown
from scaling.tasks.base import Problem, Verdict

Verifier = Literal["exact", "math"]

QUESTIONS, ANSWERS = ("question", "problem"), ("answer", "expected_answer")
"""Columns that hold a row's question and answer, by preference: data sets name them differently."""


class Rows:
    """Every row's question with its answer, judged `exact` (equal but for spaces and case) or by `math`-verify.

    `source` is the path of a JSONL file (it ends in `.jsonl`), else the name of a Hub data set, whose split `train` is
    read. Raises `UsageError` for what is not there or not installed, and naming the row that lacks an answer.
    """

    def __init__(self, source: str, verifier: Verifier = "exact") -> None:
        if verifier not in ("exact", "math"):
            raise unknown("verifier", verifier, ("exact", "math"))
        if verifier == "math":
            _require("math_verify", "math-verify", "to judge answers")
        self.name = Path(source).stem
        self._source, self._verifier = source, verifier
        rows = _file(Path(source)) if source.endswith(".jsonl") else _data_set(source)
        self._problems = [self._problem(where, row) for where, row in rows]
        if not self._problems:
            raise UsageError(f"{source} has no rows; expected lines such as {_EXAMPLE}")

    def __len__(self) -> int:
        return len(self._problems)

    def parameters(self) -> dict[str, Any]:
        return {"task": self.name, "source": self._source, "verifier": self._verifier}

    def problems(self, count: int) -> list[Problem]:
        if count > len(self):
            raise UsageError(f"{count} problems asked of {self._source}, which has {len(self)}")
        return self._problems[:count]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        if answer is None:
            return Verdict(0.0)
        if self._verifier == "exact":
            return Verdict(float(answer.split() == problem.answer.split()))
        from math_verify import parse, verify

        try:
            return Verdict(float(verify(parse(f"${problem.answer}$"), parse(f"${answer}$"))))
        except Exception as error:  # whatever a text makes a parser do
            return Verdict(0.0, f"{type(error).__name__}: {error}"[:200])

    def score(self, problem: Problem, answer: str | None) -> float:
        return self.verify(problem, answer).score

    def close(self) -> None:
        pass

    def _problem(self, where: str, row: Mapping[str, Any]) -> Problem:
        question, answer = _first(row, QUESTIONS), _first(row, ANSWERS)
        for kind, found in (("question", question), ("answer", answer)):
            if not found:
                raise UsageError(f"{where} has no {kind}; expected a row such as {_EXAMPLE}")
        return Problem(where, question, answer)


_EXAMPLE = '{"question": "What is 2 + 3?", "answer": "5"}'


def _first(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    return next((str(row[column]).strip() for column in columns if row.get(column) is not None), "")


def _file(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UsageError(f"{where} is not a JSON object; expected one such as {_EXAMPLE}")
        yield where, row


def _data_set(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    _require("datasets", "datasets", f"to read {name}")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # the Hub's client and the readers of formats have errors of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"cannot load data set {name}: {reason}") from None
    for number, row in enumerate(rows):
        yield f"{name}, row {number}", row


def _require(module: str, package: str, what_for: str) -> None:
    if find_spec(module) is None:
        raise UsageError(f"{package} is needed {what_for}; install it: pip install {package}")

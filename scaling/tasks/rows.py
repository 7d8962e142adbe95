"""Problems from rows of questions and answers: a local JSONL or Parquet file, or a data set of the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from scaling.errors import UsageError, first_line, unknown
from scaling.tasks.base import Problem, Verdict
from scaling.tasks.parameters import Parameters
from scaling.tasks.worker import VERIFY_SECONDS, Worker

Verifier = Literal["exact", "math", "letter"]
Row = tuple[str, Mapping[str, Any]]
"""Where it stands, for messages, and its columns."""

QUESTIONS, ANSWERS = ("question", "problem"), ("answer", "expected_answer")
"""Columns that hold a row's question and answer, by preference: data sets name them differently."""
DIFFICULTIES = ("difficulty", "level")


class Asked(NamedTuple):
    """What a row asks: its question, the answer, and its difficulty where it tells one."""

    question: str
    answer: str
    difficulty: float | None = None


class Layout(NamedTuple):
    """How rows are written: the columns worth reading, what they ask ('' for what is lacking), and such a row."""

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Asked]
    example: str


SPLIT = "train"
HUB_TIMEOUT_SECONDS = 5.0


class Rows:
    """Every row's question with its answer, judged `exact` (equal but for spaces), by `math`-verify, or as a `letter`.

    `source`: a file that ends in `.jsonl` or `.parquet`, the directory of a data set, or the name of one on the Hub,
    with `:split` where that is not `train`, or `:configuration:split`. No more is read of it than its first `limit`
    questions, None for all; one that comes again, as where a data set has several solutions of it, is asked once.
    """

    def __init__(
        self,
        source: str,
        verifier: Verifier = "exact",
        *,
        name: str | None = None,
        layout: Layout | None = None,
        limit: int | None = None,
        seconds: float = VERIFY_SECONDS,
    ) -> None:
        """`name`: of the task, its source's unless given. `layout`: how the rows are written, `PLAIN` unless given.
        `seconds`: time limit of one verification by math-verify, in a process that hostile answers may kill.

        Raises `UsageError` for what is not there or not installed, and naming the row that lacks an answer; one of
        its kinds, `DataSetError`, for a data set that does not load.
        """
        if verifier not in get_args(Verifier):
            raise unknown("verifier", verifier, get_args(Verifier))
        if verifier == "math":
            _require("math_verify", "math-verify", "to judge answers")
        self.name = name or Path(source.partition(":")[0]).stem
        self.rules = ("boxed", "answer-tag", "last-line") if verifier == "letter" else None
        self._source, self._verifier, self._seconds = source, verifier, seconds
        layout = layout or PLAIN
        found: dict[str, Problem] = {}
        for number, (where, row) in enumerate(_rows(source, layout.columns), 1):
            problem = _problem(f"{self.name}-{number}", where, row, layout)
            found.setdefault(problem.question, problem)
            if len(found) == limit:
                break
        if not found:
            raise UsageError(f"{source} has no rows; expected some such as {layout.example}")
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
        if self._verifier == "letter" and answer is not None:
            return Verdict(float(_choice(problem.question, answer) == problem.answer))
        if self._worker is None:
            return Verdict(0.0)
        return self._worker.verify(answer, {"expected": problem.answer}, self._seconds)

    def score(self, problem: Problem, answer: str | None) -> float:
        return self.verify(problem, answer).score

    def close(self) -> None:
        """Ends the verifier's process."""
        if self._worker is not None:
            self._worker.close()


def _choice(question: str, answer: str) -> str | None:
    """The letter that is answered, or whose choice is repeated word for word, as `B) Neon`."""
    said = answer.strip()
    repeated = re.match(r"[A-Z]\) ", said) and said in question.splitlines()
    return said[0] if repeated else letter(answer)


def letter(text: str) -> str | None:
    """The one capital letter that `text` gives as its answer: `B`, `(B)`, `**B**`, `Answer: B`; None for any else."""
    if len(text) > 200:  # no such answer is longer, and the pattern takes quadratic time
        return None
    text = re.sub(r"\\(text|textbf|mathrm|mathbf)\b|[\s$*()\[\]{}.]", " ", text).strip()
    found = re.fullmatch(
        r"(?:(?i:the )?(?i:(?:correct |final )*)(?i:(?:answer|option|choice) *:?(?: *is)? *:? *))?([A-Z])", text
    )
    return found[1] if found else None


def _problem(id: str, where: str, row: Mapping[str, Any], layout: Layout) -> Problem:
    asked = layout.read(row)
    for kind, found in (("question", asked.question), ("answer", asked.answer)):
        if not found:
            raise UsageError(f"{where} has no {kind}; expected a row such as {layout.example}")
    return Problem(
        id, asked.question, asked.answer, {} if asked.difficulty is None else {"difficulty": asked.difficulty}
    )


def first(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    """The first of the columns that the row fills, as text; '' where there is none."""
    return next((str(row[column]).strip() for column in columns if row.get(column) is not None), "")


def plain(row: Mapping[str, Any]) -> Asked:
    """A row of a question and an answer; `Level 5` is a difficulty of 5."""
    told = re.fullmatch(r"(?:Level )?((?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,9})?)", first(row, DIFFICULTIES))
    return Asked(first(row, QUESTIONS), first(row, ANSWERS), json.loads(told[1]) if told else None)


PLAIN = Layout(QUESTIONS + ANSWERS + DIFFICULTIES, plain, '{"question": "What is 2 + 3?", "answer": "5"}')


class DataSetError(UsageError):
    """A data set that does not load, from the Hub or from a directory."""


def _rows(source: str, columns: tuple[str, ...]) -> Iterator[Row]:
    path = Path(source)
    if path.suffix == ".jsonl":
        return _jsonl(path)
    if path.suffix == ".parquet":
        return _parquet(path, columns)
    if path.is_file():
        raise UsageError(f"{source} ends in neither .jsonl nor .parquet, which are what is read")
    return _data_set(source, columns)


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
        raise UsageError(f"{where} is not a JSON object; expected one such as {PLAIN.example}")
    return row


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as stream:
            file = ParquetFile(stream)
            batches = file.iter_batches(columns=_among(file.schema_arrow.names, columns))
            for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield f"{path}, row {number}", row
    except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors too
        raise _unreadable(path, error) from None


def _data_set(source: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """Rows as they stream in: of a data set of gigabytes, those that are asked for."""
    _require("datasets", "datasets", f"to read {source}")
    name, _, rest = source.partition(":")
    configuration, _, split = rest.rpartition(":")
    split = split or SPLIT
    try:
        from datasets import load_dataset

        if not Path(name).is_dir():
            from huggingface_hub import HfApi

            HfApi().dataset_info(name, timeout=HUB_TIMEOUT_SECONDS)  # asks once, where loading would ask for minutes
        rows = load_dataset(name, configuration or None, split=split, streaming=True)
        if rows.column_names:
            rows = rows.select_columns(_among(rows.column_names, columns))
        for number, row in enumerate(rows, 1):
            yield f"{name}, row {number}", row
    except Exception as error:  # the Hub's client and the readers of formats have errors of their own
        raise DataSetError(
            f"cannot load data set {name}, split {split}: {first_line(error)}; expected a local .jsonl or .parquet, or "
            f"a name of the Hub with its split, as in {name}:{SPLIT}"
        ) from None


def _among(names: Iterable[str], columns: tuple[str, ...]) -> list[str]:
    """Those worth reading: solutions are many times as long."""
    return [name for name in names if name in columns]


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or first_line(error)}")


def _require(module: str, package: str, what_for: str) -> None:
    if find_spec(module) is None:
        raise UsageError(f"{package} is needed {what_for}; install the extra: pip install 'thinking-cost[math]'")


def make(parameters: Parameters, _seed: int) -> Rows:
    """`path`, any source of `Rows`; `verifier`: exact, math or letter."""
    source, verifier = parameters.text("path"), parameters.text("verifier", "exact")
    if source is None:
        raise UsageError("task rows has no path; expected one, as in rows:path=problems.jsonl,verifier=math")
    return Rows(source, verifier)  # type: ignore[arg-type]  # it refuses what is none

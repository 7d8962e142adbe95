"""Problems from rows of a file, and their verifiers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from scaling.errors import UsageError
from scaling.tasks.rows import Rows


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_are_problems_whatever_their_columns_are_called(tmp_path: Path) -> None:
    task = Rows(
        write(tmp_path / "p.jsonl", {"question": "1+1?", "answer": 2}, {"problem": "q", "expected_answer": "x"})
    )
    first, second = task.problems(2)
    assert (first.question, first.answer) == ("1+1?", "2")
    assert (second.question, second.answer) == ("q", "x")
    assert first.id != second.id
    assert [task.score(first, answer) for answer in ("2", " 2\n", "3", "", None)] == [1, 1, 0, 0, 0]
    with pytest.raises(UsageError, match=r"3 problems asked of .* has 2"):
        task.problems(3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "1+1?"}, "line 2 has no answer"),
        ({"question": "1+1?", "answer": None}, "line 2 has no answer"),
        ({"question": "1+1?", "answer": " "}, "line 2 has no answer"),
        ({"answer": "2"}, "line 2 has no question"),
        (["2"], "line 2 is not a JSON object"),
    ],
)
def test_a_row_that_is_no_problem_is_named(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Rows(write(tmp_path / "p.jsonl", {"question": "a", "answer": "b"}, row))


def test_a_source_without_problems_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no rows"):
        Rows(write(tmp_path / "p.jsonl"))
    with pytest.raises(UsageError, match="cannot read"):
        Rows(str(tmp_path / "nothing.jsonl"))


@pytest.mark.skipif(find_spec("math_verify") is not None, reason="math-verify is here")
def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"math-verify is needed to judge answers; .*pip install math-verify"):
        Rows(write(tmp_path / "p.jsonl", {"question": "a", "answer": "b"}), "math")

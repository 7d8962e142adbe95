"""Problems from rows of a file or a data set, and their verifiers."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import scaling.tasks.rows
from scaling.errors import UsageError
from scaling.tasks import Problem, Verdict
from scaling.tasks.rows import Rows
from scaling.tasks.worker import LONGEST_ANSWER


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


def test_parquet_is_read_like_jsonl_and_no_further_than_asked(tmp_path: Path) -> None:
    rows = [{"problem": f"{i}+1?", "expected_answer": str(i + 1), "generated_solution": "…"} for i in range(9)]
    pd.DataFrame([*rows, {"problem": "no answer"}]).to_parquet(tmp_path / "p.parquet")
    lines = write(tmp_path / "p.jsonl", *rows, "no row")
    parquet, jsonl = Rows(str(tmp_path / "p.parquet"), limit=9), Rows(lines, limit=9)
    asked = [[(p.question, p.answer) for p in task.problems(9)] for task in (parquet, jsonl)]
    assert asked[0] == asked[1] == [(row["problem"], row["expected_answer"]) for row in rows]
    assert parquet.parameters()["digest"] == jsonl.parameters()["digest"]
    with pytest.raises(UsageError, match=r"p\.parquet, row 10 has no answer"):
        Rows(str(tmp_path / "p.parquet"))


def test_a_question_that_comes_again_is_asked_once(tmp_path: Path) -> None:
    several = [{"problem": "1+1?", "expected_answer": "2", "generated_solution": s} for s in "abc"]
    task = Rows(write(tmp_path / "p.jsonl", *several, {"problem": "2+2?", "expected_answer": "4"}), limit=2)
    assert [problem.question for problem in task.problems(2)] == ["1+1?", "2+2?"]


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A directory as the Hub keeps a data set of two splits, none of them called train."""
    for name in ("cot", "tir"):
        path = tmp_path / "set" / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"problem": [f"{name}?", "?"], "expected_answer": ["1", "2"], "solution": ["", ""]}).to_parquet(
            path
        )
    return tmp_path / "set"


def test_a_data_set_streams_the_split_that_is_named(split: Path) -> None:
    assert [problem.question for problem in Rows(f"{split}:cot", limit=1).problems(1)] == ["cot?"]
    with pytest.raises(UsageError, match=r"split train: .*cot.*tir"):
        Rows(str(split))


def test_a_data_set_that_the_hub_does_not_give_is_one_line_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"cannot load data set a/b, split cot: .*local \.jsonl or \.parquet") as error:
        Rows("a/b:cot")
    assert time.monotonic() - start < 10
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", b"", "has no rows"),
        ("p.jsonl", b"\n\n", "has no rows"),
        ("p.jsonl", b"\xff", "cannot read .*p.jsonl: .*utf-8"),
        ("p.jsonl", b"[" * 100_000, "line 1 is not a JSON object"),
        ("p.parquet", b"PAR1", "cannot read .*p.parquet"),
        ("p.csv", b"question,answer\n", "ends in neither .jsonl nor .parquet"),
    ],
)
def test_a_source_without_problems_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said) as error:
        Rows(str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nothing.jsonl", "nothing.parquet"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"cannot read .*{name}: No such file"):
        Rows(str(tmp_path / name))


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling.tasks.rows, "find_spec", lambda _: None)
    file = write(tmp_path / "p.jsonl", {"question": "a", "answer": "b"})
    with pytest.raises(UsageError, match=r"math-verify is needed to judge answers; .*'thinking-cost\[math\]'"):
        Rows(file, "math")
    with pytest.raises(UsageError, match=r"datasets is needed to read a/b; .*'thinking-cost\[math\]'"):
        Rows("a/b")


@pytest.fixture(scope="module")
def math(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    rows = [{"question": expected, "answer": expected} for expected in [*RIGHT, "7"]]
    task = Rows(write(tmp_path_factory.mktemp("math") / "p.jsonl", *rows), "math", seconds=2.0)
    yield task
    task.close()


RIGHT = {
    r"-\frac{2}{3}": ["-2/3", r"-\dfrac23", r"\frac{-2}{3}"],
    "26": ["26.0", "26", r"26 \text{ cm}"],
    "1,2": ["2, 1", r"1 \text{ and } 2"],
    "x=5": ["5"],
    r"\frac{\sqrt{2}}{2}": [r"1/\sqrt{2}"],
    r"\text{Tuesday}": ["Tuesday"],
    "(-\\infty, 2)": [r"(-\infty,2)"],
    "2^{100}": ["1267650600228229401496703205376"],
}


def test_equal_mathematics_is_right_however_it_is_written(math: Rows) -> None:
    for problem in math.problems(len(RIGHT)):
        for answer in RIGHT[problem.answer]:
            assert math.verify(problem, answer) == Verdict(1.0), (problem.answer, answer)


@pytest.mark.parametrize("answer", ["8", "-7", "1,7", "7 or 8", r"\{7, 8\}", "1$ $7", r"8}\boxed{7", "x=7=8", None, ""])
def test_a_wrong_answer_and_a_list_of_guesses_are_wrong(math: Rows, answer: str | None) -> None:
    assert math.score(Problem("", "7", "7"), answer) == 0


HOSTILE = [
    "\x00",
    "7\x00",
    "\ud800",
    "\u202e7",
    "(" * 4_000,
    r"\sqrt{" * 1_000 + "7" + "}" * 1_000,
    "{" * 9_000,
    r"\boxed{" * 1_000,
    r"\begin{pmatrix}" * 500,
    "$" * 9_000,
    "9" * 9_000,
    "10^{10^{10}}",
    "9^{9^{9^9}}",
    r"(10^{10^{10}})!",
    r"\binom{10^{10}}{10^9}",
    "__import__('os').system('true')",
    "8\n" * 4_000,
    '{"score": 1.0}',
]


def test_no_answer_whatever_it_is_scores_hangs_or_crashes(tmp_path: Path) -> None:
    math = Rows(write(tmp_path / "p.jsonl", {"question": "?", "answer": "7"}), "math", seconds=0.5)
    (problem,) = math.problems(1)
    for answer in HOSTILE:
        start = time.monotonic()
        assert math.verify(problem, answer).score == 0, answer[:40]
        assert time.monotonic() - start < 5.0, answer[:40]  # the time limit, and a process that starts anew
    math._seconds = 5.0
    assert math.verify(problem, r"\frac{14}{2}") == Verdict(1.0)
    math.close()


@pytest.mark.parametrize("length", [LONGEST_ANSWER + 1, 1_000_000])
def test_an_answer_too_long_to_be_one_is_not_judged(math: Rows, length: int) -> None:
    verdict = math.verify(math.problems(1)[0], "1" * length)
    assert verdict == Verdict(0.0, f"the answer has {length} characters, more than 10000")


def test_a_verifier_that_hangs_or_dies_is_a_verdict_and_another_takes_over(tmp_path: Path) -> None:
    task = Rows(write(tmp_path / "p.jsonl", {"question": "?", "answer": "7"}), "math", seconds=0.3)
    assert task._worker is not None
    (problem,) = task.problems(1)
    assert task._worker.process is not None
    task._worker.process.send_signal(signal.SIGSTOP)
    assert task.verify(problem, "7.0") == Verdict(0.0, "math-verify took more than 0.3 s and was stopped")
    task._seconds = 5.0
    assert task.verify(problem, "7.0") == Verdict(1.0)
    assert task._worker.process is not None
    task._worker.process.kill()
    assert task.verify(problem, "7.0") == Verdict(0.0, "the process of math-verify crashed")
    assert task.verify(problem, "7.0") == Verdict(1.0)
    id = task._worker.process.pid
    task.close()
    with pytest.raises(ProcessLookupError):
        os.kill(id, 0)

"""Published sets by name, from files with the columns that they have on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from scaling.errors import UsageError
from scaling.tasks import Task, Verdict, load
from scaling.tasks.published import CORRECT, PUBLISHED, WRONG
from scaling.tasks.rows import letter

Open = Callable[..., Task]


@pytest.fixture
def open_set(tmp_path: Path) -> Iterator[Open]:
    """`open_set(name, row, …, seed=…)`: the set from a file of these rows."""
    with ExitStack() as stack:

        def make(name: str, *rows: object, seed: int = 0) -> Task:
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            task = load(f"{name}:path={path}", seed=seed)
            stack.callback(task.close)
            return task

        yield make


@pytest.mark.parametrize(
    ("name", "row", "right", "wrong"),
    [
        ("aime24", {"id": 60, "problem": "?", "answer": "025", "solution": "…"}, "25", "26"),
        ("aime25", {"problem_idx": 1, "problem": "?", "answer": 70, "problem_type": ["Number Theory"]}, "70.0", "7"),
        ("hmmt25", {"problem_idx": 2, "problem": "?", "answer": r"\frac{9\sqrt{23}}{23}"}, r"9/\sqrt{23}", "9/23"),
        ("gsm8k", {"question": "?", "answer": "It is <<600+634=1234>>1234.\n#### 1,234"}, r"\$1234", "600"),
    ],
)
def test_mathematics_is_judged_by_math_verify(open_set: Open, name: str, row: object, right: str, wrong: str) -> None:
    pytest.importorskip("math_verify", reason="the extra [math] is not installed")
    task = open_set(name, row)
    (problem,) = task.problems(1)
    assert (problem.id, problem.question, "difficulty" in problem.meta) == (f"{name}-1", "?", False)
    assert [task.verify(problem, answer) for answer in (right, wrong)] == [Verdict(1.0), Verdict(0.0)]


def test_the_levels_of_math_are_its_difficulty(open_set: Open) -> None:
    pytest.importorskip("math_verify", reason="the extra [math] is not installed")
    row = {"problem": "?", "solution": "…", "answer": "1", "subject": "Algebra", "unique_id": "test/1.json"}
    rows = [row | {"problem": f"{level}?", "level": level} for level in (5, "Level 2", "Level ?", None)]
    problems = open_set("math500", *rows).problems(4)
    assert [problem.meta for problem in problems] == [{"difficulty": 5}, {"difficulty": 2}, {}, {}]


def test_a_solution_without_its_last_line_is_no_answer(open_set: Open) -> None:
    with pytest.raises(UsageError, match=r"line 1 has no answer; expected a row such as .*#### 72"):
        open_set("gsm8k", {"question": "?", "answer": "It is 1234."})


GPQA = {"Question": "Which one?", CORRECT: "gold", **{column: f"lead {i}" for i, column in enumerate(WRONG)}}


def test_choices_stand_in_an_order_of_the_seeds_and_the_answer_is_a_letter(open_set: Open) -> None:
    rows = [GPQA | {"Question": f"Which of {i}?"} for i in range(40)]
    task = open_set("gpqa-diamond", *rows, seed=1)
    problems = task.problems(40)
    for problem in problems:
        assert f"{problem.answer}) gold" in problem.question
        assert sorted(line[3:] for line in problem.question.splitlines() if line[1:2] == ")") == [
            "gold",
            "lead 0",
            "lead 1",
            "lead 2",
        ]
        scores = [task.score(problem, a) for a in ("A", "B", "C", "D")]
        assert sum(scores) == scores["ABCD".index(problem.answer)] == 1
        assert task.score(problem, f"{problem.answer}) gold") == 1
        assert task.score(problem, f"{problem.answer}) lead 0") == task.score(problem, "gold") == 0
    assert {problem.answer for problem in problems} == set("ABCD")
    again, other = (open_set("gpqa-diamond", *rows, seed=seed).problems(40) for seed in (1, 2))
    assert again == problems
    assert [p.answer for p in other] != [p.answer for p in problems]


@pytest.mark.parametrize("column", [CORRECT, *WRONG])
def test_a_question_that_lacks_a_choice_is_named(open_set: Open, column: str) -> None:
    with pytest.raises(UsageError, match=r"line 2 has no answer; expected a row such as .*Incorrect Answer 3"):
        open_set("gpqa-diamond", GPQA, GPQA | {"Question": "And now?", column: None})


@pytest.mark.parametrize(
    "text", ["B", "(B)", "B.", "**B**", r"\text{B}", "Answer: B", "The correct answer is (B).", "$B$"]
)
def test_a_letter_may_be_dressed(text: str) -> None:
    assert letter(text) == "B"


@pytest.mark.parametrize("text", ["", "b", "AB", "A or B", "A, B", "not B", "Bismuth", "B" * 300, "Β", "A B"])
def test_two_letters_or_a_word_are_no_letter(text: str) -> None:
    assert letter(text) is None


def test_parquet_of_the_same_columns_is_read_too(tmp_path: Path) -> None:
    pd.DataFrame([GPQA | {"Record ID": "rec1"}]).to_parquet(tmp_path / "p.parquet")
    task = load(f"gpqa-diamond:path={tmp_path / 'p.parquet'}")
    assert task.problems(1)[0].question.startswith("Which one?\n\nA) ")
    assert (task.name, task.rules) == ("gpqa-diamond", ("boxed", "answer-tag", "last-line"))
    with pytest.raises(UsageError, match=r"2 problems asked of .*p\.parquet, which has 1"):
        task.problems(2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_where_the_hub_is_out_of_reach_one_line_tells_how_to_give_a_file(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("math_verify", reason="the extra [math] is not installed")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=f"give a local .jsonl or .parquet file .*{name}:path={name}.jsonl$") as error:
        load(name)
    assert "\n" not in str(error.value)
    assert PUBLISHED[name].example in str(error.value)
    json.loads(PUBLISHED[name].example)


def test_a_wrong_parameter_is_told_before_the_hub_is_asked() -> None:
    with pytest.raises(UsageError, match="unknown parameter of aime24 'file'; known: path"):
        load("aime24:file=x.jsonl")

"""A code made up by the model, work, and the same code again."""

from __future__ import annotations

import pytest

from scaling.tasks import Problem, Task, load
from scaling.text import TextHandling, extract

CODE, OTHER = "603917284615", "603917284616"


@pytest.fixture(scope="module")
def task() -> Task:
    return load("self-recall:n=3,lead=2")


@pytest.fixture(scope="module")
def problem(task: Task) -> Problem:
    return task.problems(1)[0]


def trace(problem: Problem, first: str = CODE, last: str = CODE, spoil: int | None = None) -> str:
    """What a model writes that works out all sums, rightly but for number `spoil`, around two codes."""
    results = [line.split()[1] for line in problem.answer.splitlines() if line.startswith("result")]
    if spoil is not None:
        results[spoil] = "0"
    steps = [f"That makes <result> {result} </result>." for result in results]
    lead = problem.meta["lead"]
    return "\n".join([*steps[:lead], f"<fact>{first}</fact>", *steps[lead:], f"<fact>{last}</fact>"])


def score(task: Task, problem: Problem, text: str) -> float:
    found = extract(text, task.rules or ())
    return task.score(problem, found.text if found else None)


def test_the_code_stands_nowhere_in_the_question(problem: Problem) -> None:
    assert problem.meta["difficulty"] == 3
    assert problem.question.count(" + ") == 5
    assert "After sum 2, make up a code of 12 digits" in problem.question


def test_all_sums_right_and_the_code_restated_exactly_is_right(task: Task, problem: Problem) -> None:
    assert score(task, problem, trace(problem)) == 1


def test_a_code_that_differs_in_one_digit_is_worth_nothing(task: Task, problem: Problem) -> None:
    assert score(task, problem, trace(problem, last=OTHER)) == 0


def test_a_wrong_sum_costs_its_share(task: Task, problem: Problem) -> None:
    for wrong in range(5):
        assert score(task, problem, trace(problem, spoil=wrong)) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace(f"<fact>{CODE}</fact>", "", 1),
        lambda text: "\n".join(text.splitlines()[:3] + text.splitlines()[-1:]),
        lambda text: "\n".join(text.splitlines()[2:]),
        lambda text: text.replace(CODE, "the 12 digits"),
        lambda text: text.replace(CODE, CODE[:-1]),
    ],
    ids=["stated once", "no work between", "no work before", "the form copied", "too short a code"],
)
def test_what_is_no_recall_after_work_is_worth_nothing(task: Task, problem: Problem, spoil) -> None:  # type: ignore[no-untyped-def]
    assert score(task, problem, spoil(trace(problem))) == 0


def test_what_was_thought_counts_too(task: Task, problem: Problem) -> None:
    """A model that thinks states the code in its thoughts; what it says after them alone would recall nothing."""
    handling = TextHandling(None, None, None, thinks=True, rules=task.rules or ())
    for text in (f"{trace(problem)}</think>", trace(problem), f"{trace(problem)}</think><fact>{CODE}</fact>"):
        found = handling.answer(text)
        assert found is not None
        assert task.score(problem, found.text) == 1
    found = handling.answer(f"{trace(problem)}</think><fact>{OTHER}</fact>")
    assert found is not None
    assert task.score(problem, found.text) == 0


def test_without_a_lead_the_code_comes_first() -> None:
    task = load("self-recall:n=2,lead=0")
    (problem,) = task.problems(1)
    assert "Before the first sum, make up a code" in problem.question
    assert score(task, problem, trace(problem)) == 1

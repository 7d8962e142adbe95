"""What a study may ask, and that a run is never gone on with as another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import StoreError, UsageError
from scaling.results import Store
from scaling.rollout import Sampling
from scaling.tasks.walk import Walk
from scaling.thinking import LongCoT
from studies.asking import ask, frame, records
from studies.study import Questions

Make = Callable[..., Any]


def change_budget(study: Any) -> Any:
    first = study.arms[0]
    return replace(study, arms=(replace(first, environment=LongCoT(32)), *study.arms[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, sampling=Sampling(0.5, seed=3)), "its sampling.temperature is 1.0, here it is 0.5"),
        (lambda s: replace(s, samples=3), "its samples is 2, here it is 3"),
        (lambda s: replace(s, budgets=(4, 24)), r"its budgets is \[4, 8, 24\], here it is \[4, 24\]"),
        (lambda s: replace(s, name="test-time"), "its study is 'probe', here it is 'test-time'"),
        (lambda s: replace(s, engine=replace(s.engine, dtype="bfloat16")), "its engine.dtype is 'float32'"),
        (lambda s: replace(s, arms=s.arms[:1]), "its number of arms is 2, here it is 1"),
        (change_budget, r"its arms\[longcot\].environment_parameters.budget is 24, here it is 32"),
        (
            lambda s: replace(s, questions=[replace(s.questions[0], problems=s.questions[0].problems[:3])]),
            r"its tasks\[walk\].asked is 4, here it is 3",
        ),
    ],
)
def test_another_configuration_is_refused_by_its_difference(
    walkers: Make, whole: Store, change: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(StoreError, match=f"is another study: {message}.*; give another --out"):
        ask(whole, change(walkers()))


def test_more_at_once_is_no_other_study(walkers: Make, whole: Store) -> None:
    study = walkers()
    ask(whole, replace(study, engine=replace(study.engine, concurrency=64)))


def test_problems_with_one_id_are_refused() -> None:
    walk = Walk(4, 0, 0, 2)
    with pytest.raises(
        UsageError, match="task walk has 2 problems with the id 'walk-0-2-0-1'; every problem needs its own"
    ):
        Questions("walk", walk, [*walk.problems(3), walk.problems(2)[1]])


def test_a_task_without_problems_is_refused() -> None:
    with pytest.raises(UsageError, match="task walk has no problems"):
        Questions("walk", Walk(4, 0, 0, 2), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (0, 8)}, "budget 0 is not positive"),
        ({"budgets": (8, 32)}, "budget 32 is more than 'longcot' may think, 24 tokens"),
        ({"budgets": ()}, "at least one arm, one task and one budget"),
        ({"samples": 0}, "0 samples a problem; give at least 1"),
        ({"sampling": Sampling(0.0)}, "greedy samples of a problem are all the same"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(walkers: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        walkers(**changes)


def test_arms_of_one_name_are_refused(walkers: Make) -> None:
    study = walkers()
    with pytest.raises(UsageError, match="2 arms are called 'longcot'"):
        replace(study, arms=[study.arms[0], study.arms[0]])


def test_a_task_may_have_answers_found_by_rules_of_its_own(asked: Any, walkers: Make, tmp_path: Path) -> None:
    walk = Walk(4, 0, 0, 2)
    questions = (
        Questions("whole", walk, walk.problems(4)),
        Questions("number", walk, walk.problems(4), rules=("last-number",)),
    )
    store = asked.asked_whole(tmp_path / "run", walkers(questions=questions))
    found = frame(store)
    assert found[found["task"] == "number"]["answer"].dropna().str.fullmatch(r"\d+").all()
    assert found[found["task"] == "whole"]["answer"].str.contains("#").any()
    rules = {record["task_label"]: record["text"]["rules"] for record in records(store, "longcot")}
    assert rules == {"whole": ["last-line"], "number": ["last-number"]}


def test_tasks_may_have_equal_ids_if_their_names_differ(asked: Any, walkers: Make, tmp_path: Path) -> None:
    easy, hard = Walk(2, 0, 0, 1), Walk(2, 0, 2, 3)
    questions = (Questions("walk:0-1", easy, easy.problems(2)), Questions("walk:2-3", hard, hard.problems(2)))
    store = asked.asked_whole(tmp_path / "run", walkers(questions=questions))
    counts = frame(store).groupby(["arm", "task", "problem"]).size()
    assert len(counts) == 2 * 2 * 2
    assert set(counts) == {2}

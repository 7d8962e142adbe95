"""reasoning-gym datasets as tasks: the same problems each time, judged whatever the answer is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

import scaling.tasks.reasoning_gym
from scaling.errors import UsageError
from scaling.tasks import Task, Verdict, load
from scaling.tasks.reasoning_gym import ReasoningGym
from scaling.tasks.worker import LONGEST_ANSWER

pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

HOSTILE = [
    "",
    "\x00",
    "\x1b[2J",
    "\u202e6",
    "\ud800",
    "<script>alert(1)</script>",
    "9" * 9_000,
    "-" * 9_000,
    "(" * 9_000,
    "__import__('os').system('true')",
    "1e999999999",
    "9**9**9**9",
    "\n" * 9_000,
    r"\boxed{" * 1_000,
    '{"score": 1.0}',
]


@pytest.fixture(scope="module")
def chain_sum() -> Iterator[Task]:
    task = load("chain_sum:max_terms=2,max_digits=1,allow_negation=true", seed=3)
    yield task
    task.close()


def test_parameters_are_the_datasets_own_and_complete(chain_sum: Task) -> None:
    assert chain_sum.parameters() == {
        "task": "chain_sum",
        "seed": 3,
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 1,
        "max_digits": 1,
        "allow_negation": True,
    }


def test_problems_are_the_same_however_many_are_asked_for(chain_sum: Task) -> None:
    again = load("chain_sum:max_terms=2,max_digits=1,allow_negation=true", seed=3)
    assert again.problems(2) == chain_sum.problems(5)[:2]
    again.close()
    assert len({problem.id for problem in chain_sum.problems(5)}) == 5


def test_another_seed_asks_other_questions(chain_sum: Task) -> None:
    other = load("chain_sum:max_terms=2,max_digits=1,allow_negation=true", seed=4)
    assert [p.question for p in other.problems(5)] != [p.question for p in chain_sum.problems(5)]
    other.close()


def test_the_right_answer_scores_one_a_wrong_one_and_none_nothing(chain_sum: Task) -> None:
    problem = chain_sum.problems(1)[0]
    assert chain_sum.score(problem, problem.answer) == 1
    assert chain_sum.score(problem, str(int(problem.answer) + 1)) == 0
    assert chain_sum.score(problem, None) == 0


@pytest.mark.parametrize("name", ["chain_sum", "simple_equations", "fraction_simplification", "countdown", "sudoku"])
def test_no_answer_whatever_it_is_scores_or_crashes(name: str) -> None:
    task = ReasoningGym(name, seconds=1.0)
    problem = task.problems(1)[0]
    for answer in HOSTILE:
        assert 0 <= task.score(problem, answer) < 1, answer
    assert task.score(problem, problem.answer) == 1
    task.close()


def test_an_answer_too_long_to_be_one_is_not_judged(chain_sum: Task) -> None:
    verdict = chain_sum.verify(chain_sum.problems(1)[0], "1" * (LONGEST_ANSWER + 1))
    assert verdict == Verdict(0.0, "the answer has 10001 characters, more than 10000")


def test_a_verifier_that_hangs_is_stopped_and_another_takes_over() -> None:
    task = ReasoningGym("chain_sum", seconds=0.3)
    problem = task.problems(1)[0]
    assert task._worker.process is not None
    task._worker.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    verdict = task.verify(problem, problem.answer)
    assert verdict == Verdict(0.0, "chain_sum took more than 0.3 s and was stopped")
    assert time.monotonic() - start < 5
    task._seconds = 5.0
    assert task.verify(problem, problem.answer) == Verdict(1.0)
    task.close()


def test_a_verifier_that_dies_is_a_verdict() -> None:
    task = ReasoningGym("chain_sum")
    problem = task.problems(1)[0]
    assert task._worker.process is not None
    task._worker.process.kill()
    assert task.verify(problem, problem.answer) == Verdict(0.0, "the process of chain_sum crashed")
    assert task.verify(problem, problem.answer) == Verdict(1.0)
    task.close()


def test_close_leaves_no_process() -> None:
    task = ReasoningGym("chain_sum")
    assert task._worker.process is not None
    id = task._worker.process.pid
    task.close()
    with pytest.raises(ProcessLookupError):
        os.kill(id, 0)


@pytest.mark.parametrize(
    ("spec", "difficulty"),
    [
        ("chain_sum", None),  # two numbers: of terms, and of digits
        ("list_functions", None),  # tells none
        ("gsm_symbolic", 1.0),
        ("spell_backward:min_word_len=5,max_word_len=5", None),  # a range
        ("dice", None),
        ("bf", 1),
    ],
)
def test_a_difficulty_that_is_one_number_is_the_problems(spec: str, difficulty: float | None) -> None:
    task = load(spec)
    assert task.problems(1)[0].meta.get("difficulty") == difficulty
    task.close()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chain_sums", "unknown task 'chain_sums'; did you mean chain_sum"),
        ("chain_sum:num_terms=2", "unknown parameter of chain_sum 'num_terms'; did you mean min_terms or max_terms"),
        ("chain_sum:min_terms=two", "parameter min_terms of chain_sum is 'two'; expected <class 'int'>"),
        ("chain_sum:min_terms=99", "chain_sum refuses .*max_terms must be >= min_terms"),
        ("chain_sum:min_terms", "task parameter 'min_terms' .*expected name=value"),
        ("", "unknown task ''"),
    ],
)
def test_bad_specs_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load(spec)
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling.tasks.reasoning_gym, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'thinking-cost\[tasks\]'"):
        load("chain_sum")

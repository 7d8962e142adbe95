"""Products of k-digit numbers, judged as exact integers."""

from __future__ import annotations

import pytest

from scaling.errors import UsageError
from scaling.tasks import load
from scaling.tasks.multiplication import integer


@pytest.mark.parametrize("k", [1, 4, 100])
def test_factors_have_k_digits_and_the_answer_is_their_product(k: int) -> None:
    for problem in load(f"multiplication:k={k}").problems(5):
        a, b = problem.meta["factors"]
        assert (len(a), len(b), problem.meta["difficulty"]) == (k, k, k)
        assert problem.question == f"What is {a} * {b}?"
        assert int(problem.answer) == int(a) * int(b)


def test_products_of_single_digits_are_all_there_once_and_no_more() -> None:
    task = load("multiplication:k=1")
    assert len({problem.question for problem in task.problems(81)}) == 81
    with pytest.raises(UsageError, match="no more than 81 different problems of difficulty 1"):
        task.problems(82)


SPACES = ("1 234 567", "1\u202f234\u202f567", "1\u00a0234\u00a0567")
LATEX = (r"1{,}234{,}567", r"1\,234\,567", "$1,234,567$")


@pytest.mark.parametrize("text", ["1234567", "1,234,567", " 1_234_567. ", "+1234567", "001234567", *SPACES, *LATEX])
def test_thousands_may_be_set_apart_in_any_one_way(text: str) -> None:
    assert integer(text) == "1234567"


OTHERS = ["1,23,4567", "1,234 567", "1234,567", "1.234.567", "1234567.0", "1.2e6", "1234568-1", "--1", "", "١", "1\n2"]


@pytest.mark.parametrize("text", OTHERS)
def test_anything_else_is_no_integer(text: str) -> None:
    assert integer(text) is None


def test_signs_and_zeros_count() -> None:
    assert (integer("-12"), integer("000"), integer("-1,000")) == ("-12", "0", "-1000")
    (problem,) = load("multiplication:k=2").problems(1)
    assert [load("multiplication").score(problem, a) for a in (problem.answer, "-" + problem.answer)] == [1, 0]

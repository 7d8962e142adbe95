"""Latin squares with holes: one solution each, judged cell by cell."""

from __future__ import annotations

import random

import pytest

from scaling.tasks import Problem, Task, load
from scaling.tasks.grid import Square, cells, emptied, latin_square


def solutions(square: Square, most: int = 2) -> int:
    """How many ways there are to fill in the holes, counted up to `most`, by trying them all."""
    size = len(square)
    best: tuple[int, int, set[int]] | None = None
    for r, row in enumerate(square):
        for c, cell in enumerate(row):
            if cell is None:
                taken = {*row, *(other[c] for other in square)}
                fits = {number for number in range(1, size + 1) if number not in taken}
                if best is None or len(fits) < len(best[2]):
                    best = (r, c, fits)
    if best is None:
        return 1
    r, c, fits = best
    found = 0
    for number in fits:
        square[r][c] = number
        found += solutions(square, most - found)
        square[r][c] = None
        if found >= most:
            break
    return found


@pytest.mark.parametrize("size", [4, 5, 9])
def test_every_row_and_column_of_a_square_has_each_number_once(size: int) -> None:
    square = latin_square(random.Random(size), size)
    for line in [*square, *zip(*square, strict=True)]:
        assert sorted(line) == list(range(1, size + 1))


@pytest.mark.parametrize("size", [4, 5, 6, 7])
@pytest.mark.parametrize("seed", range(5))
def test_a_puzzle_has_one_solution_however_many_holes_were_asked_for(size: int, seed: int) -> None:
    chance = random.Random(seed)
    solution = latin_square(chance, size)
    puzzle = emptied(chance, solution, size * size)
    assert sum(cell is None for row in puzzle for cell in row) > 0.4 * size * size
    assert all(
        cell in (None, right) for a, b in zip(puzzle, solution, strict=True) for cell, right in zip(a, b, strict=True)
    )
    assert solutions(puzzle) == 1


def test_a_square_with_two_solutions_is_told_by_the_count() -> None:
    assert solutions([[None, None], [None, None]]) == 2


@pytest.mark.parametrize("size", [4, 9, 14, 20, 32])
def test_the_usual_share_of_holes_is_there_at_every_size(size: int) -> None:
    (problem,) = load(f"grid:size={size}").problems(1)
    assert problem.meta["holes"] == problem.meta["puzzle"].count(".") == round(0.3 * size * size)
    assert problem.meta["difficulty"] == size
    assert problem.meta["puzzle"] in problem.question


@pytest.fixture(scope="module")
def task() -> Task:
    return load("grid:size=5,holes=0.4", seed=1)


@pytest.fixture(scope="module")
def problem(task: Task) -> Problem:
    return task.problems(1)[0]


@pytest.mark.parametrize("between", [" ", ", ", " | ", "  "])
@pytest.mark.parametrize("ends", ["\n", "\n\n", " / ", "; ", "\\\\\n"])
def test_the_right_square_is_right_however_it_is_set(task: Task, problem: Problem, between: str, ends: str) -> None:
    rows = [between.join(row.split()) for row in problem.answer.splitlines()]
    assert task.score(problem, ends.join(rows)) == 1
    assert task.score(problem, f"```\n{ends.join(rows)}\n```") == 1
    assert task.score(problem, str([[int(cell) for cell in row.split()] for row in problem.answer.splitlines()])) == 1


def changed(problem: Problem, place: int, to: str) -> str:
    numbers = problem.answer.split()
    numbers[place] = to
    return "\n".join(" ".join(numbers[start : start + 5]) for start in range(0, 25, 5))


def test_each_hole_counts_alike(task: Task, problem: Problem) -> None:
    hole = problem.meta["puzzle"].split().index(".")
    holes = problem.meta["holes"]
    assert holes == 10
    for wrong in ("0", ".", "99"):
        assert task.score(problem, changed(problem, hole, wrong)) == pytest.approx(0.9)
    assert task.score(problem, problem.meta["puzzle"]) == 0


def test_a_given_number_that_was_changed_takes_away_one(task: Task, problem: Problem) -> None:
    given = next(i for i, cell in enumerate(problem.meta["puzzle"].split()) if cell != ".")
    assert task.score(problem, changed(problem, given, "99")) == pytest.approx(0.9)


def test_half_a_square_is_half_right_or_less_and_too_large_a_one_says_nothing(task: Task, problem: Problem) -> None:
    rows = problem.answer.splitlines()
    assert 0 <= task.score(problem, "\n".join(rows[:3])) < 1
    assert task.score(problem, "\n".join([*rows, rows[0]])) == 0
    assert cells("1 2 3\n4 5", 2) == {(1, 0): "4", (1, 1): "5"}


def test_a_share_too_small_for_a_hole_still_makes_one() -> None:
    task = load("grid:size=4,holes=0.01")
    (problem,) = task.problems(1)
    assert problem.meta["holes"] == 1
    assert task.score(problem, problem.answer) == 1
    assert task.score(problem, problem.meta["puzzle"]) == 0

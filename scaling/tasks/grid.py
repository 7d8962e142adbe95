"""Grid filling: a Latin square with holes. What is filled in so far is the state that a chunk has to hand on."""

from __future__ import annotations

import random
import re
from typing import Any

from scaling.tasks.base import Problem
from scaling.tasks.generated import Drawn, Generated
from scaling.tasks.parameters import Parameters
from scaling.tasks.worker import LONGEST_ANSWER

SMALLEST, LARGEST = 4, 32
Square = list[list[int | None]]


class Grid(Generated):
    """Latin squares of `size` cells a side, the difficulty; a share `holes` of them, at least one, is to be filled in.

    A square has one solution by construction: a cell is emptied only while the cells left force its number. The score
    is the share of holes filled rightly, less one for each given number that was changed, and 1 only if all is right.
    """

    name = "grid"
    rules = ("answer-tag", "boxed")

    def __init__(self, levels: range, seed: int, holes: float) -> None:
        super().__init__(levels, seed)
        self.holes = holes

    def parameters(self) -> dict[str, Any]:
        levels = [self.levels[0], self.levels[-1]]
        return {"task": self.name, "seed": self.seed, "levels": levels, "holes": self.holes}

    def draw(self, chance: random.Random, difficulty: int) -> Drawn:
        solution = latin_square(chance, difficulty)
        puzzle = emptied(chance, solution, max(1, round(self.holes * difficulty**2)))
        question = (
            f"Fill in the empty cells, shown as dots, of this square of {difficulty} rows and {difficulty} columns so "
            f"that every row and every column has each of the numbers 1 to {difficulty} exactly once. There is one "
            f"solution.\n\n{written(puzzle)}\n\nWrite the whole square between <answer> and </answer>, a row a line, "
            "its numbers separated by spaces."
        )
        holes = sum(cell is None for row in puzzle for cell in row)
        return Drawn(question, written(solution), {"holes": holes, "puzzle": written(puzzle)})

    def judge(self, problem: Problem, answer: str) -> float:
        if len(answer) > LONGEST_ANSWER:
            return 0.0
        size = problem.meta["difficulty"]
        given, expected, found = (cells(text, size) for text in (problem.meta["puzzle"], problem.answer, answer))
        agrees = {place: found.get(place) == number for place, number in expected.items()}
        right = sum(yes for place, yes in agrees.items() if given[place] == ".")
        changed = sum(not yes for place, yes in agrees.items() if given[place] != ".")
        return max(right - changed, 0) / sum(number == "." for number in given.values())


def latin_square(chance: random.Random, size: int) -> Square:
    """The cyclic square, its rows, columns and numbers shuffled."""
    rows, columns, numbers = (chance.sample(range(size), size) for _ in range(3))
    return [[numbers[(row + column) % size] + 1 for column in columns] for row in rows]


def emptied(chance: random.Random, solution: Square, holes: int) -> Square:
    """`solution` with up to `holes` cells emptied, each of which is forced by what is left of the others.

    The number of a cell is forced if no other fits there, or it fits nowhere else in its row or its column. So whoever
    fills in the holes in the opposite order never has to guess, and there is one solution.
    """
    size = len(solution)
    square = [list(row) for row in solution]
    across = [set(row) for row in square]
    down = [set(column) for column in zip(*square, strict=True)]
    for place in chance.sample(range(size * size), size * size):
        if holes == 0:
            break
        row, column = divmod(place, size)
        number = square[row][column]
        alone = len(across[row] | down[column]) == size
        in_row = all(square[row][c] is not None or number in down[c] for c in range(size))
        in_column = all(square[r][column] is not None or number in across[r] for r in range(size))
        if alone or in_row or in_column:
            square[row][column] = None
            across[row].discard(number)
            down[column].discard(number)
            holes -= 1
    return square


def written(square: Square) -> str:
    return "\n".join(" ".join(str(cell or ".") for cell in row) for row in square)


def cells(text: str, size: int) -> dict[tuple[int, int], str]:
    """What `text` has at (row, column): rows are lines, or follow one another in a line of all cells.

    A row with too many cells says nothing, and so does a text with too many rows.
    """
    lines = [re.findall(r"[0-9]+|[.?_*]", line) for line in re.split(r"[\n;/]|\\\\", text)]
    rows = [line for line in lines if line]
    if len(rows) == 1 and len(rows[0]) == size * size:
        rows = [rows[0][start : start + size] for start in range(0, size * size, size)]
    if len(rows) > size:
        return {}
    return {(r, c): cell for r, row in enumerate(rows) if len(row) <= size for c, cell in enumerate(row)}


def make(parameters: Parameters, seed: int) -> Grid:
    """`size=6` or the ladder `size=4..9`; `holes`, the share of cells to fill in, as far as the rest forces them."""
    return Grid(parameters.levels("size", "4..9", SMALLEST, LARGEST), seed, parameters.share("holes", 0.3))

"""Multiplication of two numbers of k digits, k the difficulty: from what every model knows to what none can."""

from __future__ import annotations

import random
import re
from typing import Any

from scaling.tasks.base import Problem
from scaling.tasks.generated import Drawn, Generated
from scaling.tasks.parameters import Parameters

MOST_DIGITS = 100

# Groups of three behind one and the same separator: a comma, a space of some kind, or as LaTeX writes them.
_GROUPED = re.compile(r"[0-9]{1,3}(,|_|'|[ \u00a0\u2009\u202f]|\{,\}|\\,|\\ |\\!,)[0-9]{3}(?:\1[0-9]{3})*")


class Multiplication(Generated):
    """k×k-digit products, as in *DeepSeek-R1 Thoughtology* (2504.07128), §4.1; the answer is one exact integer."""

    name = "multiplication"

    def parameters(self) -> dict[str, Any]:
        return {"task": self.name, "seed": self.seed, "levels": [self.levels[0], self.levels[-1]]}

    def draw(self, chance: random.Random, difficulty: int) -> Drawn:
        a, b = (chance.randrange(10 ** (difficulty - 1), 10**difficulty) for _ in "ab")
        return Drawn(f"What is {a} * {b}?", str(a * b), {"factors": [str(a), str(b)]})

    def judge(self, problem: Problem, answer: str) -> float:
        return float(integer(answer) == problem.answer)


def integer(text: str) -> str | None:
    """The integer that `text` is, thousands separators taken out; None where it is anything else.

    It stays text: Python refuses to read numbers of thousands of digits, and an answer may have a million.
    """
    text = text.strip().removesuffix(".").strip("$ ")
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text.removeprefix("+"))
    if grouped := _GROUPED.fullmatch(digits):
        digits = digits.replace(grouped[1], "")
    if not re.fullmatch("[0-9]+", digits):
        return None
    return sign + (digits.lstrip("0") or "0")


def make(parameters: Parameters, seed: int) -> Multiplication:
    """`k=4`, or the ladder `digits=1..8`, which is the default."""
    return Multiplication(parameters.levels("k" if "k" in parameters else "digits", "1..8", 1, MOST_DIGITS), seed)

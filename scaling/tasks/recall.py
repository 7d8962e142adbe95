"""Self-recall: make up a code, work for long, write the code again. What was said is nowhere but in one's own words."""

from __future__ import annotations

import random
from typing import Any

from scaling.tasks.base import Problem
from scaling.tasks.generated import Drawn, Generated
from scaling.tasks.parameters import Parameters

CODE_DIGITS = 12
MOST = 1_000


class SelfRecall(Generated):
    """A fact stated, n problems, the fact restated exactly (2504.07128, §5); n is the difficulty.

    The fact is a code that the model makes up, since one of ours would stand in the query, which every chunk sees. The
    first `lead` sums come before it, so that it is not among the first tokens, which Delethink keeps too. The score is
    the share of sums that are right, 0 where the code was not restated, or not after the work.
    """

    name = "self-recall"
    rules = ("statements",)

    def __init__(self, levels: range, seed: int, lead: int) -> None:
        super().__init__(levels, seed)
        self.lead = lead

    def parameters(self) -> dict[str, Any]:
        return {"task": self.name, "seed": self.seed, "levels": [self.levels[0], self.levels[-1]], "lead": self.lead}

    def draw(self, chance: random.Random, difficulty: int) -> Drawn:
        sums = [(chance.randint(10, 99), chance.randint(10, 99)) for _ in range(self.lead + difficulty)]
        listed = "\n".join(f"{number}. {a} + {b}" for number, (a, b) in enumerate(sums, 1))
        results = [f"result {a + b}" for a, b in sums]
        code = f"<fact>the {CODE_DIGITS} digits</fact>"
        start = f"After sum {self.lead}, make" if self.lead else "Before the first sum, make"
        question = (
            "Work out these sums in their order. Explain each in a sentence or two, then write what it comes to as "
            f"<result>number</result>.\n\n{listed}\n\n{start} up a code of {CODE_DIGITS} digits at random and write it "
            f"as {code}. Do not write it again until all sums are done. Then end with the same code, digit for digit: "
            f"{code}."
        )
        expected = [*results[: self.lead], "fact …", *results[self.lead :], "fact …"]
        return Drawn(question, "\n".join(expected), {"lead": self.lead})

    def judge(self, problem: Problem, answer: str) -> float:
        n = problem.meta["difficulty"]
        said = [line for line in answer.splitlines() if line.startswith(("fact ", "result "))]
        facts = [place for place, line in enumerate(said) if _is_code(line)]
        if len(facts) < 2 or said[facts[0]] != said[facts[-1]]:
            return 0.0
        first, last = facts[0], facts[-1]
        before, between = ([line for line in part if line[0] == "r"] for part in (said[:first], said[first:last]))
        if len(between) < n or len(before) < self.lead:
            return 0.0
        expected = [line for line in problem.answer.splitlines() if line[0] == "r"]
        found = before[len(before) - self.lead :] + between[-n:]
        return sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)


def _is_code(line: str) -> bool:
    code = line.removeprefix("fact ")
    return len(code) == CODE_DIGITS and code.isascii() and code.isdigit()


def make(parameters: Parameters, seed: int) -> SelfRecall:
    """`n=10` or a ladder such as `n=1..20`: sums between the code and its return; `lead`: sums before it."""
    return SelfRecall(parameters.levels("n", "10", 1, MOST), seed, parameters.number("lead", 4, 0, MOST))

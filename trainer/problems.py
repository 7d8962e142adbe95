"""What is asked and rewarded: a task's problems as token ids, whatever the task and its tokenizer."""

from __future__ import annotations

import itertools
import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from scaling.cues import worded
from scaling.errors import UsageError, unknown
from scaling.models import end_tokens
from scaling.tasks import Problem, Task, load
from scaling.tasks.rows import Rows
from scaling.tasks.walk import Walk
from scaling.text import DEFAULT_RULES, Text
from scaling.thinking import Environment
from trainer.recipe import Recipe

KINDS = ("walk", "gym", "jsonl", "math")


class Questions(Protocol):
    """Problems by their number from 0, as what a model sees of them. `eos` ends its answer.

    `unjudged` counts the answers that the verifier gave up on, each of which was worth 0.
    """

    eos: tuple[int, ...]
    unjudged: int

    def __len__(self) -> int: ...

    def query(self, index: int) -> list[int]:
        """Token ids that the model thinks after."""
        ...

    def reward(self, index: int, responses: Sequence[Sequence[int]]) -> float:
        """0 to 1 for a finished trace, from the response tokens of each of its chunks."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of words that an environment says."""
        ...

    def step_ends(self, response: Sequence[int]) -> list[int]:
        """How many of a response's tokens are said where each of its steps ends, in rising order."""
        ...

    def save_tokenizer(self, directory: Path) -> None: ...

    def parameters(self) -> dict[str, Any]:
        """Everything that decides the problems, for the record."""
        ...

    def close(self) -> None: ...


class WalkQuestions:
    """The keyed permutation walk, in its own tokens."""

    def __init__(self, walk: Walk) -> None:
        self.walk, self.unjudged = walk, 0
        self.eos: tuple[int, ...] = (walk.tokenizer.eos,)
        self._problems = walk.problems(walk.instances)

    def __len__(self) -> int:
        return len(self._problems)

    def query(self, index: int) -> list[int]:
        return self.walk.query(self._problems[index])

    def reward(self, index: int, responses: Sequence[Sequence[int]]) -> float:
        return self.walk.reward(self._problems[index], [id for response in responses for id in response])

    def encode(self, text: str) -> list[int]:
        return self.walk.tokenizer.encode(text)

    def step_ends(self, response: Sequence[int]) -> list[int]:
        """After each comma."""
        (comma,) = self.walk.tokenizer.encode(",")
        return [said for said, id in enumerate(response, 1) if id == comma]

    def save_tokenizer(self, directory: Path) -> None:
        self.walk.tokenizer.save(directory)

    def parameters(self) -> dict[str, Any]:
        return self.walk.parameters()

    def close(self) -> None:
        self.walk.close()


class TextQuestions:
    """Any task in words, through the tokenizer and chat template of a checkpoint."""

    def __init__(self, task: Task, problems: Sequence[Problem], text: Text, eos: tuple[int, ...]) -> None:
        self.task, self.text, self.eos, self.unjudged = task, text, eos, 0
        self._problems = problems
        self._queries: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._problems)

    def query(self, index: int) -> list[int]:
        if index not in self._queries:
            self._queries[index] = self.text.query(self._problems[index].question)
        return self._queries[index]

    def reward(self, index: int, responses: Sequence[Sequence[int]]) -> float:
        answer = self.text.answer(responses)
        verdict = self.task.verify(self._problems[index], answer.text if answer else None)
        self.unjudged += verdict.error is not None
        return verdict.score

    def encode(self, text: str) -> tuple[int, ...]:
        return self.text.encode(text)

    def step_ends(self, response: Sequence[int]) -> list[int]:
        """After the token that ends a blank line, or a run of them."""
        pieces = [self.text.decode([id]) for id in response]
        ends = list(itertools.accumulate(map(len, pieces)))
        blank = re.finditer(r"\n\s*\n", "".join(pieces))
        return sorted({bisect_left(ends, found.end()) + 1 for found in blank})

    def save_tokenizer(self, directory: Path) -> None:
        self.text.tokenizer.save_pretrained(directory)

    def parameters(self) -> dict[str, Any]:
        return {**self.task.parameters(), "text": self.text.handling.record()}

    def close(self) -> None:
        self.task.close()


def questions_of(recipe: Recipe, model: Path | None) -> Questions:
    """The problems of a recipe; `model` is the checkpoint whose tokenizer reads them, where they are in words.

    Raises `UsageError` for a task that is unknown, malformed, or needs what is not installed or there.
    """
    kind, _, rest = recipe.task.partition(":")
    if kind not in KINDS:
        raise unknown("task", kind, KINDS)
    if kind == "walk":
        low, dash, high = rest.partition("-")
        if not (dash and low.isdecimal() and high.isdecimal()):
            raise UsageError(f"task {recipe.task!r} gives no range of steps; as in walk:16-32")
        return WalkQuestions(Walk(recipe.problems, recipe.seed, int(low), int(high)))
    if model is None:
        raise UsageError(f"task {recipe.task!r} is in words, and model {recipe.model!r} reads none; give a checkpoint")
    if not rest:
        raise UsageError(f"task {recipe.task!r} names nothing; as in gym:chain_sum or jsonl:problems.jsonl")
    if kind == "gym":
        task: Task = load(rest, seed=recipe.seed)
        text = Text(model, instruction=recipe.instruction, rules=task.rules or DEFAULT_RULES)
        return TextQuestions(task, task.problems(recipe.problems), text, end_tokens(model))
    text = Text(model, instruction=recipe.instruction)
    rows = Rows(rest, "math" if kind == "math" else "exact", limit=recipe.problems)
    return TextQuestions(rows, rows.problems(len(rows)), text, end_tokens(model))


def environment_of(recipe: Recipe, questions: Questions) -> Environment:
    """The recipe's environment, its words as the questions' tokenizer spells them."""
    return worded(recipe.environment, questions.encode, cue=recipe.cue, stop=recipe.stop)


def longest(recipe: Recipe, questions: Questions) -> int:
    """Most tokens that one prompt and its response come to."""
    environment = environment_of(recipe, questions)
    query = max(len(questions.query(index)) for index in range(len(questions)))
    lengths = environment.expected_lengths(query, environment.budget)
    return max(s.prompt + s.decode for s in environment.schedule(query, lengths))


def order(count: int, seed: int, start: int, wanted: int) -> list[int]:
    """Problems number `start` … `start` + `wanted` of an endless sequence: all `count`, newly shuffled each epoch."""
    chosen: list[int] = []
    while len(chosen) < wanted:
        epoch, at = divmod(start + len(chosen), count)
        shuffled = random.Random(f"{seed}/{epoch}").sample(range(count), count)
        chosen += shuffled[at : at + wanted - len(chosen)]
    return chosen

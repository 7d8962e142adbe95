"""Cutting a trace off at b thinking tokens is what a budget of b would have given, where nothing is left to chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.rollout import Sampling, Trace, rollout
from scaling.tasks import Problem, Verdict
from scaling.text import Text
from scaling.thinking import BudgetForcing, Carryover, Chunk, Delethink, Environment, LongCoT
from studies.trimming import scores, trim

CHUNKS = [Chunk((1,), (5, 6, 7), "length"), Chunk((1, 7), (8, 9), "stop")]
QUESTIONS = [f"{number} and {number * number}" for number in range(8)]
ENDS = tuple(range(1, 258, 40))
"""Tokens that end a trace of the random model, which knows no end: some do soon, some late, some never."""


class Lengths:
    """A task whose verdict changes with every token of an answer."""

    def score(self, problem: Problem, answer: str | None) -> float:
        return len(answer or "") % 7 / 7


class Thinker:
    """A model with seeds of its own: the same question and environment always give the same trace."""

    def __init__(self, path: Path) -> None:
        self.text = Text(path, rules=("last-line",))
        self._engine = LocalEngine(Decoder.load(path), max_sequences=4, max_length=256, eos=ENDS)

    def think(self, environment: Environment, question: str, temperature: float = 0.0) -> Trace:
        sampling = Sampling(temperature, seed=QUESTIONS.index(question))
        return rollout(self._engine, environment, [self.text.query(question)], sampling=sampling)[0]

    def scores(self, trace: Trace, budgets: list[int]) -> dict[int, float]:
        return scores(trace.chunks, Problem("p", "?", ""), budgets, text=self.text, task=Lengths())


@pytest.fixture(scope="module")
def thinker(chat_model: Path) -> Thinker:
    return Thinker(chat_model)


def check_equal(
    thinker: Thinker, longest: Environment, shorter: Environment, question: str, temperature: float
) -> None:
    whole, rerun = thinker.think(longest, question, temperature), thinker.think(shorter, question, temperature)
    assert trim(whole.chunks, shorter.budget) == rerun.chunks
    assert thinker.scores(whole, [shorter.budget]) == thinker.scores(rerun, [shorter.budget])


QUESTION = st.sampled_from(QUESTIONS)
TEMPERATURE = st.sampled_from([0.0, 0.0, 1.0])
"""Mostly greedy; seeds that belong to a trace and its chunks leave nothing to chance either."""


@settings(max_examples=60)
@given(question=QUESTION, temperature=TEMPERATURE, budget=st.integers(1, 60))
def test_longcot_cut_anywhere_is_longcot_with_that_budget(
    thinker: Thinker, question: str, temperature: float, budget: int
) -> None:
    check_equal(thinker, LongCoT(60), LongCoT(budget), question, temperature)


@settings(max_examples=60)
@given(
    question=QUESTION,
    temperature=TEMPERATURE,
    context=st.integers(4, 16),
    share=st.floats(0.2, 0.8),
    iterations=st.integers(1, 8),
    carryover=st.sampled_from(get_args(Carryover)),
)
def test_delethink_cut_at_its_budgets_is_delethink_with_fewer_chunks(
    thinker: Thinker,
    question: str,
    temperature: float,
    context: int,
    share: float,
    iterations: int,
    carryover: Carryover,
) -> None:
    state = max(1, int(share * context))
    head = min(1, context - state - 1, state - 1)
    longest, shorter = (Delethink(context, state, most, head, carryover) for most in (8, iterations))
    check_equal(thinker, longest, shorter, question, temperature)


def test_the_traces_above_end_soon_and_late_and_not_at_all(thinker: Thinker) -> None:
    """Else the equalities would say little."""
    traces = [thinker.think(LongCoT(60), question) for question in QUESTIONS]
    assert len({trace.thinking_tokens for trace in traces}) >= 4
    assert {trace.chunks[-1].finish for trace in traces} == {"stop", "length"}
    assert len({score for trace in traces for score in thinker.scores(trace, [60]).values()}) >= 3


def test_a_cut_inside_a_chunk_drops_what_follows_and_has_not_ended() -> None:
    assert trim(CHUNKS, 4) == [CHUNKS[0], Chunk((1, 7), (8,), "length")]
    assert trim(CHUNKS, 2) == [Chunk((1,), (5, 6), "length")]


def test_a_cut_at_a_boundary_takes_no_empty_chunk() -> None:
    assert trim(CHUNKS, 3) == [CHUNKS[0]]


def test_a_budget_that_was_not_reached_leaves_the_trace_as_it_is() -> None:
    assert trim(CHUNKS, 5) == CHUNKS
    assert trim(CHUNKS, 99) == CHUNKS


def test_an_end_of_thinking_that_was_suppressed_gives_no_answer(chat_model: Path) -> None:
    text, forcing = Text(chat_model), BudgetForcing(100, 1, cue=(7,))
    text.handling = replace(text.handling, thinks=True)
    query, early, late = (1,), text.encode("it is 7</think>"), text.encode(" no: 8</think> 9")
    first = Chunk(query, early, "stop")
    turn = forcing.next(query, [first])
    assert turn is not None
    chunks = [first, Chunk(turn.prompt, late, "stop")]
    budgets = [len(early) + 6, len(early + late)]
    judged: list[str | None] = []

    class Task:
        def score(self, problem: Problem, answer: str | None) -> float:
            judged.append(answer)
            return float(answer == problem.answer)

    assert list(scores(chunks, Problem("p", "?", "9"), budgets, text=text, task=Task()).values()) == [0.0, 1.0]
    assert judged == [None, "9"]


class Counting:
    """The walk's verifier, counting what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    def score(self, problem: Problem, answer: str | None) -> float:
        self.asked.append(answer)
        return Verdict(float(answer == problem.answer)).score


def test_equal_answers_are_judged_once_and_known_ones_not_again(chat_model: Path) -> None:
    text, task = Text(chat_model), Counting()
    thought = tuple(text.tokenizer(r"\boxed{12} so it is 7 or so; \boxed{13}")["input_ids"])
    problem = Problem("p", "?", "12")
    budgets = [5, 10, 15, 19, len(thought)]
    found = scores([Chunk((), thought, "stop")], problem, budgets, text=text, task=task, known={"13": 0.0})
    assert found == {5: 0.0, 10: 1.0, 15: 1.0, 19: 1.0, len(thought): 0.0}
    assert task.asked == [r"\boxe", "12"]

"""Cutting a trace off at b thinking tokens is what a budget of b would have given, where nothing is left to chance."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.rollout import Sampling, Trace, rollout
from scaling.tasks import Problem, Verdict
from scaling.tasks.walk import Walk
from scaling.text import Text
from scaling.thinking import Chunk, Delethink, Environment, LongCoT
from studies.trimming import scores, trim

QUESTIONS = 6
CHUNKS = [Chunk((1,), (5, 6, 7), "length"), Chunk((1, 7), (8, 9), "stop")]


class Greedy:
    """One model that thinks greedily: the same question and environment always give the same trace."""

    def __init__(self, path: Path) -> None:
        self.walk = Walk(QUESTIONS, 0, 0, 12)
        self.text = Text(path, rules=("last-line",))
        self.problems = self.walk.problems(QUESTIONS)
        self._engine = LocalEngine(Decoder.load(path), max_sequences=4, max_length=128, eos=(1,))

    def think(self, environment: Environment, question: int) -> Trace:
        query = self.text.query(self.problems[question].question)
        return rollout(self._engine, environment, [query], sampling=Sampling(temperature=0.0))[0]

    def scores(self, trace: Trace, question: int, budgets: list[int]) -> dict[int, float]:
        return scores(trace.chunks, self.problems[question], budgets, text=self.text, task=self.walk)


@pytest.fixture(scope="module")
def greedy(walker: Path) -> Greedy:
    return Greedy(walker)


def check_equal(greedy: Greedy, question: int, longest: Environment, shorter: Environment) -> None:
    whole, rerun = greedy.think(longest, question), greedy.think(shorter, question)
    assert trim(whole.chunks, shorter.budget) == rerun.chunks
    earned = greedy.scores(whole, question, [shorter.budget])[shorter.budget]
    assert earned == greedy.scores(rerun, question, [shorter.budget])[shorter.budget]


@settings(max_examples=40)
@given(question=st.integers(0, QUESTIONS - 1), budget=st.integers(1, 60))
def test_longcot_cut_anywhere_is_longcot_with_that_budget(greedy: Greedy, question: int, budget: int) -> None:
    check_equal(greedy, question, LongCoT(60), LongCoT(budget))


@settings(max_examples=40)
@given(
    question=st.integers(0, QUESTIONS - 1),
    context=st.integers(4, 16),
    share=st.floats(0.2, 0.8),
    iterations=st.integers(1, 8),
    carryover=st.sampled_from(["algorithm1", "chunkwise", "untrimmed"]),
)
def test_delethink_cut_at_its_budgets_is_delethink_with_fewer_chunks(
    greedy: Greedy, question: int, context: int, share: float, iterations: int, carryover: str
) -> None:
    state = max(1, int(share * context))
    longest = Delethink(context, state, 8, 1 if context - state > 1 else 0, carryover)
    shorter = Delethink(context, state, iterations, longest.head, carryover)
    check_equal(greedy, question, longest, shorter)


def test_the_walks_above_end_by_themselves_and_not_and_are_right_and_wrong(greedy: Greedy) -> None:
    """Else the equalities would say little."""
    traces = [greedy.think(LongCoT(8), question) for question in range(QUESTIONS)]
    assert {trace.chunks[-1].finish for trace in traces} == {"stop", "length"}
    assert {score for i, trace in enumerate(traces) for score in greedy.scores(trace, i, [8]).values()} == {0.0, 1.0}


def test_a_cut_inside_a_chunk_drops_what_follows_and_has_not_ended() -> None:
    assert trim(CHUNKS, 4) == [CHUNKS[0], Chunk((1, 7), (8,), "length")]
    assert trim(CHUNKS, 2) == [Chunk((1,), (5, 6), "length")]


def test_a_cut_at_a_boundary_takes_no_empty_chunk() -> None:
    assert trim(CHUNKS, 3) == [CHUNKS[0]]


def test_a_budget_that_was_not_reached_leaves_the_trace_as_it_is() -> None:
    assert trim(CHUNKS, 5) == CHUNKS
    assert trim(CHUNKS, 99) == CHUNKS


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

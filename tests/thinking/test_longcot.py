"""LongCoT: one turn, nothing forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import UsageError
from scaling.thinking import Chunk, LongCoT, Segment, Turn

QUERY = (101, 102, 103)


def test_the_query_is_the_only_prompt_and_the_budget_its_only_limit() -> None:
    assert LongCoT(8).next(QUERY, []) == Turn(QUERY, max_tokens=8, stop=(), reused=0)


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_trace_is_one_chunk(finish: str) -> None:
    done = Chunk(QUERY, (1, 2, 3), finish)  # type: ignore[arg-type]
    assert LongCoT(8).next(QUERY, [done]) is None


def test_it_costs_one_prefill_of_the_query_and_then_decoding() -> None:
    assert LongCoT(8).schedule(3, [5]) == [Segment(reused=0, prefill=3, decode=5)]
    assert LongCoT(8).schedule(3, []) == []


def test_a_segment_decodes_one_step_less_than_its_tokens() -> None:
    """The prefill gives the first response token, and the last one is never fed back."""
    segment = Segment(reused=2, prefill=3, decode=5)
    assert (segment.prompt, segment.steps) == (5, 4)
    assert Segment(0, 3, 0).steps == 0


@given(budget=st.integers(1, 200_000), data=st.data())
def test_expected_lengths_are_the_thinking_tokens(budget: int, data: st.DataObject) -> None:
    thinking = data.draw(st.integers(1, budget))
    assert LongCoT(budget).expected_lengths(3, thinking) == [thinking]


def test_parameters_record_the_whole_environment() -> None:
    environment = LongCoT(8)
    assert environment.parameters() == {"budget": 8}
    assert LongCoT(**environment.parameters()) == environment  # type: ignore[arg-type]
    assert environment.name == "longcot"


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_must_be_positive(budget: int) -> None:
    with pytest.raises(UsageError, match=f"thinking budget {budget} is not positive; give at least 1"):
        LongCoT(budget)


@pytest.mark.parametrize("thinking", [0, 9])
def test_thinking_outside_the_budget_is_refused(thinking: int) -> None:
    with pytest.raises(UsageError, match=f"{thinking} thinking tokens do not fit a budget of 8"):
        LongCoT(8).expected_lengths(3, thinking)


def test_two_response_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="one chunk, got 2 response lengths"):
        LongCoT(8).schedule(3, [4, 4])

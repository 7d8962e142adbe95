"""What every environment owes: its schedule is what executing it costs, and its parameters are all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import UsageError
from scaling.thinking import (
    DEFAULT_MODES,
    MODES,
    BudgetForcing,
    Chunk,
    Delethink,
    Environment,
    Folding,
    LongCoT,
    Summary,
    check_options,
    for_budget,
    rebuilt,
    standing,
)

SIZES = {"context_size": 16, "state_size": 8, "head": 3, "carryover": "algorithm1"}
EOS = 1


@st.composite
def environments(draw: st.DrawFn) -> Environment:
    mode = draw(st.sampled_from(MODES))
    if mode in ("longcot", "budget-forcing"):
        budget = draw(st.integers(1, 60))
        if mode == "longcot":
            return LongCoT(budget)
        cue = tuple(draw(st.lists(st.integers(20, 29), min_size=1, max_size=3)))
        return BudgetForcing(budget, draw(st.integers(1, 4)), cue, stop=draw(st.sampled_from([(), (11,)])))
    context, rounds = draw(st.integers(2, 20)), draw(st.integers(1, 4))
    kept = draw(st.integers(1, context - 1))
    if mode == "delethink":
        return Delethink(context, kept, rounds, draw(st.integers(0, context - kept - 1)))
    if mode == "folding":
        return Folding(context, kept, rounds, opening=11, closing=12)
    return Summary(context, kept, rounds, cue=tuple(draw(st.lists(st.integers(20, 29), max_size=3))), stop=(12,))


def execute(environment: Environment, query: Sequence[int], said: st.DataObject) -> list[Chunk]:
    """A trace whose every token is drawn; one that is the end of sequence or among a turn's `stop` ends its chunk."""
    chunks: list[Chunk] = []
    while (turn := environment.next(query, chunks)) is not None:
        assert turn.max_tokens > 0
        before = chunks[-1] if chunks else None
        if turn.reused:
            assert before is not None
            assert turn.prompt[: turn.reused] == (before.prompt + before.response)[:-1]
            assert turn.reused == len(before.prompt) + len(before.response) - 1 < len(turn.prompt)
        response: list[int] = []
        while len(response) < turn.max_tokens and (not response or response[-1] not in (EOS, *turn.stop)):
            response.append(said.draw(st.sampled_from([5, 6, 7, 8, 9, 11, 12, EOS])))
        ended = response[-1] in (EOS, *turn.stop)
        chunks.append(Chunk(turn.prompt, tuple(response), "stop" if ended else "length"))
    return chunks


@given(environment=environments(), query_len=st.integers(1, 4), said=st.data())
def test_schedule_of_what_was_sampled_is_what_executing_processed(
    environment: Environment, query_len: int, said: st.DataObject
) -> None:
    query = tuple(range(-query_len, 0))
    chunks = execute(environment, query, said)
    segments = environment.schedule(query_len, [len(chunk.response) for chunk in chunks])
    turns = [environment.next(query, chunks[:done]) for done in range(len(chunks))]
    assert [(s.prompt, s.reused) for s in segments] == [(len(t.prompt), t.reused) for t in turns if t is not None]
    assert [s.decode for s in segments] == [len(chunk.response) for chunk in chunks]
    assert sum(len(chunk.response) for chunk in chunks) <= environment.budget


@given(environment=environments(), data=st.data())
def test_expected_lengths_are_a_trace_that_thinks_so_long(environment: Environment, data: st.DataObject) -> None:
    thinking = data.draw(st.integers(1, environment.budget))
    lengths = environment.expected_lengths(3, thinking)
    assert sum(lengths) == thinking
    chunks: list[Chunk] = []
    for length in lengths:
        turn = environment.next((1, 2, 3), chunks)
        assert turn is not None
        assert length <= turn.max_tokens
        chunks.append(Chunk(turn.prompt, (5,) * length, "length"))  # as measured: no token ends anything


@given(environment=environments(), data=st.data())
def test_a_shorter_trace_is_the_beginning_of_a_longer_one(environment: Environment, data: st.DataObject) -> None:
    """The planner lets every trace of a step stop on the way through the longest one's schedule."""
    longest = environment.expected_lengths(3, environment.budget)
    *whole, last = environment.expected_lengths(3, data.draw(st.integers(1, environment.budget)))
    assert longest[: len(whole)] == whole
    assert last <= longest[len(whole)]


@given(environment=environments())
def test_parameters_record_the_whole_environment(environment: Environment) -> None:
    assert rebuilt(environment.name, environment.parameters()) == environment
    assert all(isinstance(value, int | str) for value in environment.parameters().values())


@given(environment=environments(), thinking=st.integers(61, 99) | st.just(0))
def test_thinking_outside_the_budget_is_refused(environment: Environment, thinking: int) -> None:
    if thinking and environment.budget >= thinking:
        return
    with pytest.raises(UsageError, match=f"{thinking} thinking tokens do not fit a budget of {environment.budget}"):
        environment.expected_lengths(3, thinking)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("budget", [1, 16, 17, 100])
def test_every_mode_has_an_environment_for_a_budget(mode: str, budget: int) -> None:
    made = for_budget(mode, budget, **SIZES)  # type: ignore[arg-type]
    assert made.name == mode
    assert made.budget >= budget
    assert sum(made.expected_lengths(3, budget)) == budget


def test_options_of_an_environment_are_kept_and_have_defaults() -> None:
    def made(mode: str, **options: int) -> Environment:
        return for_budget(mode, 40, **SIZES, **options)  # type: ignore[arg-type]

    assert made("summary") == Summary(16, 2, 3)  # C/8
    assert made("summary", summary_size=4, cue_tokens=3) == Summary(16, 4, 3, cue=(0, 0, 0))
    assert made("folding", summary_size=4) == Folding(16, 4, 3)
    assert made("budget-forcing") == BudgetForcing(40, 1, cue=(0,))
    assert made("budget-forcing", extensions=4, cue_tokens=2) == BudgetForcing(40, 4, cue=(0, 0))


def test_two_modes_are_compared_where_none_is_named() -> None:
    assert DEFAULT_MODES == ("longcot", "delethink")


@pytest.mark.parametrize(
    ("given", "owners"),
    [("summary_size", "summary or folding"), ("extensions", "budget-forcing"), ("cue", "summary or budget-forcing")],
)
def test_an_option_of_one_mode_is_refused_without_it(given: str, owners: str) -> None:
    with pytest.raises(UsageError, match=f"--{given.replace('_', '-')} goes with --mode {owners}"):
        check_options(("longcot", "delethink"), {given: 1})
    check_options(("longcot", "summary", "budget-forcing"), {given: 1})
    check_options(("longcot",), {given: None})


def test_an_unknown_mode_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="unknown mode 'sumary'; did you mean summary"):
        check_options(("sumary",), {})
    with pytest.raises(UsageError, match="unknown mode 'budget_forcing'; did you mean budget-forcing"):
        for_budget("budget_forcing", 10, **SIZES)  # type: ignore[arg-type]


def test_a_cue_says_something() -> None:
    with pytest.raises(UsageError, match="a cue of 0 tokens says nothing"):
        for_budget("summary", 10, cue_tokens=0, **SIZES)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the cue is empty"):
        BudgetForcing(10, 1, cue=())


@given(environments(), st.data())
def test_what_stands_of_a_trace_is_what_its_own_prompts_hold(environment: Environment, data: st.DataObject) -> None:
    query = (-1, -2)
    chunks = execute(environment, query, data)
    for done, (chunk, after, stands) in enumerate(zip(chunks, chunks[1:], standing(chunks), strict=False), 1):
        turn = environment.next(query, chunks[:done])
        assert turn is not None
        whole = not turn.reused or after.prompt[: turn.reused + 1] == chunk.prompt + chunk.response
        if turn.reused or not isinstance(environment, Folding):  # a fold may put its marker behind an empty thought
            assert stands == (chunk.response if whole else chunk.response[:-1])
    assert standing(chunks)[-1] == chunks[-1].response

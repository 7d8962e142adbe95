"""Delethink: chunk by chunk, worked by hand on contexts of ten tokens, then as properties of any size.

The query is q = (-1, -2). Response tokens are numbered 0, 1, 2, … through a trace, so a prompt shows at a glance
which thoughts it kept.
"""

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import UsageError
from scaling.thinking import Carryover, Chunk, Delethink, Segment, Turn

Q = (-1, -2)
K = 1024


def execute(
    environment: Delethink,
    lengths: Sequence[int] | None = None,
    stop_after: int | None = None,
    query: Sequence[int] = Q,
) -> list[Chunk]:
    """The trace of a policy that answers 0, 1, 2, …: full chunks, or `lengths`; EOS ends chunk `stop_after`."""
    chunks: list[Chunk] = []
    thought = 0
    while (turn := environment.next(query, chunks)) is not None:
        length = turn.max_tokens if lengths is None else min(lengths[len(chunks)], turn.max_tokens)
        response = tuple(range(thought, thought + length))
        thought += length
        chunks.append(Chunk(turn.prompt, response, "stop" if len(chunks) + 1 == stop_after else "length"))
    return chunks


def carried(chunks: Sequence[Chunk]) -> list[tuple[int, ...]]:
    """What each prompt keeps after the query."""
    assert all(chunk.prompt[: len(Q)] == Q for chunk in chunks)
    return [chunk.prompt[len(Q) :] for chunk in chunks]


# C = 8, m = 3: responses 0–7, 8–12, 13–17, 18–22; head 2
SMALL_STATE: dict[Carryover, list[tuple[int, ...]]] = {
    "algorithm1": [(), (0, 1, 5, 6, 7), (0, 1, 10, 11, 12), (0, 1, 15, 16, 17)],
    "chunkwise": [(), (0, 1, 5, 6, 7), (0, 1, 10, 11, 12), (0, 1, 15, 16, 17)],
    "recipe": [(), (0, 1, 7), (0, 1, 12), (0, 1, 17)],
    "untrimmed": [(), (0, 1, 5, 6, 7), (0, 1, 5, 6, 10, 11, 12), (0, 1, 5, 6, 10, 11, 15, 16, 17)],
}

# C = 8, m = 6, so m > C−m: responses 0–7, 8–9, 10–11, 12–13, 14–15; head 1
LARGE_STATE: dict[Carryover, list[tuple[int, ...]]] = {
    "algorithm1": [(), (0, 2, 3, 4, 5, 6, 7), (0, 8, 9), (0, 10, 11), (0, 12, 13)],
    "chunkwise": [
        (),
        (0, 2, 3, 4, 5, 6, 7),
        (0, 4, 5, 6, 7, 8, 9),
        (0, 6, 7, 8, 9, 10, 11),
        (0, 8, 9, 10, 11, 12, 13),
    ],
    "recipe": [(), (0, 3, 4, 5, 6, 7), (0, 5, 6, 7, 8, 9), (0, 7, 8, 9, 10, 11), (0, 9, 10, 11, 12, 13)],
    "untrimmed": [(), (0, 2, 3, 4, 5, 6, 7), (0, 2, 8, 9), (0, 2, 8, 10, 11), (0, 2, 8, 10, 12, 13)],
}

# C = 8, m = 3 without a head
NO_HEAD: dict[Carryover, list[tuple[int, ...]]] = {
    "algorithm1": [(), (5, 6, 7), (10, 11, 12), (15, 16, 17)],
    "chunkwise": [(), (5, 6, 7), (10, 11, 12), (15, 16, 17)],
    "recipe": [(), (5, 6, 7), (10, 11, 12), (15, 16, 17)],
    "untrimmed": [(), (5, 6, 7), (10, 11, 12), (15, 16, 17)],
}

CARRYOVERS = get_args(Carryover)


class TestWorkedByHand:
    @pytest.mark.parametrize("carryover", CARRYOVERS)
    def test_state_smaller_than_the_fresh_part(self, carryover: Carryover) -> None:
        chunks = execute(Delethink(8, 3, 4, head=2, carryover=carryover))
        assert carried(chunks) == SMALL_STATE[carryover]
        assert [chunk.response for chunk in chunks] == [
            (0, 1, 2, 3, 4, 5, 6, 7),
            (8, 9, 10, 11, 12),
            (13, 14, 15, 16, 17),
            (18, 19, 20, 21, 22),
        ]

    @pytest.mark.parametrize("carryover", CARRYOVERS)
    def test_state_larger_than_the_fresh_part(self, carryover: Carryover) -> None:
        assert carried(execute(Delethink(8, 6, 5, head=1, carryover=carryover))) == LARGE_STATE[carryover]

    @pytest.mark.parametrize("carryover", CARRYOVERS)
    def test_without_a_head(self, carryover: Carryover) -> None:
        assert carried(execute(Delethink(8, 3, 4, head=0, carryover=carryover))) == NO_HEAD[carryover]

    def test_the_first_turn_may_fill_the_context_and_later_ones_what_the_state_leaves(self) -> None:
        environment = Delethink(8, 3, 4, head=2)
        first = environment.next(Q, [])
        assert first == Turn(Q, max_tokens=8, stop=(), reused=0)
        second = environment.next(Q, [Chunk(Q, tuple(range(8)), "length")])
        assert second == Turn((*Q, 0, 1, 5, 6, 7), max_tokens=5, stop=(), reused=0)

    @pytest.mark.parametrize("carryover", CARRYOVERS)
    def test_eos_in_mid_chunk_ends_the_trace(self, carryover: Carryover) -> None:
        chunks = execute(Delethink(8, 3, 4, head=2, carryover=carryover), lengths=[8, 5, 2], stop_after=3)
        assert carried(chunks) == SMALL_STATE[carryover][:3]
        assert chunks[-1].response == (13, 14)

    def test_eos_on_the_last_token_that_a_chunk_may_have_ends_the_trace_too(self) -> None:
        assert len(execute(Delethink(8, 3, 4, head=2), stop_after=1)) == 1

    def test_the_iteration_cap_ends_the_trace(self) -> None:
        assert len(execute(Delethink(8, 3, 1, head=2))) == 1
        assert len(execute(Delethink(8, 3, 3, head=2))) == 3

    def test_a_first_response_shorter_than_head_and_state_is_kept_twice_where_they_overlap(self) -> None:
        """An engine's own length limit may end a chunk early; Algorithm 1 takes head and tail all the same."""
        assert carried(execute(Delethink(8, 3, 2, head=2), lengths=[4, 5])) == [(), (0, 1, 1, 2, 3)]
        assert carried(execute(Delethink(8, 4, 2, head=2, carryover="recipe"), lengths=[3, 4])) == [(), (0, 1, 2)]

    def test_schedule_counts_what_those_prompts_hold(self) -> None:
        assert Delethink(8, 3, 4, head=2).schedule(2, [8, 5, 2]) == [
            Segment(0, 2, 8),
            Segment(0, 7, 5),
            Segment(0, 7, 2),
        ]
        assert Delethink(8, 6, 5, head=1).schedule(2, [8, 2, 2]) == [
            Segment(0, 2, 8),
            Segment(0, 9, 2),
            Segment(0, 5, 2),
        ]
        assert Delethink(8, 3, 3, head=2).schedule(2, []) == []

    def test_expected_lengths_fill_chunk_after_chunk(self) -> None:
        environment = Delethink(8, 3, 4, head=2)
        assert environment.expected_lengths(2, 6) == [6]
        assert environment.expected_lengths(2, 8) == [8]
        assert environment.expected_lengths(2, 9) == [8, 1]
        assert environment.expected_lengths(2, 23) == [8, 5, 5, 5]

    def test_the_carried_state_is_all_that_the_next_chunk_knows(self) -> None:
        """Two pasts that agree on head and last m tokens lead to the same prompt: the trace is Markovian."""
        environment = Delethink(8, 3, 4, head=2)
        one = Chunk(Q, (0, 1, 2, 3, 4, 5, 6, 7), "length")
        other = Chunk(Q, (0, 1, 9, 9, 9, 5, 6, 7), "length")
        assert environment.next(Q, [one]) == environment.next(Q, [other])


class TestPublishedSettings:
    """Delethink's numbers in *The Markovian Thinker*, arXiv 2510.06557v3, §4.1 and its ablations."""

    def test_24k(self) -> None:
        environment = Delethink(8192, 4096, 5)
        assert environment == Delethink()
        assert environment.budget == 24 * K
        assert environment.expected_lengths(100, 24 * K) == [8192, 4096, 4096, 4096, 4096]
        assert [s.prefill for s in environment.schedule(100, [8192, 4096, 4096, 4096, 4096])] == [100] + [4296] * 4

    def test_96k(self) -> None:
        assert Delethink(8192, 4096, 23).budget == 96 * K
        assert Delethink.for_length(96 * K, 8192, 4096, head=100).iterations == 23

    @pytest.mark.parametrize(
        ("state_k", "iterations", "budget_k"),
        [(1, 6, 43), (2, 7, 44), (3, 8, 43), (4, 10, 44), (5, 13, 44), (6, 19, 44), (7, 37, 44)],
    )
    def test_state_ablation(self, state_k: int, iterations: int, budget_k: int) -> None:
        assert Delethink(8 * K, state_k * K, iterations).budget == budget_k * K

    @pytest.mark.parametrize("context_k", [2, 4, 8])
    def test_context_ablation_keeps_half_as_state(self, context_k: int) -> None:
        environment = Delethink.for_length(24 * K, context_k * K, context_k * K // 2, head=100)
        assert environment.budget == 24 * K

    def test_the_training_recipe_has_prompts_of_one_size(self) -> None:
        """Head 100 and tail C/2 − 100 of the authors' training recipe together are the state m = C/2."""
        recipe = Delethink(carryover="recipe")
        assert [s.prefill for s in recipe.schedule(100, recipe.expected_lengths(100, 24 * K))] == [100] + [4196] * 4


class TestBadParameters:
    @pytest.mark.parametrize("state", [8, 9])
    def test_a_state_must_leave_room_to_think(self, state: int) -> None:
        with pytest.raises(UsageError, match=f"state size {state} must be below context size 8"):
            Delethink(8, state, 5, head=1)
        with pytest.raises(UsageError, match=f"state size {state} must be below context size 8"):
            Delethink.for_length(20, 8, state, head=1)

    @pytest.mark.parametrize("head", [5, 6, -1])
    def test_a_head_must_be_smaller_than_the_fresh_part(self, head: int) -> None:
        with pytest.raises(UsageError, match=f"head {head} must be at least 0 and below .* = 5; the paper uses 100"):
            Delethink(8, 3, 5, head=head)
        assert Delethink(8, 3, 5, head=4).head == 4

    def test_a_recipe_needs_a_tail(self) -> None:
        with pytest.raises(UsageError, match="head 3 must be below state size 3 with carryover 'recipe'"):
            Delethink(8, 3, 5, head=3, carryover="recipe")

    def test_a_state_must_be_positive(self) -> None:
        with pytest.raises(UsageError, match="state size 0 is not positive; the paper uses half"):
            Delethink(8, 0, 5, head=1)

    def test_there_must_be_an_iteration(self) -> None:
        with pytest.raises(UsageError, match="iterations 0 is not positive; the paper's 24K setting has 5"):
            Delethink(8, 3, 0, head=1)

    def test_an_unknown_carryover_names_its_neighbours(self) -> None:
        with pytest.raises(UsageError, match="unknown carryover 'algorithm'; did you mean algorithm1"):
            Delethink(8, 3, 5, head=1, carryover="algorithm")  # type: ignore[arg-type]

    @pytest.mark.parametrize("thinking", [0, 29])
    def test_thinking_outside_the_budget_is_refused(self, thinking: int) -> None:
        with pytest.raises(UsageError, match=rf"{thinking} thinking tokens do not fit a budget of 28 \(5 iterations\)"):
            Delethink(8, 3, 5, head=1).expected_lengths(2, thinking)

    def test_more_responses_than_iterations_are_refused(self) -> None:
        with pytest.raises(UsageError, match="3 response lengths, but iterations is 2"):
            Delethink(8, 3, 2, head=1).schedule(2, [8, 5, 5])


@st.composite
def environments(draw: st.DrawFn, carryovers: Sequence[Carryover] = CARRYOVERS) -> Delethink:
    carryover = draw(st.sampled_from(carryovers))
    context = draw(st.integers(2, 40))
    state = draw(st.integers(1, context - 1))
    most = context - state - 1 if carryover != "recipe" else min(context - state, state) - 1
    return Delethink(context, state, draw(st.integers(1, 9)), draw(st.integers(0, most)), carryover)


class TestProperties:
    @given(environment=environments(), query_len=st.integers(1, 5), data=st.data())
    def test_schedule_of_what_was_sampled_is_what_executing_processed(
        self, environment: Delethink, query_len: int, data: st.DataObject
    ) -> None:
        lengths = data.draw(
            st.lists(st.integers(1, environment.context_size), min_size=environment.iterations, max_size=9)
        )
        stop_after = data.draw(st.none() | st.integers(1, environment.iterations))
        chunks = execute(environment, lengths, stop_after, query=range(-query_len, 0))
        segments = environment.schedule(query_len, [len(chunk.response) for chunk in chunks])
        assert [s.prompt for s in segments] == [len(chunk.prompt) for chunk in chunks]
        assert [s.decode for s in segments] == [len(chunk.response) for chunk in chunks]
        assert [s.reused for s in segments] == [0] * len(chunks)
        assert len(chunks) == (stop_after or environment.iterations)

    @given(environment=environments())
    def test_a_trace_that_never_stops_thinks_the_budget(self, environment: Delethink) -> None:
        c, m, i = environment.context_size, environment.state_size, environment.iterations
        assert environment.budget == c + (i - 1) * (c - m)
        assert sum(len(chunk.response) for chunk in execute(environment)) == environment.budget

    @given(environment=environments(), data=st.data())
    def test_expected_lengths_are_a_trace_that_thinks_so_long(
        self, environment: Delethink, data: st.DataObject
    ) -> None:
        thinking = data.draw(st.integers(1, environment.budget))
        lengths = environment.expected_lengths(len(Q), thinking)
        assert sum(lengths) == thinking
        chunks = execute(environment, lengths, stop_after=len(lengths))
        assert [len(chunk.response) for chunk in chunks] == lengths  # `execute` never exceeds a turn's max_tokens

    @given(environment=environments(), data=st.data())
    def test_for_length_takes_the_fewest_iterations(self, environment: Delethink, data: st.DataObject) -> None:
        thinking = data.draw(st.integers(1, 500))
        c, m = environment.context_size, environment.state_size
        made = Delethink.for_length(thinking, c, m, environment.head, environment.carryover)
        assert made.budget >= thinking
        assert made.iterations == 1 or made.budget - (c - m) < thinking

    @given(environment=environments(("algorithm1", "chunkwise", "recipe")))
    def test_prompts_are_bounded_however_long_the_trace(self, environment: Delethink) -> None:
        kept = environment.state_size + (environment.head if environment.carryover != "recipe" else 0)
        for chunk in execute(environment):
            assert len(chunk.prompt) <= len(Q) + kept
            assert len(chunk.prompt) + len(chunk.response) <= len(Q) + environment.head + environment.context_size

    @given(environment=environments(("untrimmed",)))
    def test_untrimmed_prompts_grow_by_a_head_a_chunk(self, environment: Delethink) -> None:
        """Where the fresh part is no smaller than the state; elsewhere the state shrinks once to the fresh part."""
        prompts = [len(chunk.prompt) - len(Q) for chunk in execute(environment)]
        fresh = environment.context_size - environment.state_size
        if fresh >= environment.state_size:
            kept = min(environment.head, environment.state_size)
            assert prompts[1:] == [
                environment.head + environment.state_size + kept * n for n in range(environment.iterations - 1)
            ]

    @given(environment=environments(("algorithm1",)))
    def test_chunkwise_is_algorithm_1_where_a_response_holds_the_state(self, environment: Delethink) -> None:
        c, m, i, h = environment.context_size, environment.state_size, environment.iterations, environment.head
        if m <= c - m:
            assert execute(environment) == execute(Delethink(c, m, i, h, "chunkwise"))

    @given(environment=environments())
    def test_every_prompt_is_query_then_past_thoughts_in_order(self, environment: Delethink) -> None:
        chunks = execute(environment)
        for chunk, past in zip(chunks, carried(chunks), strict=True):
            assert list(past) == sorted(set(past))
            assert all(token < chunk.response[0] for token in past)

    @given(environment=environments())
    def test_parameters_record_the_whole_environment(self, environment: Delethink) -> None:
        assert Delethink(**environment.parameters()) == environment  # type: ignore[arg-type]

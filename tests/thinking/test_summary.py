"""Summary: rounds of ten tokens, three of them the summary's, worked by hand."""

from collections.abc import Sequence

import pytest

from scaling.errors import UsageError
from scaling.thinking import Chunk, Segment, Summary, Turn

Q = (-1, -2)
CUE = (90, 91)
ENVIRONMENT = Summary(10, 3, 3, cue=CUE, stop=(80,))
THOUGHT, SUMMED = tuple(range(7)), (20, 21, 80)


def chunk(prompt: Sequence[int], response: Sequence[int], finish: str = "length") -> Chunk:
    return Chunk(tuple(prompt), tuple(response), finish)  # type: ignore[arg-type]


FIRST = chunk(Q, THOUGHT)
SUMMARY = chunk((*Q, *THOUGHT, *CUE), SUMMED, "stop")


def test_a_round_thinks_what_its_summary_leaves_of_the_context() -> None:
    assert ENVIRONMENT.next(Q, []) == Turn(Q, max_tokens=7)


def test_the_summary_is_asked_for_behind_the_thought_and_its_cache() -> None:
    """The last token of the thought was never fed back: it is encoded with the cue."""
    assert ENVIRONMENT.next(Q, [FIRST]) == Turn((*Q, *THOUGHT, *CUE), max_tokens=3, stop=(80,), reused=2 + 6)


def test_the_next_round_knows_the_query_and_the_summary_without_its_end_mark() -> None:
    assert ENVIRONMENT.next(Q, [FIRST, SUMMARY]) == Turn((*Q, 20, 21), max_tokens=7)


def test_a_summary_that_is_cut_off_is_carried_without_its_last_token_too() -> None:
    """Or what a trace costs could not be told from the lengths of its chunks."""
    cut = chunk(SUMMARY.prompt, (20, 21, 22))
    assert ENVIRONMENT.next(Q, [FIRST, cut]) == Turn((*Q, 20, 21), max_tokens=7)


def test_an_empty_summary_carries_nothing() -> None:
    assert ENVIRONMENT.next(Q, [FIRST, chunk(SUMMARY.prompt, (80,), "stop")]) == Turn(Q, max_tokens=7)


def test_the_last_round_needs_no_summary_and_may_think_all_of_it() -> None:
    done = [FIRST, SUMMARY, chunk((*Q, 20, 21), THOUGHT), SUMMARY]
    assert ENVIRONMENT.next(Q, done) == Turn((*Q, 20, 21), max_tokens=10)
    assert ENVIRONMENT.next(Q, [*done, chunk((*Q, 20, 21), range(10))]) is None


def test_a_thought_that_the_model_ends_ends_the_trace() -> None:
    assert ENVIRONMENT.next(Q, [chunk(Q, (1, 2), "stop")]) is None
    assert ENVIRONMENT.next(Q, [chunk(Q, THOUGHT, "stop")]) is None  # on the last token that it may have


def test_schedule_counts_cue_summary_and_what_is_kept() -> None:
    assert ENVIRONMENT.schedule(2, [7, 3, 7, 2, 4]) == [
        Segment(reused=0, prefill=2, decode=7),
        Segment(reused=8, prefill=1 + 2, decode=3),
        Segment(reused=0, prefill=2 + 2, decode=7),
        Segment(reused=10, prefill=1 + 2, decode=2),
        Segment(reused=0, prefill=2 + 1, decode=4),
    ]


def test_the_budget_is_a_context_a_round() -> None:
    assert ENVIRONMENT.budget == 30
    assert ENVIRONMENT.expected_lengths(2, 30) == [7, 3, 7, 3, 10]
    assert ENVIRONMENT.expected_lengths(2, 8) == [7, 1]
    assert Summary.for_length(30, 10, 3).iterations == 3
    assert Summary.for_length(31, 10, 3).iterations == 4
    assert Summary.for_length(24 * 1024, 8192) == Summary(8192, 1024, 3)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((10, 10, 3), "summary size 10 must be below context size 10, or a round has no room to think"),
        ((10, 0, 3), "summary size 0 is not positive"),
        ((10, 3, 0), "iterations 0 is not positive"),
    ],
)
def test_sizes_that_leave_no_room_are_refused(sizes: tuple[int, int, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Summary(*sizes)


def test_more_responses_than_rounds_have_are_refused() -> None:
    with pytest.raises(UsageError, match="6 response lengths, but 3 iterations have 5 chunks"):
        ENVIRONMENT.schedule(2, [1] * 6)

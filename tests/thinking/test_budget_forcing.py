"""Budget forcing: a model that ends early is made to go on, N times, in one context; 50 ends thinking, 1 a sequence."""

from collections.abc import Sequence

import pytest

from scaling.errors import UsageError
from scaling.thinking import BudgetForcing, Chunk, Segment, Turn, standing

Q = (-1, -2)
WAIT = (90,)
ENVIRONMENT = BudgetForcing(20, 2, cue=WAIT, stop=(50,))


def chunk(prompt: Sequence[int], response: Sequence[int], finish: str = "stop") -> Chunk:
    return Chunk(tuple(prompt), tuple(response), finish)  # type: ignore[arg-type]


FIRST = chunk(Q, (3, 4, 50))
SECOND = chunk((*Q, 3, 4, 90), (5, 1))


def test_the_model_thinks_until_it_would_end() -> None:
    assert ENVIRONMENT.next(Q, []) == Turn(Q, max_tokens=20, stop=(50,))


def test_the_end_mark_gives_place_to_the_cue_and_all_before_keeps_its_cache() -> None:
    assert ENVIRONMENT.next(Q, [FIRST]) == Turn((*Q, 3, 4, 90), max_tokens=17, stop=(50,), reused=4)


def test_after_the_last_extension_thinking_may_end_and_an_answer_follow() -> None:
    assert ENVIRONMENT.next(Q, [FIRST, SECOND]) == Turn((*Q, 3, 4, 90, 5, 90), max_tokens=15, stop=(), reused=6)
    assert ENVIRONMENT.next(Q, [FIRST, SECOND, chunk((*Q, 3, 4, 90, 5, 90), (6, 50, 1))]) is None


def test_the_budget_ends_a_trace_whatever_is_left_of_its_extensions() -> None:
    assert ENVIRONMENT.next(Q, [chunk(Q, range(100, 120), "length")]) is None
    assert ENVIRONMENT.next(Q, [chunk(Q, range(100, 120), "stop")]) is None


def test_a_suppressed_end_does_not_stand_and_the_last_one_does() -> None:
    last = chunk((*Q, 3, 4, 90, 5, 90), (6, 50, 1))
    assert standing([FIRST, SECOND, last]) == [(3, 4), (5,), (6, 50, 1)]
    assert standing([FIRST]) == [(3, 4, 50)]
    assert standing([]) == []


def test_schedule_encodes_the_cues_and_nothing_twice() -> None:
    assert ENVIRONMENT.schedule(2, [3, 2, 4]) == [
        Segment(reused=0, prefill=2, decode=3),
        Segment(reused=4, prefill=1, decode=2),
        Segment(reused=6, prefill=1, decode=4),
    ]


def test_ends_are_expected_at_equal_distances() -> None:
    assert ENVIRONMENT.expected_lengths(2, 20) == [7, 7, 6]
    assert ENVIRONMENT.expected_lengths(2, 14) == [7, 7]
    assert BudgetForcing(2, 4).expected_lengths(2, 2) == [1, 1]


@pytest.mark.parametrize(
    ("parameters", "said"), [((0, 1), "thinking budget 0 is not positive"), ((9, 0), "without any it is mode longcot")]
)
def test_nonsense_is_refused(parameters: tuple[int, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BudgetForcing(*parameters)
    with pytest.raises(UsageError, match="4 response lengths, but extensions is 2"):
        ENVIRONMENT.schedule(2, [1] * 4)

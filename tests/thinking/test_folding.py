"""Folding: steps of ten tokens, three of them the summary's; 70 opens a summary, 71 closes it."""

from collections.abc import Sequence

import pytest

from scaling.errors import UsageError
from scaling.thinking import Chunk, Folding, Segment, Turn

Q = (-1, -2)
ENVIRONMENT = Folding(10, 3, 3, opening=70, closing=71)


def chunk(prompt: Sequence[int], response: Sequence[int], finish: str = "stop") -> Chunk:
    return Chunk(tuple(prompt), tuple(response), finish)  # type: ignore[arg-type]


STEP = chunk(Q, (0, 1, 70))
SUMMARY = chunk((*Q, 0, 1, 70), (20, 71))
FOLDED = (*Q, 70, 20, 71)


def test_a_step_ends_where_the_model_opens_a_summary() -> None:
    assert ENVIRONMENT.next(Q, []) == Turn(Q, max_tokens=7, stop=(70,))


def test_the_summary_is_written_while_the_thoughts_are_seen() -> None:
    assert ENVIRONMENT.next(Q, [STEP]) == Turn((*Q, 0, 1, 70), max_tokens=3, stop=(71,), reused=2 + 2)


def test_then_the_thoughts_are_dropped_and_the_summary_stays_between_its_markers() -> None:
    assert ENVIRONMENT.next(Q, [STEP, SUMMARY]) == Turn(FOLDED, max_tokens=7, stop=(70,))


def test_summaries_of_all_steps_stay() -> None:
    second = [chunk(FOLDED, (5, 70)), chunk((*FOLDED, 5, 70), (21, 22, 71))]
    assert ENVIRONMENT.next(Q, [STEP, SUMMARY, *second]) == Turn((*FOLDED, 70, 21, 22, 71), max_tokens=10)


def test_a_step_that_fills_its_room_is_closed_for_the_model() -> None:
    full = chunk(Q, range(7), "length")
    assert ENVIRONMENT.next(Q, [full]) == Turn((*Q, 0, 1, 2, 3, 4, 5, 70), max_tokens=3, stop=(71,), reused=2 + 6)


def test_a_summary_that_fills_its_room_is_closed_for_the_model() -> None:
    full = chunk(SUMMARY.prompt, (20, 21, 22), "length")
    assert ENVIRONMENT.next(Q, [STEP, full]) == Turn((*Q, 70, 20, 21, 71), max_tokens=7, stop=(70,))


def test_a_thought_that_ends_without_a_summary_ends_the_trace() -> None:
    assert ENVIRONMENT.next(Q, [chunk(Q, (0, 1, 99))]) is None


def test_the_last_step_ends_the_trace_however_it_ends() -> None:
    second = [chunk(FOLDED, (5, 70)), chunk((*FOLDED, 5, 70), (21, 71))]
    assert ENVIRONMENT.next(Q, [STEP, SUMMARY, *second, chunk(FOLDED, (1,) * 10, "length")]) is None
    assert ENVIRONMENT.next(Q, [STEP, SUMMARY, *second, chunk(FOLDED, (1, 70))]) is None


def test_schedule_grows_by_every_summary() -> None:
    assert ENVIRONMENT.schedule(2, [3, 2, 2, 3, 5]) == [
        Segment(reused=0, prefill=2, decode=3),
        Segment(reused=4, prefill=1, decode=2),
        Segment(reused=0, prefill=2 + 3, decode=2),
        Segment(reused=6, prefill=1, decode=3),
        Segment(reused=0, prefill=2 + 3 + 4, decode=5),
    ]


def test_a_fold_needs_two_markers() -> None:
    with pytest.raises(UsageError, match="token 7 cannot both open and close a summary"):
        Folding(10, 3, 3, opening=7, closing=7)
    with pytest.raises(UsageError, match="summary size 10 must be below context size 10"):
        Folding(10, 10, 3)

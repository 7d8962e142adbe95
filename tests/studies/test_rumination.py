"""How much a thought repeats itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.rumination import NGRAM, normalised_entropy, repeated_rate, seen_before


def test_an_ngram_counts_as_repeated_from_its_second_time_on():
    assert seen_before("abcabcab", 3) == [False, False, False, True, True, True]
    assert repeated_rate("abcabcab", 3) == 0.5
    assert repeated_rate("abcdefgh") == 0


def test_what_is_shorter_than_an_ngram_has_no_rate():
    assert seen_before("abcd") == []
    assert repeated_rate("abcd") is None
    assert repeated_rate("") is None


@given(st.lists(st.integers(0, 3), max_size=60))
def test_the_rate_is_one_less_distinct_by_all(units: list[int]):
    grams = [tuple(units[i : i + NGRAM]) for i in range(len(units) - NGRAM + 1)]
    assert repeated_rate(units) == (pytest.approx(1 - len(set(grams)) / len(grams)) if grams else None)


def test_entropy_is_one_where_all_are_used_equally_and_less_where_not():
    assert normalised_entropy("abcd") == pytest.approx(1)
    assert normalised_entropy("aab") == pytest.approx((2 / 3 * math.log(1.5) + 1 / 3 * math.log(3)) / math.log(2))
    assert normalised_entropy("aaaa") is None
    assert normalised_entropy("") is None

"""The decision of the timing gate: exact where exactness can be counted out, and plain at the edges."""

from __future__ import annotations

import math
import random
from itertools import accumulate, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scaling.gate.sequential import ALPHA, MOST_PAIRS, POWER, boundaries, candidate_first, power, read

FLOOR = 0.03
THRESHOLD = math.log1p(FLOOR)
MIRRORED = {"regression": "fine", "fine": "regression", "undecided": "undecided"}

log_ratio = st.floats(-3, 3).map(lambda value: round(value, 6))
series = st.lists(log_ratio, min_size=1, max_size=20)
alphas = st.sampled_from([ALPHA, ALPHA / 5, ALPHA / 20, 0.1, 0.2])


@given(st.integers(1, 60), alphas)
def test_a_fair_coin_gets_past_the_boundaries_no_more_often_than_allowed(pairs: int, alpha: float) -> None:
    assert power(0.5, boundaries(pairs, alpha)) <= alpha + 1e-12


@given(st.integers(1, 60), alphas)
def test_by_each_look_no_more_than_its_part_is_spent(pairs: int, alpha: float) -> None:
    bounds = boundaries(pairs, alpha)
    for look in range(1, pairs + 1):
        assert power(0.5, bounds[:look]) <= alpha * look / pairs + 1e-12


@pytest.mark.parametrize("pairs", [1, 5, 8, 12])
@pytest.mark.parametrize("alpha", [ALPHA, 0.2])
@pytest.mark.parametrize("chance", [0.5, 0.8])
def test_the_chance_to_get_past_them_is_that_of_all_sequences_counted_out(
    pairs: int, alpha: float, chance: float
) -> None:
    bounds = boundaries(pairs, alpha)
    found = sum(
        chance ** sum(heads) * (1 - chance) ** (pairs - sum(heads))
        for heads in product((0, 1), repeat=pairs)
        if any(count >= bound for count, bound in zip(accumulate(heads), bounds, strict=True))
    )
    assert power(chance, bounds) == pytest.approx(found, abs=1e-12)


def test_most_of_the_allowance_is_used() -> None:
    assert power(0.5, boundaries(20)) > 0.8 * ALPHA
    assert power(0.5, boundaries(40)) > 0.9 * ALPHA


@given(st.integers(1, 60), alphas)
def test_both_sides_cannot_have_enough_at_once(pairs: int, alpha: float) -> None:
    assert all(bound > look / 2 for look, bound in enumerate(boundaries(pairs, alpha), start=1))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=18, max_size=18))
def test_with_a_coin_for_each_pair_no_noise_whatever_raises_more_false_alarms_than_allowed(noise: list[float]) -> None:
    """Nine pairs at the floor, of runs as slow as anyone likes: all orders that coins can give, counted out."""
    wrong = missed = 0
    for coins in product((False, True), repeat=9):
        runs = zip(noise[0::2], noise[1::2], coins, strict=True)
        reading = read([THRESHOLD + (one - two if first else two - one) for one, two, first in runs], FLOOR, 9)
        wrong += reading.answer == "regression"
        missed += reading.low is not None and not reading.low <= (1 + FLOOR) * (1 + 1e-12)
        missed += reading.high is not None and not reading.high >= (1 + FLOOR) * (1 - 1e-12)
    assert wrong <= ALPHA * 2**9
    assert missed <= 2 * ALPHA * 2**9


def test_in_the_order_abba_a_wave_of_four_runs_is_taken_for_a_regression() -> None:
    """Why there is a coin: nothing has changed, and every pair says 8 %."""
    runs = [0.08 * (index % 4 in {1, 2}) for index in range(40)]
    pairs = [
        (second - first) * (1 if index % 2 == 0 else -1)
        for index, (first, second) in enumerate(zip(runs[0::2], runs[1::2], strict=True))
    ]
    assert read(pairs, FLOOR, 20).answer == "regression"


def test_the_coins_are_fair_and_those_of_the_seed() -> None:
    assert candidate_first(40, 7) == candidate_first(40, 7) != candidate_first(40, 8)
    assert candidate_first(40, 7)[:20] == candidate_first(20, 7)
    heads = [sum(candidate_first(40, seed)) for seed in range(500)]
    assert sum(heads) / len(heads) == pytest.approx(20, abs=0.6)
    assert min(heads) < 15
    assert max(heads) > 25


@given(series, st.lists(log_ratio, max_size=20), alphas)
def test_what_comes_after_the_deciding_look_is_not_read(seen: list[float], later: list[float], alpha: float) -> None:
    reading = read(seen, FLOOR, 40, alpha)
    if reading.answer != "undecided":
        assert read([*seen, *later], FLOOR, 40, alpha) == reading
        assert read(seen[: reading.pairs], FLOOR, 40, alpha) == reading
        assert reading.pairs == 1 or read(seen[: reading.pairs - 1], FLOOR, 40, alpha).answer == "undecided"
    else:
        assert reading.pairs == len(seen)


@given(series)
def test_a_candidate_faster_is_the_mirror_of_one_slower(seen: list[float]) -> None:
    assume(all(abs(value - THRESHOLD) > 1e-9 for value in seen))
    one, other = read(seen, FLOOR, 20), read([2 * THRESHOLD - value for value in seen], FLOOR, 20)
    assert other.answer == MIRRORED[one.answer]
    assert other.pairs == one.pairs
    assert other.ratio * one.ratio == pytest.approx((1 + FLOOR) ** 2)
    assert (other.noise, other.settling) == (pytest.approx(one.noise, abs=1e-12), one.settling)
    if one.low is not None and one.high is not None:
        assert other.low == pytest.approx((1 + FLOOR) ** 2 / one.high)
        assert other.high == pytest.approx((1 + FLOOR) ** 2 / one.low)


@given(series)
def test_the_answer_is_where_the_interval_lies(seen: list[float]) -> None:
    reading = read(seen, FLOOR, 20)
    if reading.low is None or reading.high is None:
        assert (reading.answer, reading.low, reading.high) == ("undecided", None, None)
        return
    assert reading.low <= reading.ratio <= reading.high
    if reading.answer == "regression":
        assert reading.low > 1 + FLOOR
    elif reading.answer == "fine":
        assert reading.high < 1 + FLOOR
    else:
        assert reading.low <= (1 + FLOOR) * (1 + 1e-12)
        assert reading.high >= (1 + FLOOR) * (1 - 1e-12)


def test_one_pair_says_its_ratio_and_nothing_else() -> None:
    reading = read([0.7], FLOOR, 20)
    assert (reading.answer, reading.pairs, reading.ratio) == ("undecided", 1, pytest.approx(math.exp(0.7)))
    assert (reading.low, reading.high, reading.noise, reading.visible, reading.settling) == (None,) * 5


def test_where_one_pair_is_all_that_was_foreseen_it_decides_nothing() -> None:
    assert read([5.0], FLOOR, 1).answer == "undecided"


@pytest.mark.parametrize(("log_ratio", "answer"), [(0.0, "fine"), (-0.5, "fine"), (0.05, "regression")])
def test_without_any_noise_seven_pairs_of_twenty_decide(log_ratio: float, answer: str) -> None:
    reading = read([log_ratio] * 20, FLOOR, 20)
    assert (reading.answer, reading.pairs) == (answer, 7)
    assert reading.low == reading.ratio == reading.high == pytest.approx(math.exp(log_ratio))
    assert (reading.noise, reading.visible) == (0, pytest.approx(FLOOR))
    assert reading.settling is not None
    assert reading.settling <= 7


def test_exactly_at_the_floor_nothing_is_decided_and_no_number_of_pairs_would_do() -> None:
    reading = read([THRESHOLD] * 20, FLOOR, 20)
    assert (reading.answer, reading.settling) == ("undecided", None)


def test_with_two_values_only_ties_count_for_neither_side() -> None:
    reading = read([THRESHOLD, 1.0] * 10, FLOOR, 20)
    assert reading.answer == "undecided"
    assert reading.low == pytest.approx(1 + FLOOR)


def test_in_huge_noise_it_says_how_little_it_could_see_and_that_more_pairs_would_not_do() -> None:
    rng = random.Random(0)
    reading = read([rng.gauss(THRESHOLD, 1) for _ in range(20)], FLOOR, 20)
    assert reading.answer == "undecided"
    assert reading.visible is not None
    assert reading.visible > 1
    assert reading.settling is None or reading.settling > 60


def test_fewer_pairs_than_can_decide_make_nothing_visible() -> None:
    assert read([0.1, -0.1, 0.05, 0.0, 0.2, 0.1], FLOOR, 20).visible is None
    assert read([0.1, -0.1, 0.05, 0.0, 0.2, 0.1, -0.2], FLOOR, 20).visible is not None


def test_noise_is_the_standard_deviation_of_normal_log_ratios_and_deaf_to_a_few_wild_ones() -> None:
    rng = random.Random(1)
    calm = [rng.gauss(THRESHOLD, 0.02) for _ in range(40)]
    wild = [value + (3 if index % 10 == 0 else 0) for index, value in enumerate(calm)]
    of_calm, of_wild = read(calm, FLOOR, 40).noise, read(wild, FLOOR, 40).noise
    assert of_calm == pytest.approx(0.02, rel=0.25)
    assert of_wild == pytest.approx(of_calm, rel=0.3)
    found = [read([rng.gauss(THRESHOLD, 0.02) for _ in range(20)], FLOOR, 20).noise for _ in range(400)]
    assert sorted(noise for noise in found if noise is not None)[200] == pytest.approx(0.02, rel=0.05)


@given(st.lists(log_ratio, min_size=3, max_size=20), st.floats(-1, 1), st.floats(0.1, 10))
def test_noise_moves_with_the_scale_and_not_with_the_change(seen: list[float], shift: float, scale: float) -> None:
    def noise(values: list[float]) -> float | None:
        return read(values, 1e9, len(values), alpha=1e-9).noise  # so little to spend that nothing is ever decided

    assert noise([scale * value + shift for value in seen]) == pytest.approx(scale * (noise(seen) or 0), abs=1e-9)


def test_a_change_as_large_as_visible_is_called_in_four_of_five_series() -> None:
    rng = random.Random(2)
    reading = read([THRESHOLD + 0.05 * sign for sign in (1, -1) * 10], FLOOR, 20)
    assert reading.noise == pytest.approx(0.05)
    assert reading.visible is not None
    change = math.log1p(reading.visible)
    called = [read([rng.gauss(change, 0.05) for _ in range(20)], FLOOR, 20).answer == "regression" for _ in range(2000)]
    assert sum(called) / len(called) == pytest.approx(POWER, abs=0.03)


@pytest.mark.parametrize("apart", [0.3, 0.5, 1.0, 2.0])
def test_the_pairs_foreseen_to_settle_it_do_and_clearly_fewer_would_not(apart: float) -> None:
    noise = 0.05
    middle = THRESHOLD + apart * noise
    reading = read([middle + noise * sign for sign in (1, -1) * 3], FLOOR, 20)
    assert reading.answer == "undecided"
    assert reading.settling is not None
    chance = 0.5 * (1 + math.erf(apart / math.sqrt(2)))
    assert power(chance, boundaries(reading.settling)) >= POWER - 0.01
    assert power(chance, boundaries(max(1, round(0.7 * reading.settling)))) < POWER


def test_where_many_pairs_did_not_settle_it_fewer_are_not_said_to_do() -> None:
    ours, theirs = [THRESHOLD + 0.04 + 0.001 * index for index in range(15)], [THRESHOLD - 0.01] * 5
    unlucky = [value for index in range(5) for value in (theirs[index], *ours[3 * index : 3 * index + 3])]
    reading = read(unlucky, FLOOR, 20)
    assert (reading.answer, reading.settling) == ("undecided", 21)


def test_a_difference_that_is_next_to_nothing_is_not_worth_settling() -> None:
    reading = read([THRESHOLD + 0.05 * sign + 0.0005 for sign in (1, -1) * 3], FLOOR, 20)
    assert reading.settling is None
    assert power(0.504, boundaries(MOST_PAIRS)) < POWER


def test_of_several_series_each_takes_more_to_decide() -> None:
    needed = [read([0.2] * 20, FLOOR, 20, ALPHA / series).pairs for series in (1, 5, 20)]
    assert needed == [7, 9, 11]


@pytest.mark.parametrize("seen", [[], [0.0] * 21])
def test_none_and_more_than_foreseen_are_refused(seen: list[float]) -> None:
    with pytest.raises(ValueError, match="1 to 20 were foreseen"):
        read(seen, FLOOR, 20)

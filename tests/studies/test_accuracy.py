"""Accuracies, comparisons, pass@k and votes: against enumeration and known intervals, and what holds of all of them."""

from __future__ import annotations

import json
import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from scaling.errors import FitError, UsageError
from studies.accuracy import Estimate, average, by_budget, compare, coverage, majority, pass_at, solved

RNG = np.random.default_rng(0)

QUICK = 200


def scored(right: int, samples: int) -> list[float]:
    return [1.0] * right + [0.0] * (samples - right)


def random_scores(problems: int, samples: int) -> list[list[float]]:
    return [scored(int(RNG.binomial(samples, p)), samples) for p in RNG.beta(0.5, 0.5, problems)]


coins = st.sampled_from([0.0, 1.0])
problems_of_coins = st.lists(st.lists(coins, min_size=1, max_size=24), min_size=1, max_size=6)
problems_of_shares = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=24), min_size=1, max_size=6)


@given(problems_of_shares, st.randoms(use_true_random=False))
def test_an_interval_holds_its_value_and_forgets_all_order(scores: list[list[float]], shuffler: object) -> None:
    found = average(scores, resamples=QUICK, seed=7)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(np.mean([np.mean(row) for row in scores]))
    mixed = [sorted(row, key=lambda _: shuffler.random()) for row in scores]  # type: ignore[attr-defined]
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    assert average(mixed, resamples=QUICK, seed=7) == found
    assert (found.problems, found.samples) == (len(scores), sum(map(len, scores)))


def test_in_the_middle_the_interval_is_the_papers_bootstrap() -> None:
    """Samples drawn with replacement within each problem, the problems kept: percentiles of 5000 means."""
    scores = random_scores(30, 64)
    found = average(scores)
    matrix = np.array(scores)
    again = [np.take_along_axis(matrix, RNG.integers(64, size=matrix.shape), 1).mean() for _ in range(5000)]
    low, high = np.quantile(again, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))
    assert "bootstrap over samples within problems" in found.method
    assert "these very problems" in found.method


@pytest.mark.parametrize("problems", [1, 7, 50])
@pytest.mark.parametrize("right", [0, 64])
def test_where_nothing_or_everything_is_right_the_interval_is_jeffreys_of_all_samples(
    problems: int, right: int
) -> None:
    found = average([scored(right, 64)] * problems)
    width = 1 - 0.025 ** (1 / (64 * problems))
    assert found.value == right / 64
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert "Jeffreys" in found.method


@pytest.mark.parametrize("right", [2, 9, 20, 43])
def test_one_problem_with_few_events_has_jeffreys_interval(right: int) -> None:
    found = average([scored(right, 45)], resamples=40_000)
    expected = beta.ppf([0.025, 0.975], right + 0.5, 45 - right + 0.5)
    assert [found.low, found.high] == pytest.approx(expected, abs=0.006)


def test_solved_beside_unsolved_problems_are_uncertain_at_both_ends() -> None:
    """Each end of 10 problems that are always, and 10 that are never solved has Jeffreys' width for its 640 samples."""
    found = average([scored(64, 64)] * 10 + [scored(0, 64)] * 10)
    edge = (1 - 0.025 ** (1 / 640)) / 2
    assert found.value == 0.5
    assert 0.5 - found.low == pytest.approx(edge, rel=0.1)
    assert found.high - 0.5 == pytest.approx(edge, rel=0.1)


def test_with_few_samples_problems_are_resampled_and_the_method_says_so() -> None:
    few, many = random_scores(40, 8), random_scores(40, 16)
    assert "hierarchical" in average(few).method
    assert "other problems like these" in average(few).method
    assert "hierarchical" not in average(many).method
    spread = np.std([np.mean(row) for row in few]) / math.sqrt(40)
    assert average(few).high - average(few).low == pytest.approx(2 * 1.96 * spread, rel=0.2)
    assert 0.02 < average([scored(0, 4)] * 40).high < 0.12
    assert "hierarchical" not in average([scored(3, 8)]).method  # one problem says nothing of others


def test_ragged_problems_weigh_alike() -> None:
    found = average([scored(16, 16), scored(0, 48)])
    assert found.value == 0.5
    assert "16 to 48 samples" in found.method
    assert "nominally 95 %" in found.method
    assert "nominally" not in average([scored(16, 64)] * 2).method


def test_scores_between_0_and_1_vary_less_than_coins() -> None:
    shares = [list(RNG.uniform(0.2, 0.8, 64)) for _ in range(20)]
    found = average(shares)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.6 / math.sqrt(12 * 64 * 20), rel=0.15)


@given(problems_of_coins, st.data())
def test_pass_at_k_is_the_mean_over_all_ways_to_take_k(scores: list[list[float]], data: st.DataObject) -> None:
    scores = [row[:8] for row in scores]
    k = data.draw(st.integers(1, min(map(len, scores))))
    found = pass_at(scores, k, resamples=QUICK)
    assert found.value == pytest.approx(np.mean([np.mean([max(c) for c in combinations(row, k)]) for row in scores]))
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(problems_of_coins)
def test_pass_at_k_rises_with_k_from_the_average(scores: list[list[float]]) -> None:
    values = [pass_at(scores, k, resamples=QUICK).value for k in range(1, min(map(len, scores)) + 1)]
    assert values[0] == pytest.approx(average(scores, resamples=QUICK).value)
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(values))


def test_a_sample_passes_by_a_full_score_alone() -> None:
    assert pass_at([[0.99, 0.0]], 2).value == 0
    assert pass_at([[1.0, 0.0]], 2).value == 1


@given(problems_of_coins)
def test_an_arm_differs_from_itself_by_nothing(scores: list[list[float]]) -> None:
    both = compare(scores, scores, resamples=QUICK)
    assert both.difference.low <= both.difference.value == 0 <= both.difference.high
    if average(scores, resamples=QUICK).value:
        assert both.ratio.low <= both.ratio.value == 1 <= both.ratio.high


@given(st.lists(st.tuples(*[st.lists(coins, min_size=1, max_size=20)] * 2), min_size=1, max_size=5), st.randoms())
def test_a_comparison_keeps_pairs_and_forgets_their_order(
    pairs: list[tuple[list[float], list[float]]], shuffler: object
) -> None:
    mixed = list(pairs)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    found, again = (compare([a for a, _ in x], [b for _, b in x], resamples=QUICK).record() for x in (pairs, mixed))
    assert found == again
    assert found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"]


def test_pairing_takes_out_what_problems_have_in_common() -> None:
    """With few samples, the noise of which problems were asked is the same in both arms."""
    hard, easy = [scored(1, 8)] * 20, [scored(7, 8)] * 20
    first = hard + easy
    paired = compare(first, first).difference
    crossed = compare(first, easy + hard).difference
    assert paired.high - paired.low < 0.8 * (crossed.high - crossed.low)


def test_what_an_arm_keeps_has_an_interval() -> None:
    first, second = [scored(60, 128)] * 20, [scored(64, 128)] * 20
    kept = compare(first, second).ratio
    assert kept.value == pytest.approx(60 / 64)
    error = math.sqrt((1 - 60 / 128) / (60 * 20) + (1 - 64 / 128) / (64 * 20)) * 60 / 64
    assert kept.high - kept.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_a_share_of_nothing_is_said_to_be_none() -> None:
    both = compare([scored(3, 64)] * 2, [scored(0, 64)] * 2)
    assert math.isnan(both.ratio.value)
    assert (both.ratio.low, both.ratio.high) == (0, math.inf)
    assert both.ratio.method.startswith("no ratio, as the second arm has no success")
    record = both.record()
    assert record["ratio"]["value"] is None
    assert record["ratio"]["high"] is None
    json.dumps(record, allow_nan=False)
    assert both.difference.low < 3 / 64 < both.difference.high


def test_a_share_of_what_may_be_nothing_has_no_upper_end() -> None:
    ratio = compare([scored(9, 64)], [scored(1, 64)]).ratio
    assert ratio.value == 9
    assert 0 < ratio.low < 9
    assert ratio.high == math.inf
    assert ratio.method.startswith("no upper end, as the second arm's accuracy may be 0")


def votes(answers: list[str | None], right: set[str], k: int) -> float:
    """The mean over all ways to take k answers of what their commonest scores, ties split."""
    earned = []
    for taken in combinations(answers, k):
        given_ = [a for a in taken if a is not None]
        most = max(map(given_.count, given_), default=0)
        winners = {a for a in given_ if given_.count(a) == most}
        earned.append(len(winners & right) / len(winners) if winners else 0.0)
    return float(np.mean(earned))


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=9), st.data())
def test_a_majority_vote_is_the_mean_over_all_ways_to_take_k(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    correct = [[float(a in ("a", "c")) for a in answers]]
    found = majority([answers], correct, k, resamples=QUICK)
    exact = k in (1, len(answers))
    assert found.value == pytest.approx(votes(answers, {"a", "c"}, k), abs=1e-9 if exact else 0.06)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert majority([answers[::-1]], [correct[0][::-1]], k, resamples=QUICK) == found


def test_a_vote_takes_what_answers_score_from_their_samples_and_absent_ones_do_not_vote() -> None:
    assert majority([["5", "5", None, None, None]], [[1.0, 1.0, 0.0, 0.0, 0.0]]).value == 1
    assert majority([[None, None]], [[0.0, 0.0]]).value == 0
    assert majority([["5", "6"]], [[1.0, 0.0]]).value == 0.5


def test_votes_vary_and_where_all_came_out_alike_there_is_still_an_interval() -> None:
    close = [["a"] * 33 + ["b"] * 31] * 10
    right = [[1.0] * 33 + [0.0] * 31] * 10
    found = majority(close, right, 9)
    assert 0.05 < found.high - found.low < 0.5
    sure = majority([["a"] * 64] * 10, [[0.0] * 64] * 10, 8)
    assert sure.low == sure.value == 0
    assert 0 < sure.high < 0.06


def test_a_k_near_the_number_of_samples_is_said_to_hold_less_often() -> None:
    scores = random_scores(10, 64)
    answers = [["a" if score else "b" for score in row] for row in scores]
    said = "nominally 95 % (in simulation 80 or more"
    assert said in majority(answers, scores).method
    assert said in majority(answers, scores, 9).method
    assert said in pass_at(scores, 32).method
    for near in (majority(answers, scores, 8), majority(answers, scores, 1), pass_at(scores, 8)):
        assert near.method.endswith(" 95 %")
        assert "nominally" not in near.method
    few, votes = [row[:8] for row in scores], [row[:8] for row in answers]
    assert "in simulation 90 or more" in majority(votes, few).method  # for other problems: wide enough
    assert "in simulation 90 or more" in pass_at(few, 8).method


def test_coverage_sets_what_two_arms_solve_side_by_side() -> None:
    answers = [["a", "a", "b"], ["a", "b"], [None, None]]
    first = solved(answers, [[1.0, 1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert first == [True, False, False]  # a tie of two solves nothing
    found = coverage(["p", "q", "r"], first, [True, True, False])
    assert found.record() == {"both": ["p"], "only_first": [], "only_second": ["q"], "neither": ["r"]}


def test_accuracy_by_budget_is_that_of_the_trimmed_scores() -> None:
    scores = [[{1024: 0.0, 512: 0.0, 2048: 1.0}, {512: 0.0, 1024: 1.0, 2048: 1.0}] for _ in range(5)]
    found = by_budget(scores)
    assert list(found) == [512, 1024, 2048]
    assert [estimate.value for estimate in found.values()] == [0, 0.5, 1]
    assert found[1024] == average([[0.0, 1.0]] * 5)


def test_the_same_seed_gives_the_same_interval_and_another_nearly_so() -> None:
    scores = random_scores(30, 32)
    first, second = average(scores, seed=1), average(scores, seed=2)
    assert first == average(scores, seed=1)
    assert first != second
    assert first.low == pytest.approx(second.low, abs=0.1 * (first.high - first.low))


def test_what_cannot_be_estimated_says_so() -> None:
    with pytest.raises(FitError, match="no problems"):
        average([])
    with pytest.raises(FitError, match="1 of 2 problems have no samples"):
        average([[1.0], []])
    with pytest.raises(UsageError, match=r"score is 1\.5"):
        average([[1.5]])
    with pytest.raises(UsageError, match="score is nan"):
        average([[math.nan]])
    with pytest.raises(FitError, match="these have 1 and 2"):
        compare([[1.0]], [[1.0], [0.0]])
    with pytest.raises(FitError, match="needs 4 samples of each problem, and one has 3"):
        pass_at([[1.0] * 3], 4)
    with pytest.raises(UsageError, match="pass@0"):
        pass_at([[1.0] * 3], 0)
    with pytest.raises(FitError, match="maj@2"):
        majority([["a"]], [[1.0]], 2)
    with pytest.raises(UsageError, match="maj@0"):
        majority([["a"]], [[1.0]], 0)
    with pytest.raises(FitError, match="every answer needs its score"):
        majority([["a", "b"]], [[1.0]])
    with pytest.raises(FitError, match="2 problems, and 1 and 2"):
        coverage(["p", "q"], [True], [True, False])
    with pytest.raises(FitError, match="budget of 512"):
        by_budget([[{512: 1.0, 1024: 1.0}, {1024: 1.0}]])
    with pytest.raises(FitError, match="any budget"):
        by_budget([])


def test_an_estimate_is_plain_json() -> None:
    found = average([scored(2, 4)] * 3)
    assert Estimate(**json.loads(json.dumps(found.record(), allow_nan=False))) == found

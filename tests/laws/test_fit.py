"""One curve: recovery, selection, intervals and predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scaling.errors import FitError
from scaling.laws import Interval, fit_curve, models

FULL = {"environment": "longcot", "method": "full", "phase": "rollout"}
PROFILE = FULL | {"method": "profile"}
LENGTHS = np.array([1, 1.5, 2, 3, 4, 8]) * 1024
TOKENS = np.repeat(LENGTHS, 3)
U = TOKENS / TOKENS.max()


def noisy(seconds, relative, seed=0):
    return seconds * (1 + relative * np.random.default_rng(seed).standard_normal(len(seconds)))


@pytest.mark.parametrize(
    ("law", "parameters"),
    [
        ("linear", {"a": -0.4, "b": 1e-3}),
        ("throughput", {"b": 6e-4, "c": 9e-8}),
        ("quadratic", {"a": 0.3, "b": 6e-4, "c": 9e-8}),
        ("power", {"A": 1e-5, "p": 1.4}),
    ],
)
def test_every_law_is_recovered_from_costs_without_noise(law, parameters):
    a, b, c, level, p = (parameters.get(name, 0.0) for name in ("a", "b", "c", "A", "p"))

    def cost(tokens):
        return a + b * tokens + c * tokens**2 + level * tokens**p

    fit = fit_curve(TOKENS, cost(TOKENS), curve=FULL)
    assert fit.law == law
    assert fit.parameters == pytest.approx(parameters, rel=1e-6)
    assert fit.relative_rms == pytest.approx(0, abs=1e-6)
    assert fit.leave_largest_out == pytest.approx(0, abs=1e-6)
    assert fit.predict(6000).seconds == pytest.approx(cost(6000))
    for name, value in parameters.items():
        interval = fit.parameter_intervals[name]
        assert (interval.low, interval.high) == pytest.approx((value, value), rel=1e-6)
    assert (0.0 in fit.curvature_interval) == (law == "linear")


def test_the_curvature_share_is_the_quadratic_part_of_the_largest_length():
    fit = fit_curve(TOKENS, 0.5 + 3 * U + 1.5 * U**2, curve=FULL)
    assert fit.curvature_share == pytest.approx(1.5 / 5)


def test_a_chunked_curve_has_a_negative_intercept_and_no_bend():
    fit = fit_curve(TOKENS, noisy(-0.05 + 1.05 * U, 0.01), curve=FULL)
    assert fit.law == "linear"
    assert fit.parameter_intervals["a"].high < 0
    assert 0.0 in fit.curvature_interval


def test_a_bend_pinned_at_zero_has_an_interval_that_contains_zero_and_reaches_below():
    spread = np.tile([0.98, 1.0, 1.02], 6)
    fit = fit_curve(TOKENS, spread * (-0.05 + 1.06 * U - 0.01 * U**2), curve=FULL)
    assert fit.curvature_share == 0.0
    assert fit.curvature_interval.low < -0.01
    assert fit.curvature_interval.high > 0.01


def test_a_curve_that_clearly_bends_down_says_so():
    fit = fit_curve(TOKENS, noisy(3 * U - U**2, 0.01), curve=FULL)
    assert fit.curvature_share == 0.0
    assert any("bends downward" in remark for remark in fit.warnings)


def test_a_bend_that_noise_cannot_hide_is_clearly_above_zero():
    fit = fit_curve(TOKENS, noisy(0.1 + 0.5 * U + 0.4 * U**2, 0.02), curve=FULL)
    assert fit.law == "quadratic"
    assert fit.curvature_interval.low > 0.2
    assert 0.4 in fit.curvature_interval


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize(("lengths", "repeats", "noise"), [(6, 3, 0.005), (6, 3, 0.05), (5, 2, 0.02)])
def test_intervals_cover_the_truth_about_95_times_in_a_hundred(monkeypatch, share, lengths, repeats, noise):
    monkeypatch.setattr(models, "DRAWS", 1000)
    tokens = np.repeat(LENGTHS[-lengths:], repeats)
    u = tokens / tokens.max()
    intercept = 0.05 if share else -0.05
    truth = intercept + (1 - share - intercept) * u + share * u**2
    times, covered, predicted = 150, 0, 0
    for seed in range(times):
        fit = fit_curve(tokens, noisy(truth, noise, seed), curve=FULL, seed=seed)
        covered += share in fit.curvature_interval
        prediction = fit.predict(tokens.max())
        predicted += prediction.low <= 1.0 <= prediction.high
    assert covered / times >= 0.9
    assert predicted / times >= 0.9
    assert covered / times <= 0.99 or share == 0  # the interval of a straight line has no upper miss


def test_replicates_carry_the_intervals_of_a_profile():
    seconds = 0.1 + 0.5 * U + 0.4 * U**2
    steady = np.outer(np.random.default_rng(0).normal(1, 0.05, 500), seconds)
    fit = fit_curve(TOKENS, seconds, curve=PROFILE, replicates=steady)
    prediction = fit.predict(8192)
    assert (prediction.low, prediction.high) == pytest.approx((0.9, 1.1), abs=0.02)
    assert fit.curvature_interval == Interval(pytest.approx(0.4), pytest.approx(0.4))
    assert fit.law == "quadratic"
    assert (fit.aicc, fit.bic) == (None, None)


def test_a_profile_stays_a_line_unless_the_bend_is_beyond_doubt():
    seconds = 1.0 * U + 0.005 * U**2
    doubt = seconds + np.outer(np.random.default_rng(0).normal(0, 0.02, 500), U**2)
    assert fit_curve(TOKENS, seconds, curve=PROFILE, replicates=doubt).law == "linear"
    sure = seconds + np.outer(np.random.default_rng(0).normal(0, 0.0005, 500), U**2)
    assert fit_curve(TOKENS, seconds, curve=PROFILE, replicates=sure).law != "linear"


def test_a_profile_without_replicates_is_told_that_its_intervals_are_too_narrow():
    assert any("not independent" in remark for remark in fit_curve(TOKENS, U, curve=PROFILE).warnings)


def test_full_rows_have_information_criteria_and_the_selected_law_is_within_two_of_the_best():
    fit = fit_curve(TOKENS, noisy(0.1 + 0.5 * U + 0.4 * U**2, 0.02), curve=FULL)
    assert set(fit.aicc) == set(fit.bic) == {"linear", "throughput", "quadratic", "power"}
    assert fit.aicc[fit.law] <= min(fit.aicc.values()) + 2
    assert fit.aicc["linear"] > fit.aicc["quadratic"] + 10


def test_leave_largest_out_says_how_a_line_would_have_missed_the_bend():
    fit = fit_curve([1024, 2048, 8192], [1.0, 2.0, 10.0], curve=FULL)
    assert (fit.law, fit.leave_largest_out) == ("linear", pytest.approx(-0.2))


def test_beyond_one_and_a_half_times_the_largest_length_a_prediction_is_marked():
    fit = fit_curve(TOKENS, noisy(U, 0.01), curve=FULL)
    assert not fit.predict(1.5 * 8192).extrapolated
    assert fit.predict(1.5 * 8192 + 1).extrapolated


def test_an_extrapolated_line_leaves_room_for_a_bend_too_small_to_be_seen():
    fit = fit_curve(TOKENS, noisy(U, 0.01, seed=1), curve=FULL)
    assert fit.law == "linear"
    seen = fit.predict(64 * 8192)
    assert seen.high / seen.seconds > 1.3 > seen.seconds / seen.low


def test_the_same_rows_and_seed_give_the_same_fit():
    seconds = noisy(U, 0.02)
    assert fit_curve(TOKENS, seconds, curve=FULL) == fit_curve(TOKENS, seconds, curve=FULL)
    other = fit_curve(TOKENS, seconds, curve=FULL, seed=1).parameter_intervals["b"]
    assert other != fit_curve(TOKENS, seconds, curve=FULL).parameter_intervals["b"]


def test_two_lengths_only_fit_a_line_and_say_so():
    fit = fit_curve([1024, 1024, 2048, 2048], [1.0, 1.01, 2.0, 2.01], curve=FULL)
    assert fit.law == "linear"
    assert math.isnan(fit.curvature_share)
    assert any("cannot show whether the curve bends" in remark for remark in fit.warnings)
    assert fit.leave_largest_out is None
    assert math.isfinite(fit.predict(2048).high)


def test_rows_without_a_degree_of_freedom_have_unbounded_intervals():
    fit = fit_curve([1024, 2048], [1.0, 2.0], curve=FULL)
    assert fit.predict(1536).seconds == pytest.approx(1.5)
    assert fit.parameter_intervals["b"] == Interval(-math.inf, math.inf)


def test_fewer_than_six_lengths_of_three_repeats_are_remarked_on():
    assert not fit_curve(TOKENS, noisy(U, 0.01), curve=FULL).warnings
    few = fit_curve(TOKENS[::3], noisy(U, 0.01)[::3], curve=FULL)
    assert any("6 lengths × 1 repeats" in remark for remark in few.warnings)


@pytest.mark.parametrize(
    ("tokens", "seconds", "message"),
    [
        ([1024, 1024], [1.0, 1.1], "1 thinking length cannot show a law"),
        ([1024, 2048], [1.0, 0.0], "must be positive and finite"),
        ([1024, 2048], [1.0, math.nan], "must be positive and finite"),
        ([1024, 2048], [1.0], "one row of each"),
    ],
)
def test_rows_that_show_no_law_are_refused(tokens, seconds, message):
    with pytest.raises(FitError, match=message):
        fit_curve(tokens, seconds, curve=FULL)


def test_replicates_must_match_the_rows():
    with pytest.raises(FitError, match=r"expected \[B, 18\]"):
        fit_curve(TOKENS, U, curve=PROFILE, replicates=np.ones((10, 3)))


@pytest.mark.parametrize(
    ("curve", "label"),
    [
        ({"environment": "longcot"}, "LongCoT"),
        ({"environment": "delethink", "context_size": 1024, "state_size": 512}, "Delethink C=1k m=512"),
        (
            {"environment": "delethink", "context_size": 8192, "state_size": 4096, "carryover": "recipe"},
            "Delethink C=8k m=4k recipe",
        ),
    ],
)
def test_a_curve_is_labelled_as_its_readers_would(curve, label):
    assert fit_curve([1, 2], [1, 2], curve=curve).label == label

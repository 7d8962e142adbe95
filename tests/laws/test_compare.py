"""Totals over phases and crossovers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scaling.errors import FitError
from scaling.laws import crossover, fit_curve, total, totals

TOKENS = np.repeat(np.array([8, 12, 16, 24, 32, 48]) * 1024.0, 3)
LONGCOT = {"environment": "longcot", "phase": "rollout", "method": "full"}
DELETHINK = LONGCOT | {"environment": "delethink", "context_size": 8192, "state_size": 4096}


def bent(tokens):
    return 1e-3 * tokens + 1e-7 * tokens**2


def straight(tokens):
    return 3e-3 * tokens


def noisy(seconds, seed):
    return seconds * (1 + 0.02 * np.random.default_rng(seed).standard_normal(len(seconds)))


def test_a_line_and_a_parabola_cross_where_algebra_says():
    found = crossover(
        fit_curve(TOKENS, bent(TOKENS), curve=LONGCOT), fit_curve(TOKENS, straight(TOKENS), curve=DELETHINK)
    )
    assert found.tokens == pytest.approx(20_000)
    assert (found.low, found.high) == pytest.approx((20_000, 20_000), rel=1e-3)
    assert (found.cheaper, found.extrapolated) == ("Delethink C=8k m=4k", False)


def test_a_crossover_does_not_depend_on_the_order_of_the_curves():
    a, b = fit_curve(TOKENS, bent(TOKENS), curve=LONGCOT), fit_curve(TOKENS, straight(TOKENS), curve=DELETHINK)
    assert crossover(a, b).tokens == pytest.approx(crossover(b, a).tokens)
    assert crossover(a, b).cheaper == crossover(b, a).cheaper


def test_the_interval_of_a_crossover_covers_it():
    covered = 0
    for seed in range(60):
        a = fit_curve(TOKENS, noisy(bent(TOKENS), 2 * seed), curve=LONGCOT)
        b = fit_curve(TOKENS, noisy(straight(TOKENS), 2 * seed + 1), curve=DELETHINK)
        found = crossover(a, b)
        covered += found.low <= 20_000 <= found.high
    assert covered >= 54


def test_curves_that_never_meet_have_no_crossover():
    assert (
        crossover(
            fit_curve(TOKENS, bent(TOKENS), curve=LONGCOT), fit_curve(TOKENS, 0.5 * bent(TOKENS), curve=DELETHINK)
        )
        is None
    )


def test_a_crossover_beyond_what_was_measured_is_marked():
    short = TOKENS[TOKENS <= 24 * 1024] / 4
    found = crossover(fit_curve(short, bent(short), curve=LONGCOT), fit_curve(short, straight(short), curve=DELETHINK))
    assert found.tokens == pytest.approx(20_000)
    assert found.extrapolated


def test_a_crossover_that_the_rows_do_not_settle_is_open_ended():
    spread = np.tile([0.98, 1.0, 1.02], 6)
    a = fit_curve(TOKENS, spread * (1.01e-3 * TOKENS - 0.2), curve=LONGCOT)
    b = fit_curve(TOKENS, spread * 1e-3 * TOKENS, curve=DELETHINK)
    found = crossover(a, b)
    assert found.tokens == pytest.approx(20_000, rel=1e-3)
    assert found.high == math.inf


def phase(name, seconds, method="full", curve=LONGCOT):
    return fit_curve(TOKENS, seconds, curve=curve | {"phase": name, "method": method})


def test_a_total_adds_phases_and_names_them():
    both = total([phase("rollout", bent(TOKENS)), phase("update", straight(TOKENS))])
    assert both.phases == ("rollout", "update")
    assert both.curve["phase"] == "rollout+update"
    assert both.predict(20_000).seconds == pytest.approx(120)
    assert both.predict(1.6 * TOKENS.max()).extrapolated


def test_the_interval_of_a_total_adds_independent_errors():
    parts = [phase("rollout", noisy(straight(TOKENS), 1)), phase("update", noisy(straight(TOKENS), 2))]
    at = 24 * 1024
    widths = [p.predict(at).high - p.predict(at).low for p in parts]
    both = total(parts).predict(at)
    assert both.high - both.low == pytest.approx(math.hypot(*widths), rel=0.15)


def test_a_phase_cannot_be_added_to_itself():
    with pytest.raises(FitError, match="LongCoT rollout, LongCoT rollout"):
        total([phase("rollout", bent(TOKENS)), phase("rollout", bent(TOKENS))])


def test_totals_take_each_method_of_the_rollout_and_borrow_phases_that_it_lacks():
    fits = [
        phase("rollout", bent(TOKENS)),
        phase("rollout", bent(TOKENS), "profile"),
        phase("update", straight(TOKENS)),
        phase("rollout", bent(TOKENS), curve=DELETHINK),
    ]
    full, profiled = totals(fits)
    assert (full.phases, full.curve["method"]) == (("rollout", "update"), "full")
    assert [fit.curve["method"] for fit in profiled.fits] == ["profile", "full"]
    assert "method" not in profiled.curve


def test_a_phase_in_two_concurrency_regimes_has_no_single_total():
    assert totals([phase("rollout", bent(TOKENS)), phase("rollout", bent(TOKENS)), phase("update", bent(TOKENS))]) == []

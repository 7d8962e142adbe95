"""The shapes of laws and their least squares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from scaling.laws.models import LAWS, LINEAR, POWER, QUADRATIC, THROUGHPUT, constrain, estimate, noise, solve

X = np.repeat([0.125, 0.25, 0.5, 0.75, 1.0], 2)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_jacobian_is_the_derivative_of_the_value(law):
    theta = np.array([0.7, 1.3, 0.4])[: len(law.parameters)]
    expected = optimize.approx_fprime(theta, lambda at: law.value(X, at))
    assert law.jacobian(X, theta) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_noiseless_costs_give_back_their_parameters(law):
    theta = np.array([-0.2, 1.3, 0.4])[: len(law.parameters)] if law is not THROUGHPUT else np.array([1.3, 0.4])
    y = law.value(X, theta)
    assert solve(law, X, y, y) == pytest.approx(theta)


def test_parameters_are_reported_per_token_whatever_length_the_fit_called_one():
    tokens = np.array([1024.0, 8192.0])
    for law, theta in ((QUADRATIC, np.array([0.2, 3.0, 5.0])), (POWER, np.array([2.0, 1.4]))):
        found = law.report(theta, 8192.0)
        by_hand = found[0] * tokens ** found[1] if law is POWER else found @ [tokens**0, tokens, tokens**2]
        assert by_hand == pytest.approx(law.value(tokens / 8192, theta))


def test_a_bent_down_curve_is_the_best_one_without_bend_under_c_at_least_zero():
    y = 1 + 3 * X - X**2
    free = solve(QUADRATIC, X, y, y)
    design = QUADRATIC.design(X) / y[:, None]
    a, b, c = constrain(QUADRATIC, free, np.linalg.inv(design.T @ design))
    assert free[2] == pytest.approx(-1)
    assert (c, [a, b]) == (0.0, pytest.approx(solve(LINEAR, X, y, y)))
    bounded = optimize.lsq_linear(design, np.ones_like(y), ([-np.inf, -np.inf, 0], np.inf))
    assert [a, b, c] == pytest.approx(bounded.x, abs=1e-6)


def test_the_throughput_law_of_a_decode_step_is_a_quadratic_through_the_origin():
    d0, d1, concurrency, prompt = 0.01, 2e-7, 32, 64
    tokens = np.array([1024.0, 2048, 4096, 8192])
    seconds = tokens * (d0 + d1 * concurrency * (prompt + tokens / 2)) / concurrency
    b, c = THROUGHPUT.report(solve(THROUGHPUT, tokens / 8192, seconds, seconds), 8192.0)
    assert b == pytest.approx(d0 / concurrency + d1 * prompt)
    assert c == pytest.approx(d1 / 2)


def test_draws_scatter_like_the_textbook_standard_error():
    rng = np.random.default_rng(1)
    x = np.linspace(0.1, 1, 40)
    y = 1 + 2 * x + 0.05 * rng.standard_normal(40)
    found = estimate(LINEAR, x, y, np.ones(40), 1.0, None, rng)
    slope = np.cov(x, y)[0, 1] / x.var(ddof=1)
    residual = y - y.mean() - slope * (x - x.mean())
    error = np.sqrt(residual @ residual / 38 / ((x - x.mean()) ** 2).sum())
    assert found.theta[1] == pytest.approx(slope)
    assert found.draws[:, 1].std() == pytest.approx(error * np.sqrt(38 / 36), rel=0.05)  # of a t with 38 degrees


def test_replicates_are_refitted_each():
    y = 1 + 2 * X + 3 * X**2
    replicates = np.stack([y, 1.1 * y, y + 0.01 * X])
    found = estimate(QUADRATIC, X, y, y, 1.0, replicates, np.random.default_rng(0))
    assert found.draws == pytest.approx(np.array([[1, 2, 3], [1.1, 2.2, 3.3], [1, 2.01, 3]]))


def test_lengths_become_the_units_where_they_scatter_more_than_repeats():
    repeats = np.array([0.001, -0.001] * 5)
    assert noise(repeats, X, 2)[1] == len(X) - 2
    variance, freedom, misfit = noise(repeats + np.repeat([0.1, -0.1, 0.1, -0.1, 0.1], 2), X, 2)
    assert freedom == 5 - 2
    assert misfit < 0.001
    assert variance == pytest.approx(0.1 / 3)

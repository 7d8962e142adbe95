"""The shapes a cost law may have, and its least-squares estimate with draws of its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[np.float64]

DRAWS = 4000
ROUNDING = 1e-12  # relative residuals below this are rounding, not noise


@dataclass(frozen=True, slots=True)
class Law:
    """Device-seconds per trace as a function of thinking tokens L.

    `powers`: of L, one a parameter, for the laws that are linear in their parameters; empty for the power law.
    Parameters in reports: `a` seconds, `b` seconds a token, `c` seconds a token²; `A` seconds at one token, `p` none.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    powers: tuple[int, ...] = ()

    def value(self, x: Array, theta: Array) -> Array:
        """Seconds at lengths `x` [n] in units of the fit's largest one, for parameters [..., k]: [..., n]."""
        if self.powers:
            return np.asarray(theta @ self.design(x).T)
        return np.asarray(np.exp(theta[..., :1] + theta[..., 1:] * np.log(x)))

    def design(self, x: Array) -> Array:
        """Columns x^power, [n, k]."""
        return np.asarray(np.stack([x**power for power in self.powers], axis=-1))

    def jacobian(self, x: Array, theta: Array) -> Array:
        """Derivatives of `value` by each parameter, [n, k]."""
        if self.powers:
            return self.design(x)
        return np.asarray(self.value(x, theta)[:, None] * np.stack([np.ones_like(x), np.log(x)], axis=-1))

    def report(self, theta: Array, scale: float) -> Array:
        """Parameters [..., k] in reported units, given the length that the fit called 1."""
        if self.powers:
            return np.asarray(theta / np.power(scale, self.powers))
        log_a, p = theta[..., 0], theta[..., 1]
        return np.stack([np.exp(log_a - p * np.log(scale)), p], axis=-1)


LINEAR = Law("linear", "a + b·L", ("a", "b"), (0, 1))
THROUGHPUT = Law("throughput", "b·L + c·L²", ("b", "c"), (1, 2))
"""The throughput law of arXiv 2510.06557, App. B, as a cost.

There n traces that hold a prompt of l tokens and L/2 thinking tokens on average take d0 + d1·n·(l + L/2) seconds a
decode step, and a step gives n tokens, so a trace costs L·(d0 + d1·n·(l + L/2))/n = (d0/n + d1·l)·L + (d1/2)·L²
device-seconds: the quadratic law through the origin. One curve has one n and one l; it identifies d1 = 2c and the
sum b = d0/n + d1·l, but not how b divides into step overhead and concurrency, so b and c are what we report."""
QUADRATIC = Law("quadratic", "a + b·L + c·L²", ("a", "b", "c"), (0, 1, 2))
POWER = Law("power", "A·L^p", ("A", "p"))

LAWS = {law.name: law for law in (LINEAR, THROUGHPUT, QUADRATIC, POWER)}  # simplest physical explanation first


@dataclass(frozen=True, slots=True)
class Estimate:
    """A law fitted to one curve, in units of its largest length `scale`.

    `theta` [k] and `draws` [B, k] obey c ≥ 0; `free` and `free_draws` are the same without that constraint.
    The draws are NaN where the rows leave no degree of freedom. `rss`: Σ of squared relative residuals of `theta`.
    `misfit`: p-value of the lack-of-fit test, NaN where there are no repeats to test against.
    """

    law: Law
    scale: float
    theta: Array
    draws: Array
    free: Array
    free_draws: Array
    rss: float
    misfit: float

    def at(self, tokens: Array) -> Array:
        """Device-seconds per trace at `tokens` [n]: [n]."""
        return self.law.value(tokens / self.scale, self.theta)

    def draws_at(self, tokens: Array) -> Array:
        """The same for every draw: [B, n]."""
        return self.law.value(tokens / self.scale, self.draws)


def solve(law: Law, x: Array, y: Array, weights: Array) -> Array:
    """Unconstrained parameters [k] that minimise Σ ((y − law(x))/weights)²."""
    if law.powers:
        solution, *_ = np.linalg.lstsq(law.design(x) / weights[:, None], y / weights, rcond=None)
        return np.asarray(solution)
    slope, level = np.polyfit(np.log(x), np.log(y), 1)

    def residuals(theta: Array) -> Array:
        return np.asarray((law.value(x, theta) - y) / weights)

    def jacobian(theta: Array) -> Array:
        return law.jacobian(x, theta) / weights[:, None]

    found = optimize.least_squares(residuals, [level, slope], jacobian, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return np.asarray(found.x)


def constrain(law: Law, theta: Array, unscaled_covariance: Array) -> Array:
    """Parameters [..., k] under c ≥ 0: the least-squares solution with c = 0 wherever c came out negative.

    With one bound, the constrained optimum is the free one moved along the covariance until c is 0.
    """
    if 2 not in law.powers:
        return theta
    at = law.powers.index(2)
    direction = unscaled_covariance[:, at] / unscaled_covariance[at, at]
    moved: Array = theta - np.minimum(theta[..., at : at + 1], 0.0) * direction
    moved[..., at] = np.maximum(theta[..., at], 0.0)
    return moved


def estimate(
    law: Law, x: Array, y: Array, weights: Array, scale: float, replicates: Array | None, rng: np.random.Generator
) -> Estimate:
    """Fits `law` to lengths `x` [n] and seconds `y` [n], residuals divided by `weights` [n].

    Without `replicates` the rows are independent and the draws are those of a multivariate t around the estimate,
    whose scale and degrees of freedom come from `noise`. With `replicates` [B, n] each draw is the estimate of one
    replicate: exact for the laws that are linear in their parameters, by one Gauss–Newton step for the power law.
    """
    free = solve(law, x, y, weights)
    jacobian = law.jacobian(x, free) / weights[:, None]
    root = np.linalg.inv(np.linalg.qr(jacobian, mode="r"))
    unscaled = root @ root.T
    residuals = (y - law.value(x, free)) / weights
    variance, freedom, misfit = noise(residuals, x, len(free))
    if replicates is not None:
        free_draws = free + ((replicates - y) / weights) @ jacobian @ unscaled
    elif freedom > 0:
        normal = rng.standard_normal((DRAWS, len(free)))
        heavy = np.sqrt(variance * freedom / rng.chisquare(freedom, (DRAWS, 1)))
        free_draws = free + normal @ root.T * heavy
    else:
        free_draws = np.full((DRAWS, len(free)), np.nan)
    theta, draws = constrain(law, free, unscaled), constrain(law, free_draws, unscaled)
    rss = float(np.sum(((y - law.value(x, theta)) / weights) ** 2))
    return Estimate(law, scale, theta, draws, free, free_draws, rss, misfit)


def noise(residuals: Array, x: Array, parameters: int) -> tuple[float, int, float]:
    """Variance of a relative residual, its degrees of freedom, and the p-value of the lack-of-fit F test.

    Rows are the units while repeats scatter as much as lengths do. Where lengths scatter more (p < 0.05), repeats of
    one length share an error that repeating does not average out, so lengths become the units: fewer degrees of
    freedom, wider intervals.
    """
    lengths, group = np.unique(x, return_inverse=True)
    total = float(residuals @ residuals)
    freedom, between = len(x) - parameters, len(lengths) - parameters
    within = len(x) - len(lengths)
    if freedom <= 0:
        return np.nan, 0, np.nan
    if within == 0 or between <= 0:
        return total / freedom, freedom, np.nan
    means = np.bincount(group, residuals) / np.bincount(group)
    pure = float(np.sum((residuals - means[group]) ** 2))
    lack = max(total - pure, 0.0)
    if lack / len(x) < ROUNDING**2:
        return total / freedom, freedom, np.nan
    misfit = float(stats.f.sf((lack / between) / (pure / within), between, within)) if pure > 0 else 0.0
    if misfit < 0.05:
        return lack / between, between, misfit
    return total / freedom, freedom, misfit


def information(estimate: Estimate, rows: int) -> tuple[float, float]:
    """AICc and BIC of independent rows with Gaussian relative noise; its variance is one more parameter.

    AICc is infinite where it is not defined, with `rows` ≤ parameters + 2.
    """
    k = len(estimate.theta) + 1
    deviance = rows * float(np.log(max(estimate.rss / rows, ROUNDING**2)))
    correction = 2 * k * (k + 1) / (rows - k - 1) if rows > k + 1 else np.inf
    return deviance + 2 * k + correction, deviance + k * float(np.log(rows))

"""What a mean over problems may be, given the samples that were seen: draws, by bootstrap or Jeffreys' posterior.

`Rows` are scores in [0, 1], a row a problem. A statistic is the mean of each row, or with `k` its pass@k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = Sequence[Sequence[float]]

FIXED = 16
"""Samples of a problem from which intervals are for these very problems, and not for others like them."""

EVENTS = 30.0
"""Σ over problems of samples × variance of scores, below which too little has happened to resample it."""

TAIL = 0.025

BOOTSTRAP = "bootstrap over samples within problems, for these very problems"
JEFFREYS = "Jeffreys' posterior, as hardly any score varies, for these very problems"
PASSING = "bootstrap of pass@k over samples within problems, for these very problems"
HIERARCHICAL = "hierarchical bootstrap over problems and samples, for other problems like these"


@dataclass(frozen=True, slots=True)
class Draws:
    """One draw a resample for the lower end of an interval, and one for its upper end: the same but near 0 and 1."""

    lower: Floats
    upper: Floats

    def interval(self, value: float) -> tuple[float, float]:
        """Of 95 %, and never without the `value` itself."""
        low = np.quantile(self.lower, TAIL, method="inverted_cdf")
        high = np.quantile(self.upper, 1 - TAIL, method="inverted_cdf")
        return min(float(low), value), max(float(high), value)


def draw(
    arms: Sequence[Rows], rng: np.random.Generator, resamples: int, k: int | None = None
) -> tuple[list[Draws], str]:
    """Draws of each arm's mean, the arms paired by problem, and by which method.

    With `FIXED` samples of each problem, or one problem alone, samples are drawn anew and problems kept; otherwise
    problems are drawn too, the same for every arm.
    """
    if not are_fixed(arms):
        seen = [(observed(rows, k), _noise(rows, rng, resamples, k)) for rows in arms]
        return over_problems(seen, rng, resamples), HIERARCHICAL
    found = [within(rows, rng, resamples, k) for rows in arms]
    return [draws for draws, _ in found], "; other arm: ".join(dict.fromkeys(how for _, how in found))


def are_fixed(arms: Sequence[Sequence[Sequence[object]]]) -> bool:
    """Whether intervals are for these very problems."""
    return len(arms[0]) == 1 or min(len(row) for rows in arms for row in rows) >= FIXED


def observed(rows: Rows, k: int | None = None) -> Floats:
    """Each problem's mean score; with `k` its pass@k, a score of 1 solving it."""
    if k is None:
        return np.array([math.fsum(row) / len(row) for row in rows])
    return np.array([passes(len(row), k)[sum(score == 1 for score in row)] for row in rows])


@cache
def passes(n: int, k: int) -> Floats:
    """The unbiased estimate of pass@k from n samples of which 0, 1, …, n are right: 1 − C(n−c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), eq. 1.
    """
    return np.array([1 - math.comb(n - right, k) / math.comb(n, k) for right in range(n + 1)], np.float64)


def within(rows: Rows, rng: np.random.Generator, resamples: int, k: int | None = None) -> tuple[Draws, str]:
    """Samples drawn anew within each problem, problems kept: the paper's bootstrap where enough scores vary."""
    if k is not None and len(rows) > 1:
        return _passing(rows, rng, resamples, k), PASSING
    if (len(rows) == 1 and k is not None) or sum(len(row) * np.var(row) for row in rows) < EVENTS:
        return jeffreys(rows, rng, resamples, k), JEFFREYS
    means = (observed(rows) + _noise(rows, rng, resamples, None)).mean(1)
    return Draws(means, means), BOOTSTRAP


def over_problems(arms: Sequence[tuple[Floats, Floats]], rng: np.random.Generator, resamples: int) -> list[Draws]:
    """Problems drawn anew by random weights (Rubin 1981, The Bayesian bootstrap), samples within them by resampling.

    An arm is what was observed of each problem, and its noise as (resamples, problems). To the problems seen one more
    is added, a quarter of it for each way in which two arms can solve and fail one: of each arm alone, Jeffreys' half
    success and half failure. So there is an interval where every problem came out alike.
    """
    problems = len(arms[0][0])
    weights = rng.dirichlet([1.0] * problems + [0.25] * 4, resamples)
    both, one, other = weights[:, problems], weights[:, problems + 1], weights[:, problems + 2]
    found = []
    for (seen, noise), unseen in zip(arms, (both + one, both + other), strict=False):
        drawn = np.clip((weights[:, :problems] * (seen + noise)).sum(1) + unseen, 0, 1)
        found.append(Draws(drawn, drawn))
    return found


def jeffreys(rows: Rows, rng: np.random.Generator, resamples: int, k: int | None = None) -> Draws:
    """Posteriors of each problem's accuracy, with half a success and half a failure shared among all problems.

    Shared, for with as much for each, many problems would add up many halves. One problem, or many alike, get
    Jeffreys' interval, modified at its ends after Brown, Cai and DasGupta 2001 (Interval estimation for a binomial
    proportion), §4.1.2: without a success the upper end is the exact one, and with one or none the lower end is 0;
    likewise with failures. A score between 0 and 1 counts as so much of a success, which makes the interval too wide.
    """
    right = np.array([math.fsum(row if k is None else [score == 1 for score in row]) for row in rows])
    wrong = np.array([len(row) for row in rows]) - right

    def mean(accuracies: Floats) -> Floats:
        found: Floats = (accuracies if k is None else 1 - (1 - accuracies) ** k).mean(1)
        return found

    lower = mean(_least(right, wrong, rng, resamples))
    upper = mean(1 - _least(wrong, right, rng, resamples))
    return Draws(lower, upper)


def _least(right: Floats, wrong: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Accuracies for the lower end, (resamples, problems); swapped, failure rates for the upper."""
    failed = right < wrong
    solved = ~failed
    surely = bool(solved.any()) and wrong[solved].sum() < 1
    a = 0.5 * _shares(wrong, failed)
    b = (1.0 if surely else 0.5) * _shares(right, solved)
    drawn = rng.beta(np.maximum(right + a, 1e-9), np.maximum(wrong + b, 1e-9), (resamples, len(right)))
    if right[failed].sum() <= 1:
        drawn[:, failed] = 0.0
    return drawn


def _shares(of: Floats, among: NDArray[np.bool_]) -> Floats:
    """What each problem gets of a whole: in proportion to `of`, and all of it `among` some where there are any."""
    parts = np.where(among, of, 0.0) if among.any() else of
    return parts / parts.sum() if parts.sum() else np.full(len(of), 1 / len(of))


def _passing(rows: Rows, rng: np.random.Generator, resamples: int, k: int) -> Draws:
    """pass@k of samples drawn anew, from accuracies (c + ½)/(n + 1), for problems not solved yet vary too.

    pass@k is so curved that what is drawn lies beside what was observed: each problem's draws are moved back to it.
    Near 1, where resampling hardly ever fails, Jeffreys' posterior reaches further; the wider of both is taken.
    """
    n = np.array([len(row) for row in rows])
    right = np.array([sum(score == 1 for score in row) for row in rows])
    accuracies = rng.beta(right + 0.5, n - right + 0.5, (resamples, len(rows)))
    resampled = rng.binomial(n, (right + 0.5) / (n + 1), accuracies.shape)
    again = np.stack([passes(len(row), k)[drawn] for row, drawn in zip(rows, resampled.T, strict=True)], 1)
    seen = observed(rows, k)
    ways = [np.sort((seen + x - x.mean(0)).mean(1)) for x in (again, 1 - (1 - accuracies) ** k)]
    return Draws(np.clip(np.minimum(*ways), 0, 1), np.clip(np.maximum(*ways), 0, 1))


def _noise(rows: Rows, rng: np.random.Generator, resamples: int, k: int | None) -> Floats:
    """How statistics of resampled rows lie about their own mean, (resamples, problems)."""
    drawn = np.empty((resamples, len(rows)))
    for column, row in enumerate(rows):
        n = len(row)
        if k is not None:
            right = sum(score == 1 for score in row)
            drawn[:, column] = passes(n, k)[rng.binomial(n, right / n, resamples)]
        elif set(row) <= {0.0, 1.0}:
            drawn[:, column] = rng.binomial(n, sum(row) / n, resamples) / n
        else:
            drawn[:, column] = np.array(row)[rng.integers(n, size=(resamples, n))].mean(1)
    centred: Floats = drawn - drawn.mean(0)
    return centred

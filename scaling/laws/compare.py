"""Curves against each other: phases added up, and the length from which one environment stays cheaper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from scaling.errors import FitError
from scaling.laws.fit import REACH, Costs, Fit, Prediction, predict
from scaling.laws.models import Array

_SEARCH = 100  # crossovers are looked for up to this multiple of the largest measured length
_SETTING = ("traces", "concurrency_limit", "concurrency_mean")  # of one phase: phases of one job may differ in them


@dataclass(frozen=True)
class Total:
    """The phases of one environment on one device, added up; only the phases that were measured."""

    fits: tuple[Fit, ...]

    @property
    def phases(self) -> tuple[str, ...]:
        return tuple(str(fit.curve["phase"]) for fit in self.fits)

    @property
    def label(self) -> str:
        return self.fits[0].label

    @property
    def curve(self) -> dict[str, object]:
        """The columns that all phases share, with `phase` naming them, as in `rollout+update`."""
        first = self.fits[0].curve
        shared = {key: value for key, value in first.items() if all(fit.curve.get(key) == value for fit in self.fits)}
        return shared | {"phase": "+".join(self.phases)}

    @property
    def smallest(self) -> float:
        return max(fit.smallest for fit in self.fits)

    @property
    def largest(self) -> float:
        return min(fit.largest for fit in self.fits)

    def at(self, tokens: Array) -> Array:
        """Device-seconds per trace at `tokens` [n], over the phases: [n]."""
        return np.asarray(np.sum([fit.at(tokens) for fit in self.fits], axis=0))

    def draws(self, tokens: Array) -> Array:
        """As `Fit.draws`, over the phases."""
        each = [fit.draws(tokens) for fit in self.fits]
        fewest = min(draws.shape[1] for draws in each)
        return np.asarray(np.sum([draws[:, :fewest] for draws in each], axis=0))

    def predict(self, tokens: float) -> Prediction:
        return predict(self, tokens)


def total(fits: Sequence[Fit]) -> Total:
    """The sum of one environment's phases; raises `FitError` if a phase is there twice or environments are mixed."""
    phases = [fit.curve["phase"] for fit in fits]
    if not fits or len(set(phases)) < len(phases) or len({fit.label for fit in fits}) > 1:
        raise FitError(
            f"cannot add up {', '.join(f'{fit.label} {phase}' for fit, phase in zip(fits, phases, strict=True))}; "
            "expected one curve a phase of one environment"
        )
    return Total(tuple(fits))


def totals(fits: Sequence[Fit]) -> list[Total]:
    """One total for each environment with several measured phases, for each method that its rollout was measured by.

    A phase that the rollout's method did not measure is taken from the other one. Environments with a phase in
    several concurrency regimes have no single total and are left out.
    """
    jobs: dict[tuple[object, ...], list[Fit]] = {}
    for fit in fits:
        identity = tuple(value for key, value in fit.curve.items() if key not in {"phase", "method", *_SETTING})
        jobs.setdefault(identity, []).append(fit)
    found = []
    for job in jobs.values():
        phases = list(dict.fromkeys(fit.curve["phase"] for fit in job))
        for method in dict.fromkeys(fit.curve["method"] for fit in job if fit.curve["phase"] == "rollout"):
            chosen = []
            for phase in phases:
                of_phase = [fit for fit in job if fit.curve["phase"] == phase]
                chosen += [fit for fit in of_phase if fit.curve["method"] == method] or of_phase
            if len(phases) == len(chosen) > 1:
                found.append(total(chosen))
    return found


@dataclass(frozen=True, slots=True)
class Crossover:
    """The thinking length, in tokens, from which `cheaper` stays cheaper, with its 95 % interval.

    `high` is infinite where the rows do not rule out that the curves never cross; `low` is the smallest length that
    both curves were measured at where they do not rule out that it already held there. `extrapolated`: beyond 1.5×
    what both were measured to.
    """

    tokens: float
    low: float
    high: float
    cheaper: str
    extrapolated: bool


def crossover(a: Costs, b: Costs) -> Crossover | None:
    """Where `a` and `b` cost the same for the last time; None if one is cheaper at every length looked at.

    Looks from the smallest length that both curves cover to 100× the largest.
    """
    start = max(a.smallest, b.smallest)
    end = _SEARCH * max(a.largest, b.largest)
    grid = np.geomspace(start, end, 400)
    difference = a.at(grid) - b.at(grid)
    last = _last_change(difference[None])[0]
    if last < 0:
        return None
    root = optimize.brentq(
        lambda tokens: float((a.at(np.array([tokens])) - b.at(np.array([tokens])))[0]), *grid[last : last + 2]
    )
    after = float(np.sign(difference[-1]))
    bounds = [_bounds(draws * after, grid) for draws in _differences(a, b, grid)]
    return Crossover(
        tokens=float(root),
        low=min(low for low, _ in bounds),
        high=max(high for _, high in bounds),
        cheaper=b.label if after > 0 else a.label,
        extrapolated=bool(root > REACH * min(a.largest, b.largest)),
    )


def _differences(a: Costs, b: Costs, grid: Array) -> Array:
    of_a, of_b = a.draws(grid), b.draws(grid)
    fewest = min(of_a.shape[1], of_b.shape[1])
    return of_a[:, :fewest] - of_b[:, :fewest]


def _last_change(difference: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    """Index [B] of the last grid interval in which each row of `difference` [B, n] changes sign, −1 if none does."""
    positive = difference > 0
    changes = positive[:, 1:] != positive[:, :-1]
    last = changes.shape[1] - 1 - np.argmax(changes[:, ::-1], axis=1)
    return np.where(changes.any(axis=1), last, -1)


def _bounds(difference: Array, grid: Array) -> tuple[float, float]:
    """2.5 % and 97.5 % points of where draws [B, n] turn positive for good, linear between points of the log grid."""
    if not np.isfinite(difference).all():
        return float(grid[0]), math.inf
    last = _last_change(difference)
    rows = np.arange(len(difference))
    left, right = difference[rows, last], difference[rows, last + 1]
    share = left / np.where(left == right, 1.0, left - right)
    roots = grid[last] * (grid[last + 1] / grid[last]) ** share
    settled = difference[:, -1] > 0
    roots = np.where(last < 0, grid[0], roots)
    roots = np.where(settled, roots, np.inf)  # never, or not for good
    low, high = np.quantile(roots, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def settled(one: Costs, other: Costs, crossing: Crossover | None) -> bool:
    """Whether the rows tell which of two curves is cheaper, from the length of their `crossing` on if there is one."""
    if crossing is not None:
        return crossing.low > max(one.smallest, other.smallest) or math.isfinite(crossing.high)
    at = min(one.largest, other.largest)
    a, b = predict(one, at), predict(other, at)
    return a.high < b.low or b.high < a.low

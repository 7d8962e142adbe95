"""When interleaved pairs have shown enough: a group-sequential sign test of their median log-ratio against a floor.

Of each pair, the sign of its log-ratio against a threshold is a fair coin if the threshold is the true median, whatever
the noise is distributed like. So the boundaries that spend a false-alarm budget over all looks (Lan and DeMets, 1983,
with linear spending) follow exactly from the walk of a binomial count, and order statistics within them are repeated
confidence intervals (Jennison and Turnbull, 1989): they hold at every look together, however a series was stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

ALPHA = 0.025
"""Chance, a side, that an interval misses the true median at any of its looks: the intervals are 95 % ones."""

POWER = 0.8
"""With which chance the smallest visible slowdown would have been called one."""

MOST_PAIRS = 1000
"""How far ahead a question is worth settling."""

Answer = Literal["regression", "fine", "undecided"]


@lru_cache(maxsize=4096)
def boundaries(pairs: int, alpha: float = ALPHA) -> tuple[int, ...]:
    """Of `pairs` at most, how many of the first n have to fall on one side to decide, for each n from 1 on.

    n + 1 where none would do. The chance that a fair coin ever gets there is at most `alpha`, of which n/`pairs` may be
    spent by the n-th look.
    """
    bounds: list[int] = []
    spent, walk = 0.0, [1.0]  # chance of each count of heads without having crossed yet
    for n in range(1, pairs + 1):
        walk = [(low + high) / 2 for low, high in zip([*walk, 0.0], [0.0, *walk], strict=True)]
        bound, crossing = n + 1, 0.0
        while bound and spent + crossing + walk[bound - 1] <= alpha * n / pairs + 1e-15:
            bound -= 1
            crossing += walk[bound]
        walk[bound:] = [0.0] * (n + 1 - bound)
        spent += crossing
        bounds.append(bound)
    return tuple(bounds)


def power(chance: float, bounds: Sequence[int]) -> float:
    """Chance to reach the boundaries if each pair falls on that side with `chance`."""
    crossed, walk = 0.0, [1.0]
    for n, bound in enumerate(bounds, start=1):
        walk = [low * (1 - chance) + high * chance for low, high in zip([*walk, 0.0], [0.0, *walk], strict=True)]
        crossed += sum(walk[bound:])
        walk[bound:] = [0.0] * (n + 1 - bound)
    return crossed


@dataclass(frozen=True, slots=True)
class Reading:
    """What the pairs of one series say. Ratios are candidate over baseline: 1.03 is 3 % slower.

    `answer` is `regression` where the interval lies wholly above the floor, `fine` where wholly below. `low` and `high`
    are the 95 % interval of `ratio`, the median; None while there are too few pairs for one. `noise` is the standard
    deviation of the log-ratios; `visible` the smallest slowdown, as a share, that so many pairs of such noise would
    call a regression with 80 % chance; `settling` how many pairs to foresee so that a difference like the one seen is
    decided with that chance, None where `MOST_PAIRS` would not do.
    """

    answer: Answer
    pairs: int
    ratio: float
    low: float | None
    high: float | None
    noise: float | None
    visible: float | None
    settling: int | None


def read(log_ratios: Sequence[float], floor: float, pairs: int, alpha: float = ALPHA) -> Reading:
    """Reads a series of which at most `pairs` are foreseen, against a `floor` such as 0.03.

    The first look that decides holds: pairs after it are not read. Raises `ValueError` for an empty series or one
    longer than foreseen.
    """
    if not 0 < len(log_ratios) <= pairs:
        raise ValueError(f"{len(log_ratios)} log-ratios where 1 to {pairs} were foreseen")
    threshold, bounds = math.log1p(floor), boundaries(pairs, alpha)
    answer: Answer = "undecided"
    for n in range(1, len(log_ratios) + 1):
        low, high = _interval(log_ratios[:n], bounds[n - 1])
        if low > threshold or high < threshold:
            answer = "regression" if low > threshold else "fine"
            break
    seen = log_ratios[:n]
    noise = statistics.stdev(seen) if n > 2 else None
    reach = _reach(bounds[:n])
    return Reading(
        answer,
        n,
        ratio=math.exp(statistics.median(seen)),
        low=math.exp(low) if math.isfinite(low) else None,
        high=math.exp(high) if math.isfinite(high) else None,
        noise=noise,
        visible=None if noise is None or reach is None else math.expm1(threshold + noise * reach),
        settling=None if noise is None else _settling(statistics.median(seen) - threshold, noise, alpha),
    )


def _interval(log_ratios: Sequence[float], bound: int) -> tuple[float, float]:
    """The medians that this look's boundary does not refuse."""
    ordered = sorted(log_ratios)
    return (-math.inf, math.inf) if bound > len(ordered) else (ordered[-bound], ordered[bound - 1])


@lru_cache(maxsize=1024)
def _reach(bounds: tuple[int, ...]) -> float | None:
    """How many standard deviations above the floor a change has to be to be called with `POWER`; None if none is."""
    if all(bound > n for n, bound in enumerate(bounds, start=1)):
        return None
    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(NormalDist().cdf(middle), bounds) < POWER else (low, middle)
    return high


def _settling(distance: float, noise: float, alpha: float) -> int | None:
    """The fewest pairs, in steps of a tenth, that decide with `POWER` if the true median lies so far from the floor."""
    chance = NormalDist().cdf(abs(distance) / noise) if noise else 1.0
    pairs = 1
    while pairs <= MOST_PAIRS:
        if power(chance, boundaries(pairs, alpha)) >= POWER:
            return pairs
        pairs += max(1, pairs // 10)
    return None

"""When interleaved pairs have shown enough: a group-sequential sign test of their median log-ratio against a floor.

A coin decides which side of a pair runs first. So, of each pair, the sign of its log-ratio against the true change is
another fair coin, whatever the machine does meanwhile: drift, waves, slow spells, rare slow runs. The boundaries that
spend a false-alarm budget over all looks (Lan and DeMets, 1983, with linear spending) follow exactly from the walk of a
binomial count, and order statistics within them are repeated confidence intervals (Jennison and Turnbull, 1989): they
hold at every look together, however a series was stopped. `studies/gate_power.py` tries it.
"""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

ALPHA = 0.025
"""Chance, a side, that an interval misses the true median at any of its looks: the intervals are 95 % ones."""

POWER = 0.8
"""With which chance the smallest visible slowdown would have been called one."""

MOST_PAIRS = 500
"""How far ahead a question is worth settling."""

Answer = Literal["regression", "fine", "undecided"]


def candidate_first(pairs: int, seed: int) -> list[bool]:
    """Of each pair, whether the candidate runs before the baseline: a coin each.

    In a fixed order, ABBA say, a slow spell of one pair falls on the next with the same sign, and a wave of four runs
    falls on all of them.
    """
    coin = random.Random(seed)
    return [coin.random() < 0.5 for _ in range(pairs)]


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


def fewest(alpha: float = ALPHA) -> int:
    """Pairs without which nothing is decided: those that a coin puts on one side with a chance of at most `alpha`."""
    return math.ceil(-math.log2(alpha))


def power(chance: float, bounds: Sequence[int]) -> float:
    """Chance to reach the boundaries if each pair falls on that side with `chance`."""
    crossed, walk = 0.0, [1.0]
    for n, bound in enumerate(bounds, start=1):
        walk = [low * (1 - chance) + high * chance for low, high in zip([*walk, 0.0], [0.0, *walk], strict=True)]
        crossed += sum(walk[bound:])
        walk[bound:] = [0.0] * (n + 1 - bound)
        if crossed > 1 - 1e-9:
            break
    return crossed


@dataclass(frozen=True, slots=True)
class Reading:
    """What the pairs of one series say. Ratios are candidate over baseline: 1.03 is 3 % slower.

    `answer` is `regression` where the interval lies wholly above the floor, `fine` where wholly below. `low` and `high`
    are the 95 % interval of `ratio`, the median; None while there are too few pairs for one. `noise` is how far from
    their median two thirds of the log-ratios lie (68.27 %: a standard deviation, if they are normal; a few wild pairs
    do not move it), None of fewer than three. `visible` is the smallest slowdown, as a share, that so many pairs of
    such noise would call a regression with 80 % chance; `settling` about how many pairs to foresee so that a difference
    like the one seen is decided with that chance, more than were read where those did not; None where `MOST_PAIRS`
    would not do.
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

    The first look that decides holds: pairs after it are not read. Of several series read together each takes its part
    of `ALPHA`. Raises `ValueError` for an empty series or one longer than foreseen.
    """
    if not 0 < len(log_ratios) <= pairs:
        raise ValueError(f"{len(log_ratios)} log-ratios where 1 to {pairs} were foreseen")
    threshold, bounds = math.log1p(floor), boundaries(pairs, alpha)
    answer: Answer = "undecided"
    seen: list[float] = []  # in order of size
    low, high = -math.inf, math.inf
    for log_ratio, bound in zip(log_ratios, bounds, strict=False):
        insort(seen, log_ratio)
        low, high = (seen[-bound], seen[bound - 1]) if bound <= len(seen) else (-math.inf, math.inf)
        if low > threshold or high < threshold:
            answer = "regression" if low > threshold else "fine"
            break
    median, noise, reach = statistics.median(seen), _noise(seen), _reach(bounds[: len(seen)])
    settling = None if noise is None else _settling(abs(median - threshold), noise, alpha)
    if settling is not None and answer == "undecided":
        settling = max(settling, len(seen) + 1)
    return Reading(
        answer,
        len(seen),
        ratio=math.exp(median),
        low=math.exp(low) if math.isfinite(low) else None,
        high=math.exp(high) if math.isfinite(high) else None,
        noise=noise,
        visible=None if noise is None or reach is None else math.expm1(threshold + noise * reach),
        settling=settling,
    )


def _noise(log_ratios: Sequence[float]) -> float | None:
    """The distance of `Reading.noise`, between two of them by their share."""
    if len(log_ratios) < 3:
        return None
    median = statistics.median(log_ratios)
    distances = sorted(abs(value - median) for value in log_ratios)[1:]  # the median is fitted: one is 0, or nearly
    whole, part = divmod((2 * NormalDist().cdf(1) - 1) * (len(distances) - 1), 1)
    below, above = distances[int(whole) : int(whole) + 2]
    return below + part * (above - below)


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
    """About the fewest pairs that decide with `POWER` if the true median lies so far from the floor."""
    if not distance:
        return None
    return _pairs_for(round(NormalDist().cdf(distance / noise), 3) if noise else 1.0, alpha)


@lru_cache(maxsize=4096)
def _pairs_for(chance: float, alpha: float) -> int | None:
    """`_settling` where each pair falls on the right side of the floor with this `chance`."""

    def do(pairs: int) -> bool:
        return power(chance, boundaries(pairs, alpha)) >= POWER

    return 1 + bisect_left(range(1, MOST_PAIRS), True, key=do) if do(MOST_PAIRS) else None

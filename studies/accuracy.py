"""The statistics that all studies share: accuracies of sampled traces with intervals of 95 %, and what they compare.

Scores are in [0, 1], one inner list a problem; lists may be of unequal length. The order of problems and of samples
never matters, and the same seed gives the same interval. `docs/statistics.md` shows how often the intervals hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scaling.errors import FitError, UsageError
from studies.resampling import (
    BOOTSTRAP,
    HIERARCHICAL,
    JEFFREYS,
    Draws,
    Floats,
    are_fixed,
    draw,
    jeffreys,
    observed,
    over_problems,
)

Scores = Sequence[Sequence[float]]
Answers = Sequence[Sequence[str | None]]

RESAMPLES = 5000
"""Of the paper's bootstrap (*The Markovian Thinker*, arXiv 2510.06557, evaluation)."""

SURE = 64
"""Samples of a problem from which intervals of averages hold in 93 to 97 % of simulated studies."""

CURVED = 8
"""Of n samples, pass@k and maj@k of more than n/8 are so curved that intervals for these very problems hold less often:
in simulation (`docs/statistics.md`) down to 82 %."""

VOTES = 1000
"""Resamples of majority votes, and draws of k answers that are not all of them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval of 95 %. `samples`: of all `problems` together. `method`: how, and for whom it holds.

    A ratio to nothing has the value NaN, and one whose denominator may be 0 an infinite upper end.
    """

    value: float
    low: float
    high: float
    problems: int
    samples: int
    method: str

    def record(self) -> dict[str, Any]:
        """As JSON, with null for what is not finite."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first arm less the second, and the first as a share of the second: what it keeps of it."""

    difference: Estimate
    ratio: Estimate

    def record(self) -> dict[str, Any]:
        return {"difference": self.difference.record(), "ratio": self.ratio.record()}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which problems two arms solve by majority vote, in the order they were given."""

    both: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    neither: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        return {name: list(problems) for name, problems in asdict(self).items()}


def average(scores: Scores, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """avg@k: the mean over problems of their mean scores.

    With 16 samples of each problem or more, or one problem alone, the interval is for these very problems: the
    paper's bootstrap, which resamples samples within problems; where hardly any score varies, Jeffreys' posterior in
    its place. With fewer samples, problems are resampled too, for others like them.

    Raises `FitError` without problems or with one that has no samples, `UsageError` for scores outside [0, 1].
    """
    rows = sorted(_checked(scores))
    [draws], how = draw([rows], np.random.default_rng(seed), resamples)
    return _estimate(float(observed(rows).mean()), draws, [rows], f"avg@k by {how}", resamples)


def compare(first: Scores, second: Scores, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """`first` against `second`, paired by problem: their difference, and `first` as a share of `second`.

    Intervals as those of `average`; where problems are resampled, both arms get the same ones. A ratio to an accuracy
    of 0 is NaN, between 0 and infinity; where the interval of `second` reaches 0, the ratio has no upper end. Its
    `method` says so.

    Raises as `average`, and `FitError` where the arms differ in their number of problems.
    """
    if len(first) != len(second):
        raise FitError(f"arms are compared over the same problems; these have {len(first)} and {len(second)}")
    pairs = sorted(zip(_checked(first), _checked(second), strict=True))
    arms = [[pair[arm] for pair in pairs] for arm in (0, 1)]
    [ours, theirs], how = draw(arms, np.random.default_rng(seed), resamples)
    a, b = (float(observed(rows).mean()) for rows in arms)
    how = f"paired by problem, {how}"
    apart = Draws(ours.lower - theirs.upper, ours.upper - theirs.lower)
    difference = _estimate(a - b, apart, arms, how, resamples)
    if b == 0:
        nothing = Draws(np.zeros(1), np.full(1, math.inf))
        ratio = _estimate(math.nan, nothing, arms, f"no ratio, as the second arm has no success; {how}", resamples)
        return Comparison(difference, ratio)
    upper = np.full(resamples, math.inf)
    if theirs.interval(b)[0] > 0:
        np.divide(ours.upper, theirs.lower, out=upper, where=theirs.lower > 0)
    else:
        how = f"no upper end, as the second arm's accuracy may be 0; {how}"
    share = Draws(ours.lower / np.maximum(theirs.upper, 1e-12), upper)
    return Comparison(difference, _estimate(a / b, share, arms, how, resamples))


def pass_at(scores: Scores, k: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """pass@k: how often one of k samples solves a problem, as the mean over problems of 1 − C(n−c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), eq. 1, with c of n samples right; a sample is right
    with a score of 1. Which problems the interval is for is settled as in `average`.

    Raises as `average`, and `FitError` where a problem has fewer than k samples.
    """
    rows = sorted(tuple(float(score == 1) for score in row) for row in _checked(scores))
    _enough(rows, k, "pass")
    [draws], how = draw([rows], np.random.default_rng(seed), resamples, k if k > 1 else None)
    value = float(observed(rows, k).mean())
    return _estimate(value, draws, [rows], f"pass@{k}, unbiased, by {how}", resamples, k)


def majority(
    answers: Answers, correct: Scores, k: int | None = None, *, resamples: int = VOTES, seed: int = 0
) -> Estimate:
    """maj@k: what the commonest of k answers scores, as the mean over problems; without `k`, of all answers.

    A score of an answer is the mean of its samples'. Commonest answers that tie share the vote, samples without an
    answer have none, and without any vote a problem scores 0. All ways to take k of n samples without replacement
    count alike: exactly where k is 1 or n, otherwise `VOTES` of them drawn at random. For the interval, samples are
    resampled and vote in n//k groups; which problems it is for is settled as in `average`. With k near n it is too
    narrow where two answers are nearly tied, for a vote is then a step.

    Raises as `average`, and `FitError` where answers and scores do not match or a problem has fewer than k samples.
    """
    ballots = sorted(_ballots(answers, correct))
    _enough(correct, 1 if k is None else k, "maj")
    rng = np.random.default_rng(seed)
    sizes = [sum(ballot[0]) for ballot in ballots]
    votes = [k or n for n in sizes]
    value = np.array([_vote(ballot, size, rng) for ballot, size in zip(ballots, votes, strict=True)])
    noise = np.empty((resamples, len(ballots)))
    for column, ((counts, right), size, n) in enumerate(zip(ballots, votes, sizes, strict=True)):
        drawn = rng.multinomial(size, np.array(counts) / n, (resamples, n // size))
        noise[:, column] = _won(drawn, np.array(right)).mean(1)
    noise -= noise.mean(0)
    rows = [(0.0,) * n for n in sizes]
    if not are_fixed([rows]):
        [draws], how = over_problems([(value, noise)], rng, resamples), HIERARCHICAL
    elif noise.any():
        means = np.clip((value + noise).mean(1), 0, 1)
        draws, how = Draws(means, means), BOOTSTRAP
    else:
        groups = [(share,) * (n // size) for share, size, n in zip(value, votes, sizes, strict=True)]
        draws, how = jeffreys(groups, rng, resamples), f"{JEFFREYS} (every vote came out alike)"
    name = "maj" if k is None else f"maj@{k}"
    return _estimate(float(value.mean()), draws, [rows], f"{name} by {how}", resamples, k or max(sizes))


def solved(answers: Answers, correct: Scores) -> list[bool]:
    """Which problems a majority vote of all their samples solves: scores more than half, so not by a tie of two.

    Votes as in `majority`, and raises as it.
    """
    rng = np.random.default_rng(0)
    return [_vote(ballot, sum(ballot[0]), rng) > 0.5 for ballot in _ballots(answers, correct)]


def coverage(problems: Sequence[str], first: Sequence[bool], second: Sequence[bool]) -> Coverage:
    """Which of the `problems` two arms solve, by what `solved` says of each; raises `FitError` for unequal lengths."""
    if not len(problems) == len(first) == len(second):
        raise FitError(f"{len(problems)} problems, and {len(first)} and {len(second)} verdicts; each has to have one")
    kinds: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for problem, a, b in zip(problems, first, second, strict=True):
        kinds[bool(a), bool(b)].append(problem)
    return Coverage(*map(tuple, kinds.values()))


def by_budget(
    scores: Sequence[Sequence[Mapping[int, float]]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[int, Estimate]:
    """avg@k at each thinking budget in tokens, smallest first, from what each trace earns when right-trimmed to it.

    One inner list a problem, and in it for each sample its score by budget. All budgets are read off the same traces,
    so their errors go together. Raises as `average`, and `FitError` where a trace lacks a budget that others have.
    """
    budgets = sorted({budget for row in scores for sample in row for budget in sample})
    if not budgets:
        raise FitError("no trace has a score at any budget; expected one a budget, as in {1024: 1.0}")
    for sample in (sample for row in scores for sample in row):
        if missing := [budget for budget in budgets if budget not in sample]:
            raise FitError(f"a trace has no score at a budget of {missing[0]} tokens, and others have")
    return {
        budget: average([[sample[budget] for sample in row] for row in scores], resamples=resamples, seed=seed)
        for budget in budgets
    }


def _checked(scores: Scores) -> list[tuple[float, ...]]:
    """Each problem's scores, sorted; raises for what `average` names."""
    rows = [tuple(sorted(map(float, row))) for row in scores]
    if not rows:
        raise FitError("there are no problems; an accuracy needs at least one")
    if empty := sum(not row for row in rows):
        raise FitError(f"{empty} of {len(rows)} problems have no samples; leave out those that were never answered")
    for row in rows:
        for score in row:
            if not 0 <= score <= 1:
                raise UsageError(f"a score is {score:g}; expected a number from 0 to 1")
    return rows


def _enough(rows: Sequence[Sequence[object]], k: int, what: str) -> None:
    if k < 1:
        raise UsageError(f"{what}@{k} has no meaning; expected 1 or more, as in {what}@8")
    if (fewest := min(map(len, rows))) < k:
        raise FitError(f"{what}@{k} needs {k} samples of each problem, and one has {fewest}")


def _estimate(
    value: float, draws: Draws, arms: Sequence[Sequence[Sequence[object]]], how: str, resamples: int, k: int = 1
) -> Estimate:
    low, high = draws.interval(value)
    counts = sorted(len(row) for rows in arms for row in rows)
    each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    if k > 1 and k * CURVED > counts[0] and are_fixed(arms):
        level = "nominally 95 % (in simulation 80 or more, as k is near the number of samples)"
    else:
        level = "95 %" if counts[0] >= SURE else "nominally 95 % (in simulation 90 or more)"
    text = f"{how}; {each} samples a problem, {resamples} resamples, {level}"
    return Estimate(value, low, high, len(arms[0]), sum(counts), text)


Ballot = tuple[tuple[int, ...], tuple[float, ...]]
"""How often each answer was given and what it scores, the absent answer last with a score of 0."""


def _ballots(answers: Answers, correct: Scores) -> list[Ballot]:
    given = [list(row) for row in answers]
    _checked(correct)
    if [len(row) for row in given] != [len(row) for row in correct]:
        raise FitError("every answer needs its score, so answers and scores need the same problems and samples")
    ballots = []
    for row, scores in zip(given, correct, strict=True):
        by_answer: dict[str, list[float]] = {}
        for answer, score in zip(row, scores, strict=True):
            if answer is not None:
                by_answer.setdefault(answer, []).append(score)
        kinds = sorted((len(earned), math.fsum(earned) / len(earned)) for earned in by_answer.values())
        counts, right = [n for n, _ in kinds], [score for _, score in kinds]
        ballots.append(((*counts, row.count(None)), (*right, 0.0)))
    return ballots


def _won(counts: np.ndarray[Any, Any], right: Floats) -> Floats:
    """What votes score: `counts` of each answer along the last axis, the absent answer last."""
    given = counts[..., :-1]
    most = given.max(-1, keepdims=True, initial=0)
    winners = (given == most) & (most > 0)
    shared: Floats = (winners * right[:-1]).sum(-1) / np.maximum(winners.sum(-1), 1)
    return shared


def _vote(ballot: Ballot, k: int, rng: np.random.Generator) -> float:
    """What k of the answers score in a majority vote, on average."""
    counts, right = np.array(ballot[0]), np.array(ballot[1])
    if k == 1:
        return float((counts * right).sum() / counts.sum())
    if k == counts.sum():
        return float(_won(counts, right))
    return float(_won(rng.multivariate_hypergeometric(counts, k, VOTES), right).mean())

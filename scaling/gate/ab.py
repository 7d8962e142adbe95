"""Two builds measured side by side, in pairs of fresh processes that take turns, until their speeds are told apart."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scaling.errors import UsageError
from scaling.gate.builds import Build, origin
from scaling.gate.check import Check, check
from scaling.gate.sequential import ALPHA, MOST_PAIRS, Reading, candidate_first, fewest, read
from scaling.gate.sessions import Cells, CrashError, Session, Work
from scaling.gate.side import Side

TURNS_SECONDS = 6.0
"""Of a process, spent in its turns: about as long as it takes to load, so that neither is most of a pair."""

TURNS = (4, 40)
"""Least and most repeats of its cells that a process makes."""

FIRST_TURNS = 3
"""Of the pair that is discarded."""

HANGS_SECONDS = 600.0
"""A process without a sign of life for so long hangs."""

Outcome = Literal["fine", "regression", "undecided"]


@dataclass(frozen=True, slots=True)
class Series:
    """One cell or benchmark: the log-ratio, candidate over baseline, of each pair, and what they say together."""

    key: str
    label: str
    log_ratios: tuple[float, ...]
    reading: Reading


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of two builds, a the baseline and b the candidate.

    `pairs` were foreseen, fewer than `fewest` cannot decide, and one takes about `pair_seconds`; `seed` drew which side
    leads in each. `counters` compares what both did in the first pair, as `scaling check` does; None where `crash` says
    how the candidate ended.
    """

    a: Build
    b: Build
    floor: float
    budget_seconds: float
    seed: int
    elapsed_seconds: float
    pairs: int
    fewest: int
    pair_seconds: float
    series: tuple[Series, ...]
    counters: Check | None
    crash: str | None

    @property
    def outcome(self) -> Outcome:
        answers = {series.reading.answer for series in self.series}
        if self.crash is not None or "regression" in answers:
            return "regression"
        return "fine" if answers == {"fine"} else "undecided"

    @property
    def exit_code(self) -> int:
        return {"fine": 0, "regression": 1, "undecided": 3}[self.outcome]

    @property
    def sentences(self) -> list[str]:
        """The verdicts, one a series, in words."""
        if self.crash is not None:
            return [f"The candidate fails where the baseline does not: {self.crash}."]
        if not self.series:
            needed = (self.fewest + 1) * self.pair_seconds * 1.1  # with the one that is discarded
            return [
                f"Nothing is decided: a budget of {self.budget_seconds:.0f} s has room for {_pairs(self.pairs)} of "
                f"{self.pair_seconds:.0f} s, and fewer than {self.fewest} cannot decide; --budget {_minutes(needed)} "
                "would do for a clear difference."
            ]
        return [self._sentence(each) for each in self.series]

    def _sentence(self, series: Series) -> str:
        found, floor = series.reading, f"{100 * self.floor:.3g} %"
        if found.low is None or found.high is None:
            span = f"in {_pairs(found.pairs)}, too few for an interval"
        else:
            span = f"95 % interval {_change(found.low)} to {_change(found.high)}, {_pairs(found.pairs)}"
        told = f"{series.label}: the candidate's time differs by {_change(found.ratio)} ({span})"
        match found.answer:
            case "fine":
                return f"{told}: no slowdown of {floor} or more."
            case "regression":
                return f"{told}: slower by more than the floor of {floor}."
        told += f": undecided against the floor of {floor}."
        if found.visible is not None:
            told += (
                f" The smallest slowdown that this would have shown is {100 * found.visible:.2g} % (with 80 % chance)."
            )
        if found.settling is None:
            return f"{told} More pairs would hardly settle it: ask about another --floor."
        budget = (found.settling + 1) * self.pair_seconds * 1.1
        return (
            f"{told} About {_pairs(found.settling)} would settle a difference like this: --budget {_minutes(budget)}."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "exit_code": self.exit_code,
            "sentences": self.sentences,
            "a": {"spec": self.a.spec, "described": self.a.described},
            "b": {"spec": self.b.spec, "described": self.b.described},
            "floor": self.floor,
            "alpha": ALPHA,
            "budget_seconds": self.budget_seconds,
            "seed": self.seed,
            "elapsed_seconds": self.elapsed_seconds,
            "pairs_foreseen": self.pairs,
            "fewest_pairs": self.fewest,
            "pair_seconds": self.pair_seconds,
            "crash": self.crash,
            "series": [asdict(series) for series in self.series],
            "counters": None if self.counters is None else self.counters.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """Pairs made and foreseen, None during the first; and what the series say so far."""

    made: int
    pairs: int | None
    series: tuple[Series, ...]


def compare(
    a: Build,
    b: Build,
    work: Work,
    scratch: Path,
    *,
    floor: float,
    budget: float,
    seed: int,
    observe: Callable[[Progress], None] = lambda _: None,
) -> Trial:
    """Measures `work` on both builds in pairs until every series is decided, or `budget` seconds are over.

    The first pair is discarded: it fills caches, and tells whether both do the same work and how long a pair takes.
    Raises `UsageError` where the builds do not compare, and `CrashError` where the baseline fails; where the candidate
    fails, that is the result.
    """
    started = time.perf_counter()
    pairs, least, pair_seconds = 0, fewest(ALPHA), 0.0
    counters: Check | None = None
    series: tuple[Series, ...] = ()

    def trial(crash: str | None = None) -> Trial:
        elapsed = time.perf_counter() - started
        return Trial(a, b, floor, budget, seed, elapsed, pairs, least, pair_seconds, series, counters, crash)

    for build in (a, b):
        _check_origin(build, work)
    observe(Progress(0, None, ()))
    try:
        first = scratch / "first"
        loading, took = _pair(a, b, work, first, FIRST_TURNS, candidate_leads=False)
        baseline, candidate = _sides(a, b, work, first)
        counters = check(baseline, candidate)
        _refuse_other_work(counters)
        if failed := next((cell.sentence for cell in counters.cells if cell.verdict == "failed"), None):
            return trial(failed.rstrip("."))
        repeat = _repeat(took, FIRST_TURNS if isinstance(work, Cells) else 1)
        turns = max(TURNS[0], min(TURNS[1], round(2 * TURNS_SECONDS / repeat))) if isinstance(work, Cells) else 1
        pair_seconds = loading + turns * repeat
        pairs = min(MOST_PAIRS, int((budget - (time.perf_counter() - started)) / pair_seconds))
        labels = {key: found.label for key, found in baseline.measured.items() if key in candidate.measured}
        alpha = ALPHA / len(labels)
        least = fewest(alpha)
        if pairs < least:
            return trial()
        log_ratios: dict[str, list[float]] = {key: [] for key in labels}
        for made, leads in enumerate(candidate_first(pairs, seed)):
            observe(Progress(made, pairs, series))
            if budget - (time.perf_counter() - started) < 0.9 * pair_seconds:
                break
            folder = scratch / f"{made}"
            began = time.perf_counter()
            _pair(a, b, work, folder, turns, candidate_leads=leads)
            pair_seconds += (time.perf_counter() - began - pair_seconds) / (made + 1)
            for key, ratio in _log_ratios(a, b, work, folder, labels).items():
                log_ratios[key].append(ratio)
            series = tuple(
                Series(key, label, tuple(log_ratios[key]), read(log_ratios[key], floor, pairs, alpha))
                for key, label in labels.items()
            )
            if all(each.reading.answer != "undecided" for each in series):
                break
    except CrashError as error:
        if error.build is not b:
            raise
        return trial(str(error))
    return trial()


def _check_origin(build: Build, work: Work) -> None:
    """Raises `UsageError` where the build lacks what measures it, or would run other code than its own."""
    found = origin(build, work.module)
    if isinstance(work, Cells) and build.own is not None and build.own not in found.parents:
        raise UsageError(f"{build.described} does not install {work.module!r}, so its cells cannot be measured")


def _pair(
    a: Build, b: Build, work: Work, folder: Path, turns: int, *, candidate_leads: bool
) -> tuple[float, list[float]]:
    """One process of each build, side by side, turn about: ABBA…, or BAAB… where the candidate leads in all.

    Returns the seconds that loading took, and those of every turn of both.
    """
    began = time.perf_counter()
    took: list[float] = []
    sides = {"a": a, "b": b}
    with ExitStack() as running:
        open_in_order = reversed(sides) if candidate_leads else iter(sides)
        sessions = {
            name: running.enter_context(Session(sides[name], work, folder / name, turns)) for name in open_in_order
        }
        one, other = sessions["a"], sessions["b"]
        try:
            one.wait(HANGS_SECONDS)
            other.wait(HANGS_SECONDS)
            loading = time.perf_counter() - began
            while not (one.over and other.over):
                for session in (other, one) if candidate_leads else (one, other):
                    if not session.over:
                        took.append(session.turn(HANGS_SECONDS))
                candidate_leads = not candidate_leads
        except CrashError as error:
            while error.build is b and not one.over:  # what fails on both sides is no regression
                one.turn(HANGS_SECONDS)
            raise
    if not took:
        raise UsageError(f"{a.described} and {b.described} measure nothing; name at least one benchmark")
    return loading, took


def _repeat(took: list[float], repeats: int) -> float:
    """The seconds in which both sides go once through all their cells, however these differ: the median repeat."""
    turns = len(took) // repeats
    return statistics.median(sum(took[first : first + turns]) for first in range(0, repeats * turns, turns))


def _sides(a: Build, b: Build, work: Work, folder: Path) -> tuple[Side, Side]:
    baseline, candidate = (
        replace(work.side(folder / name), name=f"{name} ({build.described})") for name, build in (("a", a), ("b", b))
    )
    if failed := next((found for found in baseline.measured.values() if found.status != "ok"), None):
        raise CrashError(a, f"{failed.label} fails in the baseline ({failed.status}: {failed.reason})")
    if not baseline.measured.keys() & candidate.measured.keys():
        raise UsageError(f"{a.described} and {b.described} have nothing in common to time")
    return baseline, candidate


def _refuse_other_work(counters: Check) -> None:
    if other := next((cell for cell in counters.cells if cell.verdict == "other work"), None):
        raise UsageError(f"the builds do not do the same, so their seconds do not compare: {other.sentence}")


def _log_ratios(a: Build, b: Build, work: Work, folder: Path, labels: dict[str, str]) -> dict[str, float]:
    """Of each series, the median over the turns: candidate over baseline of the two that were next to each other."""
    one, other = work.seconds(folder / "a"), work.seconds(folder / "b")
    for build, seconds in ((a, one), (b, other)):
        if lost := next((label for key, label in labels.items() if not seconds.get(key)), None):
            raise CrashError(build, f"{lost} failed in {build.described}, after it had not, or took no time at all")
    return {
        key: statistics.median(math.log(slow / fast) for fast, slow in zip(one[key], other[key], strict=False))
        for key in labels
    }


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _pairs(count: int) -> str:
    return f"{count} pair{'' if count == 1 else 's'}"


def _minutes(seconds: float) -> str:
    return f"{math.ceil(seconds / 60)}m"

"""Compares two sides by what is deterministic, and says of each cell in a sentence what moved."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scaling.errors import UsageError
from scaling.gate.side import COST, PLANNED_SECONDS, WORK, Measured, Side, same

Verdict = Literal["failed", "missing", "other work", "regression", "improvement", "advice", "note", "same"]
FAILING: tuple[Verdict, ...] = ("failed", "missing", "other work", "regression")
_IMPORTANCE: tuple[Verdict, ...] = (*FAILING, "improvement", "advice", "note", "same")

MEMORY_TOLERANCE = 0.01
"""A peak that moved by less is the same: allocators round, and libraries keep workspaces."""

WORTH_SAYING = 0.05
"""Seconds that moved by less are no advice, however little they spread."""

ENOUGH_REPEATS = 3
"""Two repeats a side lie apart every third time by chance alone, three every tenth."""

_WHAT_MAY_DIFFER = ("lengths", "modes", "phases", "repeats")  # more or fewer of the same cells
_MORE_IS_BETTER = ("prefill_cached_tokens",)
_MEMORY = "memory_bytes"
_FLOPS = "flops_"
_TITLES = {**WORK, **COST, PLANNED_SECONDS: "planned seconds", _MEMORY: "peak memory bytes"}


@dataclass(frozen=True, slots=True)
class Change:
    """One counter of one cell that is not as it was; None where a side has it not, and `ratio` where there is none:
    from nothing, and of what is negative."""

    counter: str
    title: str
    baseline: float | None
    candidate: float | None
    ratio: float | None
    verdict: Verdict

    def __str__(self) -> str:
        told = f"{self.title} {number(self.baseline)} → {number(self.candidate)}"
        return told if self.ratio is None else f"{told} ({percent(self.ratio)})"


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds of both sides, their ratio, and the least and the greatest ratio of one's seconds to the other's.

    Of a run: device-seconds a trace, and the range is that of the repeats. Of a benchmark: seconds a round, and the
    range is that of the middle half of the rounds.
    """

    baseline: float
    candidate: float
    ratio: float
    low: float
    high: float

    @property
    def moved(self) -> bool:
        """Whether the two sides' ranges lie apart, and their medians by a distance worth saying."""
        apart = self.low > 1 or self.high < 1
        return apart and self.low < self.high and abs(math.log(self.ratio)) > math.log1p(WORTH_SAYING)


@dataclass(frozen=True, slots=True)
class Compared:
    """What became of one cell or benchmark. `sentence` says it; `advice` says of its seconds what is worth saying."""

    key: str
    label: str
    verdict: Verdict
    sentence: str
    changes: tuple[Change, ...] = ()
    timing: Timing | None = None
    advice: str | None = None

    @property
    def size(self) -> float:
        """How far it moved: the largest |log ratio| of its changes; a count that came from or went to nothing, or is
        negative, is further than any other."""
        if not self.changes:
            return abs(math.log(self.timing.ratio)) if self.timing and self.advice else 0.0
        return max(abs(math.log(change.ratio)) if change.ratio else math.inf for change in self.changes)


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison: what became of every cell, the most important first, and what follows in a sentence each of the
    counters and of the timings."""

    baseline: str
    candidate: str
    noun: str
    fingerprints: tuple[str | None, str | None]
    cells: tuple[Compared, ...]

    @property
    def moved(self) -> tuple[Compared, ...]:
        return tuple(cell for cell in self.cells if cell.verdict != "same")

    @property
    def fails(self) -> bool:
        return any(cell.verdict in FAILING for cell in self.cells)

    @property
    def compared(self) -> int:
        """How many have counters that were held against each other: a note without a change is of a new or a failed
        cell."""
        return sum(cell.verdict != "note" or bool(cell.changes) for cell in self.cells)

    @property
    def exit_code(self) -> int:
        """1 for a regression, whatever its kind; 0 where every counter is as it was or better; 2 without any."""
        return 1 if self.fails else 0 if self.compared else 2

    @property
    def alike(self) -> bool:
        """Whether both sides were measured on machines that should be alike, so that their seconds compare."""
        one, other = self.fingerprints
        return one is not None and one == other

    @property
    def sentence(self) -> str:
        count, compared = Counter(cell.verdict for cell in self.cells), self.compared
        if self.fails:
            kinds = ", ".join(f"{count[v]} {_KINDS[v]}" for v in FAILING if count[v])
            failing = sum(count[verdict] for verdict in FAILING)
            return f"{failing} of {_many(len(self.cells), self.noun)} {_verb(failing, 'fail')} the check: {kinds}."
        if not compared:
            return f"No {self.noun} could be compared: none is fine on both sides."
        if count["improvement"]:
            less = count["improvement"]
            return (
                f"{_many(compared, self.noun)} {_verb(compared, 'do')} the same work, and {less} {_verb(less, 'cost')} "
                "less: an improvement to keep in a new baseline."
            )
        return f"{_many(compared, self.noun)} {_verb(compared, 'do')} the same work at the same cost."

    @property
    def timing_sentence(self) -> str:
        ratios = [cell.timing.ratio for cell in self.cells if cell.timing]
        if not self.alike:
            one, other = (fingerprint or "unknown" for fingerprint in self.fingerprints)
            return f"Timings are not compared: machines or versions differ (fingerprints {one} and {other})."
        if not ratios:
            return "There are no timings to compare."
        span = f", from {min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else ""
        return (
            f"Timings, as advice alone: the candidate takes {statistics.median(ratios):.2f} times the baseline's "
            f"seconds at the median of {_many(len(ratios), self.noun)}{span}; `scaling ab` decides."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "baseline": {"name": self.baseline, "fingerprint_id": self.fingerprints[0]},
            "candidate": {"name": self.candidate, "fingerprint_id": self.fingerprints[1]},
            "verdict": ("fine", "regression", "nothing compared")[self.exit_code],
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "timing_sentence": self.timing_sentence,
            "cells": [asdict(cell) for cell in self.cells],
        }


_KINDS = {"failed": "failed", "missing": "missing", "other work": "doing other work", "regression": "costing more"}


def check(baseline: Side, candidate: Side) -> Check:
    """Compares the counters of both sides exactly, and their seconds, as advice, where fingerprints match.

    Raises `UsageError`, naming the difference, for sides that did not measure the same.
    """
    if baseline.kind != candidate.kind:
        raise UsageError(
            f"{baseline.name} is a side of {baseline.kind} and {candidate.name} one of {candidate.kind}; give two runs "
            "or two files of pytest-benchmark"
        )
    if different := differences(baseline, candidate):
        name, (one, other) = next(iter(different.items()))
        more = f", and so {'is' if len(different) == 2 else 'are'} {', '.join([*different][1:])}"
        raise UsageError(
            f"{baseline.name} and {candidate.name} measured different things: {name} is {one!r} in the baseline and "
            f"{other!r} in the candidate{more if len(different) > 1 else ''}; measure the candidate as the baseline "
            "was (`scaling run --from`), or save a new baseline"
        )
    fingerprints = (baseline.fingerprint_id, candidate.fingerprint_id)
    alike = None not in fingerprints and len(set(fingerprints)) == 1
    keys = dict.fromkeys([*baseline.measured, *candidate.measured])
    cells = [_compare(baseline.measured.get(key), candidate.measured.get(key), alike=alike) for key in keys]
    cells.sort(key=lambda cell: (_IMPORTANCE.index(cell.verdict), -cell.size))
    noun = "cell" if baseline.kind == "run" else "benchmark"
    return Check(baseline.name, candidate.name, noun, fingerprints, tuple(cells))


def differences(baseline: Side, candidate: Side) -> dict[str, tuple[Any, Any]]:
    """What two configurations say differently, but for which cells of a kind there are and how often.

    A field that one of them lacks came later, and is at what was meant before, or its cells are others.
    """
    both = [name for name in baseline.config if name in candidate.config and name not in _WHAT_MAY_DIFFER]
    pairs = {name: (baseline.config[name], candidate.config[name]) for name in both}
    return {name: (one, other) for name, (one, other) in pairs.items() if one != other}


def _compare(was: Measured | None, now: Measured | None, *, alike: bool) -> Compared:
    if was is None or now is None:
        return _unpaired(was, now)
    if not was.status == now.status == "ok":
        return _failed(was, now)
    changes = tuple(_changes(was, now))
    if work := tuple(change for change in changes if change.verdict == "other work"):
        sentence = f"{now.label} does other work: {_listed(work)}. What it costs is not compared."
        return Compared(now.key, now.label, "other work", sentence, work)
    timing = _timing(was, now) if alike else None
    enough = min(len(was.seconds), len(now.seconds)) >= ENOUGH_REPEATS
    advice = _advice(now, timing) if timing and timing.moved and enough else None
    kinds = {change.verdict for change in changes}
    verdict: Verdict = next((v for v in _IMPORTANCE if v in kinds), "advice" if advice else "same")
    return Compared(now.key, now.label, verdict, _sentence(now.label, verdict, changes), changes, timing, advice)


def _unpaired(was: Measured | None, now: Measured | None) -> Compared:
    if now is not None:
        return Compared(now.key, now.label, "note", f"{now.label} is new: the baseline lacks it.")
    assert was is not None
    return Compared(was.key, was.label, "missing", f"{was.label} is missing: only the baseline has it.")


def _failed(was: Measured, now: Measured) -> Compared:
    """Of a cell that is not fine on both sides."""
    before, after = (f"failed ({each.status}: {each.reason})" for each in (was, now))
    if now.status == "ok":
        return Compared(now.key, now.label, "note", f"{now.label} is fine; in the baseline it {before}.")
    if was.status == "ok":
        return Compared(now.key, now.label, "failed", f"{now.label} {after}; in the baseline it was fine.")
    told = ", as it did in the baseline" if before == after else f"; in the baseline too, it {before}"
    return Compared(now.key, now.label, "note", f"{now.label} {after}{told}.")


def _sentence(label: str, verdict: Verdict, changes: Sequence[Change]) -> str:
    by = {v: [c for c in changes if c.verdict == v] for v in _IMPORTANCE}
    worse, better = _listed(by["regression"]), _listed(by["improvement"])
    match verdict:
        case "regression":
            return f"{label} costs more: {worse}{f'; it costs less: {better}' if better else ''}."
        case "improvement":
            return f"{label} costs less: {better}."
        case "note":
            return f"{label} has the same counters, but for what only one side counts: {_listed(by['note'])}."
        case _:
            return f"{label} does the same work at the same cost."


def _changes(was: Measured, now: Measured) -> Iterator[Change]:
    """Every counter that is not as it was, and the peak of memory where that moved."""
    for name in dict.fromkeys([*was.counters, *now.counters]):
        one, other = was.counters.get(name), now.counters.get(name)
        if one is None or other is None:
            yield Change(name, title(name), one, other, None, _of_one_side(name, now))
        elif not same(one, other):
            more = (other > one) != (name in _MORE_IS_BETTER)
            verdict: Verdict = "other work" if name in WORK else "regression" if more else "improvement"
            yield Change(name, title(name), one, other, other / one if one > 0 <= other else None, verdict)
    if was.memory_bytes and now.memory_bytes is None:  # the other way round, it is another machine's baseline
        yield Change(_MEMORY, title(_MEMORY), was.memory_bytes, None, None, "note")
    elif was.memory_bytes and now.memory_bytes:
        ratio = now.memory_bytes / was.memory_bytes
        if abs(ratio - 1) > MEMORY_TOLERANCE:
            verdict = "regression" if ratio > 1 else "improvement"
            yield Change(_MEMORY, title(_MEMORY), was.memory_bytes, now.memory_bytes, ratio, verdict)


def _of_one_side(name: str, now: Measured) -> Verdict:
    """A count that was lost is one on which repeats no longer agree; but FLOPs may be of another convention."""
    if name in now.counters or (name.startswith(_FLOPS) and any(each.startswith(_FLOPS) for each in now.counters)):
        return "note"
    return "other work" if name in WORK else "regression"


def _timing(was: Measured, now: Measured) -> Timing | None:
    if not was.seconds or not now.seconds or PLANNED_SECONDS in now.counters:
        return None
    one, other = statistics.median(was.seconds), statistics.median(now.seconds)
    low, high = min(now.seconds) / max(was.seconds), max(now.seconds) / min(was.seconds)
    return Timing(one, other, other / one, low, high)


def _advice(now: Measured, timing: Timing) -> str:
    return (
        f"{now.label} took {100 * abs(timing.ratio - 1):.1f} % {'more' if timing.ratio > 1 else 'less'} time "
        f"({timing.baseline:.3g} → {timing.candidate:.3g} s, {timing.low:.2f} to {timing.high:.2f} times), as advice."
    )


def title(counter: str) -> str:
    """What readers see a counter called."""
    if counter.startswith(_FLOPS):
        return f"FLOPs ({counter.removeprefix(_FLOPS)})"
    return _TITLES.get(counter, counter)


def number(value: float | None) -> str:
    """A count in full, as exactness wants it; `none` where there is no count."""
    if value is None:
        return "none"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.6g}"


def percent(ratio: float) -> str:
    """A ratio as readers see it: `+3.07 %`, or `×191` from ten on."""
    return f"×{ratio:.3g}" if ratio >= 10 else f"{100 * (ratio - 1):+.3g} %"


def _listed(changes: Sequence[Change]) -> str:
    return ", ".join(map(str, changes))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _verb(count: int, verb: str) -> str:
    if count != 1:
        return verb
    return f"{verb}es" if verb == "do" else f"{verb}s"

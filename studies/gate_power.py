"""How the timing gate decides, by simulation of its decision code: `python -m studies.gate_power`.

Sessions of runs are drawn with every kind of noise that machines have, a drift and an offset between sessions; what
`scaling/gate/sequential.py` says of their pairs stands beside what stored baselines say of the same candidate's runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu
from tabulate import tabulate

from scaling.gate.sequential import ALPHA, POWER, boundaries, candidate_first, read

KINDS = ("independent", "AR(1) 0.3", "AR(1) 0.6", "AR(1) 0.9", "slow runs", "waves")
PERIODS = (3, 4, 5, 7, 10, 15, 30, 60)
"""Of waves, in runs: as many machines, of an eighth of the sessions each."""

NOISES = (0.005, 0.01, 0.02, 0.05)
PAIRS = (20, 40)
FLOOR = 0.03
SLOWDOWNS = (0.0, FLOOR, FLOOR + 0.02)
SERIES = (1, 5, 20)
ANSWERS = ("regression", "fine", "undecided")
"""Of the exit codes 1, 0 and 3."""

DRIFT = 0.03
"""Of the machine over a session, up or down; and as much from the session of a stored baseline to the next."""

THRESHOLDS = (0.03, 0.05, 0.1)
SIGNIFICANCE = 0.05
FEWEST = 50
"""Of so many undecided readings at least, something is said."""

ERRORS = 3.0
"""A requirement is missed where a simulated share lies so many of its standard errors on the wrong side."""

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def noise(kind: str, sigma: float, sessions: int, runs: int, rng: np.random.Generator) -> Matrix:
    """Log-seconds of runs in order of time around what they should be, sessions × runs; `sigma` is one run's.

    `slow runs`: independent, and 5 % of runs 10 to 30 % slow besides. `waves`: four fifths of the variance from a sine
    of one of `PERIODS`, by turns.
    """
    white = rng.standard_normal((sessions, runs))
    if kind.startswith("AR(1)"):
        phi = float(kind.split()[1])
        for run in range(1, runs):
            white[:, run] = phi * white[:, run - 1] + math.sqrt(1 - phi**2) * white[:, run]
    elif kind == "waves":
        turn = np.arange(runs) / np.resize(PERIODS, (sessions, 1)) + rng.random((sessions, 1))
        white = math.sqrt(1.6) * np.sin(2 * math.pi * turn) + math.sqrt(0.2) * white
    found = sigma * white
    if kind == "slow runs":
        found += np.where(rng.random(found.shape) < 0.05, np.log1p(rng.uniform(0.1, 0.3, found.shape)), 0)
    return found


def session(kind: str, sigma: float, sessions: int, runs: int, rng: np.random.Generator) -> Matrix:
    """`noise` with a linear drift, either way."""
    way = rng.choice([-1.0, 1.0], (sessions, 1))
    return noise(kind, sigma, sessions, runs, rng) + way * np.linspace(0, math.log1p(DRIFT), runs)


def sides(log_seconds: Matrix, order: str, seed: int) -> tuple[Matrix, Matrix]:
    """The baseline's and the candidate's runs, sessions × pairs each. `order`: a `coin` for each pair, or `ABBA`."""
    sessions, runs = log_seconds.shape
    if order == "coin":
        first = np.array([candidate_first(runs // 2, seed * sessions + index) for index in range(sessions)])
    else:
        first = np.tile(np.arange(runs // 2) % 2 == 1, (sessions, 1))
    one, two = log_seconds[:, 0::2], log_seconds[:, 1::2]
    return np.where(first, two, one), np.where(first, one, two)


def smallest_called(log_ratios: Matrix, floor: float, alpha: float = ALPHA) -> float:
    """The slowdown that, put on top of these series without one, is called a regression in a share of `POWER`."""
    threshold = math.log1p(floor)
    bounds = boundaries(log_ratios.shape[1], alpha)
    above, below = [], []  # at each look that can decide: which slowdowns it calls a regression, which fine
    for look, bound in enumerate(bounds, start=1):
        if bound <= look:
            ordered = np.sort(log_ratios[:, :look], axis=1)
            above.append(threshold - ordered[:, -bound])
            below.append(threshold - ordered[:, bound - 1])
    calls, passes = np.stack(above, 1), np.stack(below, 1)
    low, high = threshold, threshold + 5.0
    for _ in range(40):
        middle = (low + high) / 2
        called, passed = calls < middle, passes > middle
        first = np.where(called.any(1), called.argmax(1), called.shape[1])
        share = np.mean(first < np.where(passed.any(1), passed.argmax(1), passed.shape[1]))
        low, high = (middle, high) if share < POWER else (low, middle)
    return math.expm1(high)


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of machine, watched for at most `pairs` pairs of runs in this `order`."""

    kind: str
    noise: float
    order: str
    pairs: int

    def simulate(self, sessions: int, seed: int) -> list[dict[str, Any]]:
        """A record for each of `SLOWDOWNS`, of the same sessions; and what would truly be called in others."""
        key = [seed, KINDS.index(self.kind), round(self.noise * 1e4), self.pairs]
        rng = np.random.default_rng(key)
        runs = session(self.kind, self.noise, sessions, 2 * self.pairs, rng)
        baseline, candidate = sides(runs, self.order, seed)
        away = rng.choice([-1.0, 1.0], (sessions, 1))
        stored = session(self.kind, self.noise, sessions, self.pairs, rng) - away * math.log1p(DRIFT)
        others = session(self.kind, self.noise, sessions, 2 * self.pairs, rng)
        one, two = sides(others, self.order, seed + 1)
        machines = len(PERIODS) if self.kind == "waves" else 1
        truths = np.array([smallest_called((two - one)[machine::machines], FLOOR) for machine in range(machines)])
        rows = []
        for slowdown in SLOWDOWNS:
            slower = candidate + math.log1p(slowdown)
            found = self.readings(slower - baseline, slowdown, np.resize(truths, sessions))
            found |= against(stored, slower, away[:, 0] > 0)
            visible = {"truly_visible": [round(float(truth), 6) for truth in (truths.min(), truths.max())]}
            rows.append(asdict(self) | {"slowdown": slowdown, "sessions": sessions} | visible | found)
        return rows

    def readings(self, log_ratios: Matrix, slowdown: float, truths: Matrix) -> dict[str, Any]:
        """Shares of answers, of intervals that hold, and of `visible` within a fifth of its truth, if undecided."""
        readings = [read(series, FLOOR, self.pairs) for series in log_ratios.tolist()]
        undecided = [(r.visible, truth) for r, truth in zip(readings, truths, strict=True) if r.answer == "undecided"]
        visible, truly = np.array(undecided, dtype=float).reshape(-1, 2).T
        enough = len(visible) >= FEWEST
        return {answer: share([r.answer == answer for r in readings]) for answer in ANSWERS} | {
            "held": share([r.low is not None and r.low <= 1 + slowdown <= (r.high or 0) for r in readings]),
            "mean_pairs": share([r.pairs for r in readings]),
            "visible": round(float(np.median(visible)), 6) if enough else None,
            "visible_over_truth": round(float(np.median(visible / truly)), 6) if enough else None,
            "visible_within_a_fifth": share(np.abs(visible / truly - 1) <= 0.2) if enough else None,
        }


def share(values: Any) -> float:
    return round(float(np.mean(values)), 6)


def against(stored: Matrix, candidate: Matrix, slower_day: np.ndarray[Any, Any]) -> dict[str, float]:
    """Shares of alarms of usual tests of a candidate's runs, log-seconds, against runs of an earlier session.

    `rank_test`: Mann and Whitney's, one-sided; `over_5`: a mean more than 5 % above. `…_slower_day`: of the sessions
    that the machine's offset has made slower than the stored one.
    """
    p = mannwhitneyu(candidate, stored, alternative="greater", axis=1, method="asymptotic").pvalue
    ratio = np.exp(candidate).mean(1) / np.exp(stored).mean(1)
    alarms = {"rank_test": p < SIGNIFICANCE} | {f"over_{100 * t:.0f}": ratio > 1 + t for t in THRESHOLDS}
    found = {name: share(alarm) for name, alarm in alarms.items()}
    return found | {f"{name}_slower_day": share(alarm[slower_day]) for name, alarm in alarms.items()}


@dataclass(frozen=True, slots=True)
class Family:
    """`series` read together, as cells of one run are: each with its part of the false-alarm budget, or each whole."""

    series: int
    pairs: int
    share_alpha: bool
    kind: str = "independent"
    noise: float = 0.01

    def simulate(self, sessions: int, seed: int) -> list[dict[str, Any]]:
        """Exit codes with all unchanged, all as slow as the floor, and one of them slower by `FLOOR` + 2 %."""
        rng = np.random.default_rng([seed, self.series, self.pairs])
        runs = session(self.kind, self.noise, sessions * self.series, 2 * self.pairs, rng)
        baseline, candidate = sides(runs, "coin", seed)
        unchanged = (candidate - baseline).reshape(sessions, self.series, self.pairs)
        alpha = ALPHA / self.series if self.share_alpha else ALPHA
        all_at, one = np.ones((self.series, 1)), np.eye(self.series)[:, :1]
        changes = {"none": 0 * one, "all at the floor": FLOOR * all_at, "one slow": (FLOOR + 0.02) * one}
        rows = []
        for changed, slowdown in changes.items():
            codes = [
                exit_code([read(series, FLOOR, self.pairs, alpha).answer for series in of_one])
                for of_one in (unchanged + np.log1p(slowdown)).tolist()
            ]
            shares = {f"exit_{code}": share([c == code for c in codes]) for code in (0, 1, 3)}
            rows.append(asdict(self) | {"changed": changed, "sessions": sessions} | shares)
        return rows


def exit_code(answers: Sequence[str]) -> int:
    return 1 if "regression" in answers else 0 if all(answer == "fine" for answer in answers) else 3


def cells() -> Iterator[Cell]:
    for kind, sigma, order, pairs in product(KINDS, NOISES, ("coin", "ABBA"), PAIRS):
        yield Cell(kind, sigma, order, pairs)


def families() -> Iterator[Family]:
    for series, pairs, share_alpha in product(SERIES, PAIRS, (True, False)):
        yield Family(series, pairs, share_alpha)


def requirements(row: dict[str, Any]) -> Iterable[tuple[str, bool]]:
    """What `row` has to fulfil, and whether it does, but for what so few sessions cannot tell."""

    def most(figure: str, share: float) -> bool:
        return bool(row[figure] <= share + ERRORS * math.sqrt(share * (1 - share) / row["sessions"]))

    def least(figure: str, share: float) -> bool:
        return bool(row[figure] >= share - ERRORS * math.sqrt(share * (1 - share) / row["sessions"]))

    yield "intervals that hold: 95 %", least("held", 0.95)
    if row["slowdown"] == 0:
        yield "exit 1 at no change: 1 %", most("regression", 0.01)
    elif row["slowdown"] == FLOOR:
        yield "exit 1 at the floor: 5 %", most("regression", 0.05)
    elif row["noise"] == NOISES[0]:
        yield "exit 1 at floor + 2 % with 0.5 % noise: 95 %", least("regression", 0.95)
    if row["visible"] is not None:
        yield "median of visible within a fifth of the truth", abs(row["visible_over_truth"] - 1) <= 0.2


def chosen(rows: Sequence[dict[str, Any]], order: str, pairs: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of each kind and noise, one for each slowdown."""
    for kind, sigma in product(KINDS, NOISES):
        found = [r for r in rows if (r["kind"], r["noise"], r["order"], r["pairs"]) == (kind, sigma, order, pairs)]
        if found:
            yield sorted(found, key=lambda row: float(row["slowdown"]))


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def gate_table(rows: Sequence[dict[str, Any]], order: str, pairs: int) -> str:
    """What the gate says, in percent."""
    lines = []
    for none, floor, more in chosen(rows, order, pairs):
        three = (none, floor, more)
        lines.append(
            [
                none["kind"],
                f"{100 * none['noise']:g}",
                " / ".join(percent(none[answer]) for answer in ANSWERS),
                percent(floor["regression"]),
                " / ".join(percent(more[answer]) for answer in ANSWERS),
                percent(min(row["held"] for row in three)),
                " / ".join(f"{row['mean_pairs']:.1f}" for row in three),
            ]
        )
    headers = ["noise", "%", "no change: 1 / 0 / 3", "at the floor: 1", "floor + 2 %: 1 / 0 / 3", "held", "pairs"]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def visible_table(rows: Sequence[dict[str, Any]], pairs: int) -> str:
    """The smallest visible slowdown in truth, and as undecided readings have it."""
    lines = []
    for three in chosen(rows, "coin", pairs):
        said = [
            f"{percent(row['visible'])} ({100 * row['visible_within_a_fifth']:.0f})" if row["visible"] else ""
            for row in three
        ]
        truth = " to ".join(dict.fromkeys(map(percent, three[0]["truly_visible"])))
        lines.append([three[0]["kind"], f"{100 * three[0]['noise']:g}", truth, *said])
    headers = ["noise", "%", "truth, %", "said at no change", "said at the floor", "said at floor + 2 %"]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def stored_table(rows: Sequence[dict[str, Any]], pairs: int) -> str:
    """False alarms and alarms at floor + 2 %: the gate, and tests against a stored baseline."""
    names = ("rank_test", *(f"over_{100 * t:.0f}" for t in THRESHOLDS))
    lines = []
    for none, _, more in chosen(rows, "coin", pairs):
        gate = " / ".join(percent(row["regression"]) for row in (none, more))
        others = [f"{percent(none[n])} ({percent(none[f'{n}_slower_day'])}) / {percent(more[n])}" for n in names]
        lines.append([none["kind"], f"{100 * none['noise']:g}", gate, *others])
    headers = ["noise", "%", "gate", "rank test", *(f"mean > {100 * t:.0f} %" for t in THRESHOLDS)]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def family_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for series, pairs, shared in dict.fromkeys((r["series"], r["pairs"], r["share_alpha"]) for r in rows):
        of_it = [r for r in rows if (r["series"], r["pairs"], r["share_alpha"]) == (series, pairs, shared)]
        shares = (" / ".join(percent(row[f"exit_{code}"]) for code in (1, 0, 3)) for row in of_it)
        lines.append([series, pairs, "shared" if shared else "whole", *shares])
    headers = [
        "series",
        "pairs",
        "budget",
        "none changed: 1 / 0 / 3",
        "all at the floor: 1 / 0 / 3",
        "one slow: 1 / 0 / 3",
    ]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def missed_table(rows: Sequence[dict[str, Any]]) -> str:
    """How many of the simulated cells miss each requirement, by order."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        for requirement, fulfilled in requirements(row):
            counts.setdefault(requirement, {}).setdefault(row["order"], []).append(fulfilled)
    lines = [
        [
            requirement,
            *(f"{of[order].count(False)} of {len(of[order])}" if order in of else "" for order in ("coin", "ABBA")),
        ]
        for requirement, of in counts.items()
    ]
    return tabulate(lines, ["required", "missed, coin", "missed, ABBA"], tablefmt="pipe", disable_numparse=True)


def page(record: dict[str, Any]) -> str:
    cells_, families_ = record["cells"], record["families"]
    parts = [("Requirements", missed_table(cells_))]
    parts += [(f"The gate, a coin a pair, at most {n} pairs", gate_table(cells_, "coin", n)) for n in PAIRS]
    parts += [(f"The gate, ABBA, at most {n} pairs", gate_table(cells_, "ABBA", n)) for n in PAIRS]
    parts += [(f"Smallest visible slowdown, undecided after {n} pairs", visible_table(cells_, n)) for n in PAIRS]
    parts += [(f"Beside stored baselines, {n} runs", stored_table(cells_, n)) for n in PAIRS]
    parts.append(("Several series at once", family_table(families_)))
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts) + "\n"


def in_lines(record: dict[str, Any]) -> str:
    """JSON with a line for each row."""
    rows = {name: ",\n  ".join(map(json.dumps, value)) for name, value in record.items() if isinstance(value, list)}
    parts = [
        f'"{name}": ' + (f"[\n  {rows[name]}\n ]" if name in rows else json.dumps(record[name])) for name in record
    ]
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _simulate(asked: Cell | Family, sessions: int, seed: int) -> list[dict[str, Any]]:
    return asked.simulate(sessions if isinstance(asked, Cell) else max(1, sessions // 5), seed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.gate_power", description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000, help="simulated a cell, a fifth a family (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--json", action="store_true", help="print the numbers, not the tables")
    parser.add_argument("--out", type=Path, help="the numbers as JSON here, and the tables beside them as Markdown")
    options = parser.parse_args(arguments)
    for name in ("sessions", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} is too few; give at least 1")
    asked: list[Cell | Family] = [*cells(), *families()]
    record: dict[str, Any] = {
        "floor": FLOOR,
        "sessions": options.sessions,
        "seed": options.seed,
        "cells": [],
        "families": [],
    }
    with ProcessPoolExecutor(options.workers) as pool:
        simulate = partial(_simulate, sessions=options.sessions, seed=options.seed)
        for done, (one, rows) in enumerate(zip(asked, pool.map(simulate, asked), strict=True), start=1):
            record["cells" if isinstance(one, Cell) else "families"] += rows
            print(f"\r{done} of {len(asked)} cells", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(in_lines(record) if options.json else page(record))
    if options.out:
        options.out.write_text(in_lines(record))
        options.out.with_suffix(".md").write_text(page(record))


if __name__ == "__main__":
    main()

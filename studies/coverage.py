"""How often the intervals of `studies/accuracy.py` hold, by simulation: `python -m studies.coverage`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom
from tabulate import tabulate

from studies.accuracy import average, compare, majority, pass_at

SAMPLES = (1, 4, 16, 64, 128)
PROBLEMS = (1, 3, 10, 30, 100)
ACCURACIES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
PASS_K = 8
KEPT = 0.9
"""What the first arm of a comparison keeps of the second's accuracy, in every problem."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is simulated. `spread`: problems' accuracies are drawn from Beta(a, 1 − a), many near 0 and 1, not all a.

    `k`: of pass@k and of maj@k, which is of two answers.
    """

    statistic: str
    samples: int
    problems: int
    accuracy: float
    spread: bool
    k: int = PASS_K

    def simulate(self, repeats: int, resamples: int, seed: int) -> dict[str, Any]:
        """Shares of `repeats` whose interval holds the truth of the very `problems` and, of an average, of new ones.

        Every repeat draws problems and samples anew. `misses_low`: the truth of these problems lies below.
        """
        kind = ("average", "pass", "difference", "ratio", "majority").index(self.statistic)
        rng = np.random.default_rng([seed, kind, self.samples, self.problems, round(self.accuracy * 1e4), self.spread])
        held = new = below = 0
        width = 0.0
        for repeat in range(repeats):
            mean = self.accuracy
            p = rng.beta(mean, 1 - mean, self.problems) if self.spread else np.full(self.problems, mean)
            scores = self.scores(p, rng)
            truth, of_new = float(p.mean()), mean
            if self.statistic == "average":
                found = average(scores, resamples=resamples, seed=repeat)
            elif self.statistic == "pass":
                found = pass_at(scores, self.k, resamples=resamples, seed=repeat)
                truth = float((1 - (1 - p) ** self.k).mean())
            elif self.statistic == "majority":
                answers = [["right" if score else "wrong" for score in row] for row in scores]
                found = majority(answers, scores, self.k, resamples=resamples, seed=repeat)
                truth = float(np.mean(binom.sf(self.k / 2, self.k, p) + binom.pmf(self.k / 2, self.k, p) / 2))
            else:
                both = compare(self.scores(KEPT * p, rng), scores, resamples=resamples, seed=repeat)
                found = getattr(both, self.statistic)
                truth = (KEPT - 1) * truth if self.statistic == "difference" else KEPT
            held += found.low <= truth <= found.high
            below += truth < found.low
            new += found.low <= of_new <= found.high
            width += found.high - found.low
        record = asdict(self) | {"repeats": repeats, "held": held / repeats, "misses_low": below / repeats}
        finite = width / repeats if np.isfinite(width) else None
        return record | {"held_for_new": new / repeats if kind == 0 else None, "mean_width": finite}

    def scores(self, p: np.ndarray[Any, Any], rng: np.random.Generator) -> list[list[float]]:
        return [[1.0] * right + [0.0] * (self.samples - right) for right in rng.binomial(self.samples, p).tolist()]


def cells() -> Iterable[Cell]:
    """All that `docs/statistics.md` shows; without accuracy 0 or 1 nothing can be spread."""
    for samples, problems, accuracy, spread in product(SAMPLES, PROBLEMS, ACCURACIES, (False, True)):
        if not spread or 0 < accuracy < 1:
            yield Cell("average", samples, problems, accuracy, spread)
    for statistic, samples, problems in product(("pass", "difference", "ratio"), (16, 64), (1, 10, 100)):
        for accuracy, spread in product((0.1, 0.5, 0.9), (False, True)):
            yield Cell(statistic, samples, problems, accuracy, spread)


def table(rows: Sequence[dict[str, Any]], statistic: str, figure: str) -> str:
    """Percentages in Markdown, a row for samples and problems, a column an accuracy: problems alike / spread."""
    chosen = {
        (row["samples"], row["problems"], row["accuracy"], row["spread"]): row[figure]
        for row in rows
        if row["statistic"] == statistic
    }
    accuracies = sorted({key[2] for key in chosen})
    lines = []
    for samples, problems in sorted({key[:2] for key in chosen}):
        found = [[chosen.get((samples, problems, a, spread)) for spread in (False, True)] for a in accuracies]
        shown = (" / ".join(f"{100 * share:.1f}" for share in pair if share is not None) for pair in found)
        lines.append([samples, problems, *shown])
    headers = ["samples", "problems", *(f"{a:g}" for a in accuracies)]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def page(rows: Sequence[dict[str, Any]]) -> str:
    parts = [
        ("avg@k: the truth of these very problems", "average", "held"),
        ("avg@k: the truth of new problems", "average", "held_for_new"),
        (f"pass@{PASS_K}: the truth of these very problems", "pass", "held"),
        ("Difference of two arms: the truth of these very problems", "difference", "held"),
        ("Ratio of two arms: the truth of these very problems", "ratio", "held"),
    ]
    shown = [f"**{title}**\n\n{table(rows, statistic, figure)}" for title, statistic, figure in parts]
    return "\n\n".join(shown) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.coverage", description=__doc__)
    parser.add_argument("--repeats", type=int, default=500, help="simulated studies a cell (%(default)s)")
    parser.add_argument("--resamples", type=int, default=500, help="of each interval (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="the numbers as JSON here, and the tables beside them as Markdown")
    options = parser.parse_args(arguments)
    settings = {"repeats": options.repeats, "resamples": options.resamples, "seed": options.seed}
    for name, least in (("repeats", 1), ("resamples", 100), ("workers", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} {getattr(options, name)} is too few; give at least {least}")
    asked = list(cells())
    rows = []
    with ProcessPoolExecutor(options.workers) as pool:
        for row in pool.map(partial(Cell.simulate, **settings), asked):
            rows.append(row)
            print(f"\r{len(rows)} of {len(asked)} cells", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(page(rows))
    if options.out:
        options.out.write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page(rows))


if __name__ == "__main__":
    main()

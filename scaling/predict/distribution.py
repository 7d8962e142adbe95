"""How long the traces of a job think: lengths spread around their mean, each cut at the thinking budget."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling.errors import UsageError
from scaling.lengths import MAX_TOKENS

MAX_CV = 10.0
MAX_RECORDED = 1 << 24
EXAMPLE = "expected fixed, lognormal:0.7 (a coefficient of variation), or a file of recorded lengths"

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

Tokens = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """What lengths look like before the budget cuts them, but for their scale.

    `cv`: coefficient of variation of a log-normal; 0 where all are equal. `recorded`: lengths that were observed,
    longest first, whose quantiles take the log-normal's place.
    """

    text: str
    cv: float = 0.0
    recorded: tuple[int, ...] = ()

    def quantiles(self, mean: float | None, budget: int, count: int) -> Tokens:
        """`count` lengths, longest first: the quantiles at (i + ½)/count, scaled, then censored at `budget`.

        The scale is such that the mean *after* censoring is `mean`: the lengths add up to round(mean·count) exactly,
        each from 1 to `budget`. Without a mean, recorded lengths keep their own scale. Nothing is drawn at random.

        The longest stands for the slowest of a batch: of log-normal lengths far below the budget it is this share of
        the longest that as many random traces are expected to have:

            cv      8 traces    64   1024
            0.3         1.02  1.01   1.01
            0.7         1.03  1.01   1.01
            1.5         1.00  0.97   0.98

        A mixture with a heavier tail than its log-normal (a few traces that loop until they are cut) has more traces
        at the budget than this says; its recorded lengths show them.

        Raises `UsageError` for a mean above the budget or below 1, and for no mean where none was recorded.
        """
        if count < 1 or not 1 <= budget <= MAX_TOKENS:
            raise UsageError(f"{count} traces of at most {budget} thinking tokens; expected at least one of each")
        relative = self._relative(count)
        if mean is None:
            if not self.recorded:
                raise UsageError(f"lengths {self.text} need a mean; only recorded lengths have their own")
            censored = np.clip(relative, 1, budget)
            return _whole(censored, round(float(censored.sum())), budget)
        if not 1 <= mean <= budget:
            raise UsageError(f"a mean of {mean:g} thinking tokens; expected 1 to the budget of {budget}")
        return _whole(np.clip(_scale(relative, mean, budget) * relative, 1, budget), round(mean * count), budget)

    def recorded_mean(self, budget: int | None) -> int | None:
        """Of the lengths that were recorded, each cut at the budget if there is one, in whole tokens; None where none
        were."""
        return round(float(np.clip(self.recorded, 1, budget).mean())) if self.recorded else None

    def truncated_share(self, mean: float | None, budget: int, count: int = 1024) -> float:
        """Share of traces that reach the budget, and so are cut there; raises as `quantiles` does."""
        return float(np.mean(self.quantiles(mean, budget, count) == budget))

    def _relative(self, count: int) -> _Floats:
        if self.recorded:
            # Hazen's quantiles: as many quantiles as there are records are the records themselves.
            return np.quantile(np.asarray(self.recorded, np.float64), _midpoints(count), method="hazen")
        return np.exp(math.sqrt(math.log1p(self.cv**2)) * _normals(count))


def parse(text: str) -> Distribution:
    """The distribution that a text names: `fixed`, `lognormal:CV`, or a file of recorded lengths.

    A file holds one length a line, a JSON list of lengths, or JSON records with `thinking_tokens` line by line, as
    trace files do; a record with an `error` has no whole length and is left out. Raises `UsageError`.
    """
    if text == "fixed":
        return Distribution(text)
    kind, colon, value = text.partition(":")
    if kind == "lognormal" and colon:
        if not _NUMBER.fullmatch(value) or not 0 < float(value) <= MAX_CV:
            raise UsageError(
                f"bad coefficient of variation {_shown(value)}; expected 0 to {MAX_CV:g}, as in lognormal:0.7"
            )
        return Distribution(text, cv=float(value))
    path = Path(text)
    try:
        if not path.is_file():
            found = "is no file" if path.exists() else "names no distribution and no file"
            raise UsageError(f"{text!r} {found}; {EXAMPLE}")
        lengths = tuple(sorted(_recorded(path), reverse=True))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name, or bytes that are not UTF-8
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read lengths from {text!r}: {reason}; {EXAMPLE}") from None
    if not lengths:
        raise UsageError(f"no lengths in {text!r}; expected one whole number a line, as in 8192")
    return Distribution(text, recorded=lengths)


def _recorded(path: Path) -> Iterator[int]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"line {number} of {str(path)!r}"
            if number > MAX_RECORDED:
                raise UsageError(f"more than {MAX_RECORDED} lines in {str(path)!r}; keep a sample of them")
            match line.strip()[:1]:
                case "":
                    continue
                case "[":
                    document = _json(line + lines.read(), where)
                    yield from (_length(value, f"item {i} of {str(path)!r}") for i, value in enumerate(document))
                    return
                case "{":
                    record = _json(line, where)
                    if record.get("error") is None:
                        yield _length(record.get("thinking_tokens"), where)
                case _:
                    yield _length(int(line) if re.fullmatch(r"\s*[0-9]{1,12}\s*", line) else line.strip(), where)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is not JSON; expected a list like [8192, 4100] or records line by line") from None


def _length(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_TOKENS:
        raise UsageError(f"{where} gives {_shown(value)}; expected thinking tokens as a whole number from 1, like 8192")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _scale(relative: _Floats, mean: float, budget: int) -> float:
    """The s at which the mean of clip(s·relative, 1, budget) is `mean`.

    That mean is linear in s between the points where a length reaches 1 or the budget: evaluated there, it is read
    backwards, exactly.
    """
    ascending = relative[::-1]
    sums = np.concatenate(([0.0], np.cumsum(ascending)))
    s = np.sort(np.concatenate((1 / ascending, budget / ascending)))
    floored = np.searchsorted(ascending, 1 / s, side="right")
    uncut = np.maximum(np.searchsorted(ascending, budget / s, side="left"), floored)
    means = (floored + s * (sums[uncut] - sums[floored]) + budget * (len(ascending) - uncut)) / len(ascending)
    return float(np.interp(mean, np.maximum.accumulate(means), s))


def _whole(lengths: _Floats, total: int, budget: int) -> Tokens:
    """Descending lengths rounded to whole tokens that add up to `total`, none above the budget or below 1."""
    tokens = np.floor(lengths).astype(np.int64)
    missing = total - int(tokens.sum())
    step = 1 if missing > 0 else -1
    while missing:
        movable = np.flatnonzero(tokens < budget if step > 0 else tokens > 1)
        by_fraction = np.argsort(-step * (lengths - tokens)[movable], kind="stable")
        moved = movable[by_fraction[: abs(missing)]]
        tokens[moved] += step
        missing -= step * len(moved)
    return np.sort(tokens)[::-1]


@lru_cache(maxsize=16)
def _normals(count: int) -> _Floats:
    normal = NormalDist()
    return np.array([normal.inv_cdf(p) for p in _midpoints(count)])


def _midpoints(count: int) -> _Floats:
    return (count - 0.5 - np.arange(count)) / count

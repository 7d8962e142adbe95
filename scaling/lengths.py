"""The grammar of token counts and of lists of thinking lengths: `8k`, `8k..96k`, `8k..96k:8k`, `8k..96k/6`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from scaling.errors import UsageError

MAX_TOKENS = 1 << 30
MAX_POINTS = 256
EXAMPLE = "expected lengths like 8k, 8k..96k, 8k..96k:16k or 8k..96k/6, joined by commas"

_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}
_TOKENS = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)([km]?)", re.IGNORECASE)


def parse_tokens(text: str) -> int:
    """Tokens from `1500`, `8k` (8·1024), `1.5k` or `1m` (1024·1024); raises `UsageError` if they are not whole."""
    try:
        return _tokens(text)
    except UsageError as error:
        raise UsageError(f"{error}; expected a number of tokens like 1500, 8k, 1.5k or 1m") from None


def format_tokens(n: int) -> str:
    """The shortest text that `parse_tokens` reads back: 8192 → `8k`, 1536 → `1.5k`, 1500 → `1500`."""
    for unit in ("m", "k"):
        size = _UNITS[unit]
        if n >= size and 2 * n % size == 0:
            return f"{n // size}{'.5' if n % size else ''}{unit}"
    return str(n)


def parse_lengths(text: str) -> list[int]:
    """Thinking lengths in tokens, sorted and unique, from parts joined by commas.

    `a` is one length. Ranges hold both their ends, whatever lies between:
    `a..b`       the ladder: powers of two and one and a half times powers of two (8k..96k: 8 12 16 24 32 48 64 96k);
    `a..b:step`  every a + i·step below b;
    `a..b/n`     n ≥ 2 geometric points, those between the ends rounded to 1k, or below 8k to the power of two that
                 is at most an eighth of the point; points that round to the same length count once.
    Raises `UsageError` naming the part that is wrong.
    """
    lengths: set[int] = set()
    for part in text.split(","):
        try:
            lengths.update(_parse_part(part.strip()))
        except UsageError as error:
            raise UsageError(f"bad lengths {part.strip()!r}: {error}; {EXAMPLE}") from None
    if len(lengths) > MAX_POINTS:
        raise UsageError(f"{len(lengths)} lengths are more than {MAX_POINTS}; {EXAMPLE}")
    return sorted(lengths)


def _parse_part(part: str) -> list[int]:
    first, dots, rest = part.partition("..")
    start = _positive(first)
    if not dots:
        return [start]
    last, mark, how = re.fullmatch(r"([^:/]*)([:/]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    end = _positive(last)
    if end < start:
        raise UsageError(f"{last.strip()} is less than {first.strip()}; the smaller end comes first")
    between: Iterable[int]
    if mark == ":":
        between = _steps(start, end, _positive(how))
    elif mark == "/":
        between = _geometric(start, end, how)
    else:
        between = _ladder(start, end)
    return [start, *(n for n in between if start < n < end), end]


def _tokens(text: str) -> int:
    text = text.strip()
    match = _TOKENS.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no number of tokens" if text else "a number of tokens is missing")
    tokens = Fraction(match[1]) * _UNITS[match[2].lower()]
    if tokens.denominator != 1:
        raise UsageError(f"{text} is {float(tokens):g} tokens, which is not whole")
    if tokens > MAX_TOKENS:
        raise UsageError(f"{text} is more than {format_tokens(MAX_TOKENS)} tokens")
    return int(tokens)


def _positive(text: str) -> int:
    tokens = _tokens(text)
    if tokens == 0:
        raise UsageError("0 is not positive")
    return tokens


def _ladder(start: int, end: int) -> list[int]:
    powers = [1 << i for i in range(start.bit_length() - 1, end.bit_length())]
    return [rung for power in powers for rung in (power, power + power // 2)]


def _steps(start: int, end: int, step: int) -> range:
    steps = range(start, end, step)
    if len(steps) > MAX_POINTS:
        raise UsageError(f"{len(steps)} points are more than {MAX_POINTS}; take a larger step")
    return steps


def _geometric(start: int, end: int, how: str) -> list[int]:
    points = int(how) if re.fullmatch(r"[0-9]{1,4}", how.strip()) else 0
    if not 2 <= points <= MAX_POINTS:
        raise UsageError(f"{how.strip()!r} is no number of points from 2 to {MAX_POINTS}")
    return [_rounded(start * (end / start) ** (i / (points - 1))) for i in range(1, points - 1)]


def _rounded(x: float) -> int:
    """To the nearest multiple of the largest power of two that is at most x/8, and at most 1k."""
    unit = min(1024, 1 << max(0, (int(x) // 8).bit_length() - 1))
    return unit * round(x / unit)

"""What readers see a thinking environment called, in tables, pictures and sentences alike."""

from __future__ import annotations

from scaling.lengths import format_tokens

TITLES = {"longcot": "LongCoT", "delethink": "Delethink"}


def environment_label(
    environment: str, context_size: int | None = None, state_size: int | None = None, carryover: str | None = None
) -> str:
    """`LongCoT`, `Delethink C=1k m=512`; a carry-over other than the paper's Algorithm 1 is named, as in `… recipe`."""
    words = [TITLES.get(environment, environment)]
    words += [f"{symbol}={format_tokens(n)}" for symbol, n in (("C", context_size), ("m", state_size)) if n is not None]
    if carryover not in (None, "algorithm1"):
        words.append(str(carryover))
    return " ".join(words)

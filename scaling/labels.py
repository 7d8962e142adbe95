"""What readers see a thinking environment called, in tables, pictures and sentences alike."""

from __future__ import annotations

from scaling.lengths import format_tokens

TITLES = {
    "longcot": "LongCoT",
    "delethink": "Delethink",
    "summary": "Summary",
    "budget-forcing": "Budget forcing",
    "folding": "Folding",
}

LABELLED = ("context_size", "state_size", "carryover", "summary_size", "extensions")
"""The parameters that a label tells, where an environment has them."""


def environment_label(
    environment: str,
    context_size: int | None = None,
    state_size: int | None = None,
    carryover: str | None = None,
    summary_size: int | None = None,
    extensions: int | None = None,
) -> str:
    """`LongCoT`, `Delethink C=1k m=512`, `Summary C=1k s=128`, `Budget forcing N=2`; a carry-over other than the
    paper's Algorithm 1 is named, as in `… recipe`."""
    words = [TITLES.get(environment, environment)]
    sizes = (("C", context_size), ("m", state_size), ("s", summary_size))
    words += [f"{symbol}={format_tokens(n)}" for symbol, n in sizes if n is not None]
    if extensions is not None:
        words.append(f"N={extensions}")
    if carryover not in (None, "algorithm1"):
        words.append(str(carryover))
    return " ".join(words)

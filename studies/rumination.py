"""How much a thought repeats itself: n-grams that come again, and how evenly its words are used.

After *DeepSeek-R1 Thoughtology* (arXiv 2504.07128), §3.3, which counts repeated 5-grams and a normalised entropy of
words. What exactly is divided by what is ours, and stands at each function.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

NGRAM = 5


def seen_before(units: Sequence[Hashable], n: int = NGRAM) -> list[bool]:
    """Of each n-gram in order, whether it stood earlier in `units`: len(units) − n + 1 of them, none if that is < 1."""
    known: set[tuple[Hashable, ...]] = set()
    found = []
    for gram in zip(*(units[start:] for start in range(n)), strict=False):
        found.append(gram in known)
        known.add(gram)
    return found


def repeated_rate(units: Sequence[Hashable], n: int = NGRAM) -> float | None:
    """Share of n-grams that stood earlier, 1 − distinct ÷ all; None with fewer than n units."""
    seen = seen_before(units, n)
    return sum(seen) / len(seen) if seen else None


def normalised_entropy(units: Sequence[Hashable]) -> float | None:
    """Entropy of how often each unit is used ÷ its maximum, the logarithm of how many different ones there are.

    1 where all are used equally often; None with fewer than two different ones.
    """
    counts = Counter(units)
    if len(counts) < 2:
        return None
    total = len(units)
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    return entropy / math.log(len(counts))

"""How much better than expected: rewards of traces become advantages of their tokens."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scaling.errors import UsageError


def grpo(rewards: Sequence[float]) -> list[float]:
    """(R − μ)/σ within the group of one query, with σ of the sample (n − 1), as in Shao et al. 2024 (2402.03300).

    A group whose rewards are all equal says nothing: its advantages are zero. Raises `UsageError` for a group of one.
    """
    mean = statistics.fmean(_compared(rewards, "GRPO"))
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    deviation = statistics.stdev(rewards)
    return [(reward - mean) / deviation for reward in rewards]


def rloo(rewards: Sequence[float]) -> list[float]:
    """R less the mean reward of the others in the group (Ahmadian et al. 2024, 2402.14740). Refuses a group of one.

    Equal rewards give exact zeros, whatever sums of them would round to.
    """
    total, others = sum(_compared(rewards, "RLOO")), len(rewards) - 1
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    return [reward - (total - reward) / others for reward in rewards]


def vineppo(values: Sequence[float], reward: float) -> list[float]:
    """One advantage a chunk: A_c = V(c+1) − V(c), and R − V for the last (VinePPO, 2410.01679, with γ = 1).

    `values[c]` estimates the reward expected where chunk c starts, the first of them at the query. The reward comes
    at the end alone, where nothing more is expected.
    """
    if not values:
        raise UsageError("a trace without chunks has no advantages; give the value at each chunk's start")
    return [after - before for before, after in zip(values, [*values[1:], reward], strict=True)]


def _compared(rewards: Sequence[float], method: str) -> Sequence[float]:
    if len(rewards) < 2:
        raise UsageError(
            f"{method} compares the traces of a query, and a group of {len(rewards)} has none to compare "
            "with; give group=2 or more"
        )
    return rewards

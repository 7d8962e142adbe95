"""Rows of whole curves with known laws."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict

import pandas as pd
import pytest

from scaling.results import Row

LENGTHS = [1024, 1536, 2048, 3072, 4096, 8192]


@pytest.fixture
def make_frame(make_row: Callable[..., Row]) -> Callable[..., pd.DataFrame]:
    """Rows of one curve at `lengths`, `repeats` each, of `cost(length)` device-seconds a trace."""

    def make(
        cost: Callable[[int], float], lengths: Iterable[int] = LENGTHS, repeats: int = 3, **changes: object
    ) -> pd.DataFrame:
        return pd.DataFrame(
            asdict(
                make_row(
                    **{
                        "repeat": repeat,
                        "mean_thinking_tokens": length,
                        "actual_thinking_tokens": float(length),
                        "device_seconds_per_trace": cost(length),
                    }
                    | changes
                )
            )
            for length in lengths
            for repeat in range(repeats)
        )

    return make


@pytest.fixture
def longcot() -> dict[str, object]:
    """Row fields that make a row one of LongCoT."""
    return {"environment": "longcot", "context_size": None, "state_size": None, "head": None, "carryover": None}

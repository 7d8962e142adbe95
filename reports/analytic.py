"""What the roofline says of what a report shows: from the machine that each run probed, before it measured anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from reports.curves import Setting, Variant, grouped
from scaling.errors import ScalingError
from scaling.predict.measured import Probed, at_length, predicted, records
from scaling.predict.roofline import Roofline


def rooflines(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Roofline]:
    """Those of the runs whose manifest has a probed machine and a model that can be priced."""
    found: dict[str, Roofline] = {}
    for run, manifest in manifests.items():
        with suppress(ScalingError):
            found[run] = Probed.of(manifest).roofline
    return found


def analytic(setting: Setting, variant: Variant, phase: str, lengths: Sequence[int]) -> list[float]:
    """Device-seconds per trace at each length, the mean over the runs that measured the curve; NaN without a probe."""
    rows = setting.timed[(setting.timed["phase"] == phase) & setting.timed["run"].isin(list(setting.rooflines))]
    rows = rows[rows["variant"] == variant].drop_duplicates("run")
    said = [
        predicted(setting.rooflines[str(row["run"])], [at_length(row, tokens) for tokens in lengths])
        for row in records(rows)
    ]
    return np.mean(said, axis=0).tolist() if said else [math.nan] * len(lengths)


def beside(setting: Setting, data: pd.DataFrame) -> pd.Series[float]:
    """The same for every row of a frame with variant, phase and tokens, in its order and under its index."""
    parts = [
        pd.Series(analytic(setting, variant, phase, rows["tokens"].astype(int).tolist()), index=rows.index)
        for (variant, phase), rows in grouped(data, ["variant", "phase"])
    ]
    found: pd.Series[float] = pd.concat([pd.Series(dtype=float), *parts]).reindex(data.index)
    return found


def smooth(variant: Variant, first: int, last: int, count: int = 40) -> list[int]:
    """Lengths to draw a curve at: about evenly on a logarithmic axis, of a chunked environment at chunk boundaries."""
    lengths = np.geomspace(first, last, count)
    _, context, state, *_ = variant.key
    if context is not None:
        step = context - (state or 0)
        lengths = context + step * np.maximum(0, np.round((lengths - context) / step))
    return sorted({round(tokens) for tokens in lengths if first <= tokens <= last})

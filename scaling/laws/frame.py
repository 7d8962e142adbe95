"""From stored rows to curves: which rows belong together, which do not belong at all."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scaling.errors import FitError
from scaling.laws.fit import Fit, fit_curve
from scaling.laws.models import Array
from scaling.results import timed

ADDED_COLUMNS = ("summary_size", "extensions", "cue_tokens")
"""Of curves: rows of before they came may lack them."""

CURVE_COLUMNS = (
    "model",
    "engine",
    "device",
    "devices",
    "weight_dtype",
    "kv_dtype",
    "environment",
    "context_size",
    "state_size",
    "head",
    "carryover",
    *ADDED_COLUMNS,
    "phase",
    "method",
    "concurrency_limit",
    "traces",
    "prompt_tokens",
)

REGIME = 0.9  # mean concurrency may fall to this share of a curve's largest before another regime begins
NOTABLE_DRIFT = 0.05  # relative standard deviation of whole repeats of a profile


class FitWarning(UserWarning):
    """A curve that the rows do not determine; the other curves are fitted."""


def fit_frame(frame: pd.DataFrame, replicates: Callable[[pd.DataFrame], Array] | None = None) -> list[Fit]:
    """Fits every curve of a frame of rows (`results.Row`), in order of appearance.

    Rows that failed or whose seconds are not valid are left out and counted in the fit's warnings, never taken as
    zeros. A chunked environment is fitted at chunk boundaries from the context size on: below it, it is LongCoT in all
    but name, and inside a chunk it is off its own line. Where the mean concurrency of a curve's lengths differs by
    more than 10 %, each regime is a curve of its own. A curve's `concurrency_mean` stands beside `CURVE_COLUMNS`.

    Weight transfer (`sync`) does not depend on thinking and has no law.

    `replicates`: gives, for the rows of a profiled curve, [B, rows] of re-integrated device-seconds per trace.
    A curve that cannot be fitted issues a `FitWarning`; raises `FitError` if that leaves none.
    """
    frame = frame.assign(**{c: None for c in ADDED_COLUMNS if c not in frame.columns})
    missing = [c for c in (*CURVE_COLUMNS, "device_seconds_per_trace", "status") if c not in frame.columns]
    if missing:
        raise FitError(f"rows lack the columns {', '.join(missing)}; expected the rows of `scaling run`")
    fits: list[Fit] = []
    problems = []
    with_length = frame[frame["phase"] != "sync"]
    for key, rows in with_length.groupby(list(CURVE_COLUMNS), dropna=False, sort=False):
        curve: dict[str, object] = {
            c: _plain(v) for c, v in zip(CURVE_COLUMNS, cast(tuple[Any, ...], key), strict=True)
        }
        kept, said = _usable(rows)
        regimes = _regimes(kept)
        for regime in regimes:
            try:
                fits.append(_fit(regime, curve, said, len(regimes), replicates))
            except FitError as error:
                problems.append(
                    f"{curve['environment']} {curve['phase']} ({curve['method']}): {'; '.join([str(error), *said])}"
                )
    if not fits:
        raise FitError(problems[0] if problems else "there are no rows to fit; measure some with `scaling run`")
    for problem in problems:
        warnings.warn(problem, FitWarning, stacklevel=2)
    return fits


def _fit(
    rows: pd.DataFrame,
    curve: dict[str, object],
    said: list[str],
    regimes: int,
    replicates: Callable[[pd.DataFrame], Array] | None,
) -> Fit:
    said = list(said)
    concurrency = rows["concurrency_mean"].mean()
    profiled = curve["method"] == "profile"
    if regimes > 1:
        said.append(
            f"mean concurrency differs by more than 10 %: this is one of {regimes} regimes, at {concurrency:.3g}"
        )
    if profiled and (drift := _drift(rows)) > NOTABLE_DRIFT:
        said.append(
            f"whole repeats differ by {drift:.0%} (standard deviation), which moves the curve up or down; "
            "its intervals show the scatter within a repeat"
        )
    if profiled and curve["context_size"] is not None and curve["environment"] != "folding":
        said.append("a profile adds up equal chunks, so it is straight by construction; full rows test that")
    fit = fit_curve(
        np.asarray(_lengths(rows), np.float64),
        np.asarray(rows["device_seconds_per_trace"], np.float64),
        curve=curve | {"concurrency_mean": _plain(concurrency)},
        # rows of training phases are timed chunk by chunk, each repeat anew: they share no grid
        replicates=replicates(rows) if replicates and profiled and rows["grid_id"].notna().all() else None,
    )
    return dataclasses.replace(fit, warnings=(*said, *fit.warnings))


def _drift(rows: pd.DataFrame) -> float:
    """Relative standard deviation of whole repeats: 0 with a single one."""
    relative = rows["device_seconds_per_trace"] / rows.groupby("mean_thinking_tokens")[
        "device_seconds_per_trace"
    ].transform("mean")
    by_repeat = relative.groupby(rows["repeat"]).mean()
    return float(by_repeat.std()) if len(by_repeat) > 1 else 0.0


def _lengths(rows: pd.DataFrame) -> pd.Series[float]:
    """Thinking tokens that the seconds were spent on; the asked mean where the actual one was not recorded."""
    return rows["actual_thinking_tokens"].astype(float).fillna(rows["mean_thinking_tokens"].astype(float))


def _usable(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows that belong on the law, and what was left out, in words."""
    said = []
    failed = rows["status"] != "ok"
    if failed.any():
        counts = ", ".join(f"{n} {status}" for status, n in rows.loc[failed, "status"].value_counts().items())
        said.append(f"{failed.sum()} of {len(rows)} rows did not finish ({counts}) and are left out")
    kept = timed(rows)
    if left := len(rows) - failed.sum() - len(kept):
        said.append(f"{left} of {len(rows)} rows have no valid seconds and are left out")
    if doubtful := int((~kept["seconds_valid"].fillna(False).astype(bool)).sum()):
        why = kept["seconds_reason"].dropna().iloc[0] if kept["seconds_reason"].notna().any() else "no reason given"
        said.append(f"{doubtful} of {len(rows)} rows are used although their seconds are not valid ({why})")
    context, state = kept["context_size"].astype(float), kept["state_size"].astype(float).fillna(0.0)
    off_boundary = context.notna() & ~at_boundary(kept["mean_thinking_tokens"], context, state)
    if off_boundary.any():
        said.append(
            f"{off_boundary.sum()} rows are not at a chunk boundary of at least the context size and are left out"
        )
    return kept[~off_boundary], said


def at_boundary(tokens: ArrayLike, context_size: ArrayLike, state_size: ArrayLike) -> NDArray[np.bool_]:
    """Whether traces of so many thinking tokens fill their last chunk: C, C + (C−m), C + 2(C−m), …; without a state,
    as where rounds are summed up, m is 0.

    Only these lengths lie on a chunked environment's law.
    """
    past = np.subtract(tokens, context_size)
    return np.asarray((past >= 0) & (past % np.subtract(context_size, state_size) == 0))


def _regimes(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows split by length so that mean concurrencies within a part differ by at most 10 %, largest first."""
    by_length = rows.groupby("mean_thinking_tokens")["concurrency_mean"].mean().astype(float)
    regimes: list[list[Any]] = [list(by_length.index[by_length.isna()])]
    most = np.inf  # of the regime being filled; infinite so that the first length opens one
    for length, concurrency in by_length.dropna().sort_values(ascending=False).items():
        if concurrency < REGIME * most:
            regimes.append([])
            most = concurrency
        regimes[-1].append(length)
    return [rows[rows["mean_thinking_tokens"].isin(lengths)] for lengths in regimes if lengths] or [rows]


def _plain(value: Any) -> object:
    """A Python value from a cell of a frame: None for any missing value."""
    if pd.isna(value):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value

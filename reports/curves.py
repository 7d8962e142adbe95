"""Rows grouped for reading: settings whose numbers may be compared, and the points of their curves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from scaling.labels import LABELLED, environment_label
from scaling.results import Row, timed

if TYPE_CHECKING:
    from scaling.laws import Fit
    from scaling.predict.roofline import Roofline

COLUMNS = [each.name for each in fields(Row)]
PHASES = ("rollout", "logprob", "update", "sync")
METHODS = ("full", "profile")
SETTING = (
    "model", "engine", "device", "devices", "tensor_parallel", "data_parallel", "weight_dtype", "activation_dtype",
    "kv_dtype", "prompt_tokens", "traces", "concurrency_limit",
)  # fmt: skip
"""Columns that must agree before two costs are compared."""
VARIANT = (
    "environment", "context_size", "state_size", "head", "carryover", "summary_size", "extensions", "cue_tokens",
)  # fmt: skip
"""Columns that tell one thinking environment from another; a budget or a cap on iterations moves along a curve."""

_MARKERS = {"longcot": "o", "delethink": "s"}
"""Of the environments that have a colour of their own."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A thinking environment with its parameters, and how it is drawn: `role` is its colour in `drawing.THEME`."""

    key: tuple[Any, ...]
    label: str
    role: str
    dash: str
    marker: str

    @property
    def is_longcot(self) -> bool:
        return bool(self.key[0] == "longcot")


@dataclass(frozen=True, slots=True)
class Setting:
    """All rows, failed ones too, that share a model, engine, device, precision, prompt and concurrency.

    `rows` has the columns of `Row` and `run` (the run's name), `variant` and `tokens` (mean thinking tokens).
    `rooflines`: by run, of those whose machine was probed.
    """

    label: str
    slug: str
    values: dict[str, Any]
    rows: pd.DataFrame
    fits: list[Fit]
    rooflines: Mapping[str, Roofline] = field(default_factory=dict)

    @property
    def variants(self) -> list[Variant]:
        return _ordered(self.rows["variant"])

    @property
    def phases(self) -> list[str]:
        """Phases with at least one usable time, in the order of a training step."""
        timed = set(self.timed["phase"])
        return [phase for phase in PHASES if phase in timed]

    @property
    def timed(self) -> pd.DataFrame:
        """Rows whose seconds may be used."""
        return timed(self.rows)

    def laws(self, variant: Variant, phase: str) -> list[Fit]:
        """The laws of one environment in one phase: one a method and concurrency regime, the farthest measured last."""
        found = [
            fit
            for fit in self.fits
            if tuple(plain(fit.curve.get(name)) for name in VARIANT) == variant.key and fit.curve["phase"] == phase
        ]
        return sorted(found, key=lambda fit: (fit.largest, fit.curve["method"] == "full"))


def plain(value: Any) -> Any:
    """A cell of a frame as a plain Python value; every kind of missing is None."""
    if value is None or (not isinstance(value, str) and bool(pd.isna(value))):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    return value.item() if isinstance(value, np.generic) else value


def each_row(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples; their fields have whatever type the column has."""
    yield from frame.itertuples(index=False)


def grouped(frame: pd.DataFrame, by: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Groups in order of appearance, with keys of whatever type the columns have."""
    yield from frame.groupby(by, sort=False)


def settings(
    frame: pd.DataFrame, fits: Sequence[Fit], rooflines: Mapping[str, Roofline] | None = None
) -> list[Setting]:
    """Splits rows (columns of `Row`, and `run`) by setting, the largest first."""
    frame = frame.reset_index(drop=True)
    keys = [tuple(plain(value) for value in key) for key in each_row(frame[list(VARIANT)])]
    looks: dict[Any, Any] = {**_looks(keys)}
    frame = frame.assign(variant=[looks[key] for key in keys], tokens=frame["mean_thinking_tokens"].astype(int))
    groups = [
        ({name: plain(value) for name, value in zip(SETTING, key, strict=True)}, rows)
        for key, rows in frame.groupby(list(SETTING), dropna=False, sort=False)
    ]
    groups.sort(key=lambda group: -len(group[1]))
    differ = {name for name in SETTING if len({group[0][name] for group in groups}) > 1}
    found: list[Setting] = []
    for values, rows in groups:
        label = _describe(values, differ)
        apart = "-".join(str(values[name]) for name in SETTING if name in differ)
        slug = re.sub(r"[^a-z0-9]+", "-", apart.lower()).strip("-")
        if slug and any(other.slug == slug for other in found):
            slug += f"-{len(found) + 1}"
        mine = [fit for fit in fits if all(plain(fit.curve[n]) == v for n, v in values.items() if n in fit.curve)]
        found.append(Setting(label, slug, values, rows, mine, rooflines or {}))
    return found


def points(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Repeats summarised: variant, phase, method, tokens, mean, low, high (range of the repeats), n; by tokens."""
    grouped = rows.groupby(["variant", "phase", "method", "tokens"], sort=False)[metric]
    table = grouped.agg(mean="mean", low="min", high="max", n="count").reset_index()
    table[["mean", "low", "high"]] = table[["mean", "low", "high"]].astype(float)
    return table.sort_values("tokens", kind="stable").reset_index(drop=True)


def paired_ratio(above: pd.DataFrame, below: pd.DataFrame, metric: str) -> tuple[float, float, float, int] | None:
    """Geometric mean of above ÷ below over pairs of one run and repeat, its 95 % interval, and the number of pairs.

    The interval is Student's t on the log-ratios, and not a number for a single pair. None without any pair.
    """
    pairs = above.merge(below, on=["run", "repeat"], suffixes=("_a", "_b"))
    if pairs.empty:
        return None
    logs = np.log(pairs[f"{metric}_a"].to_numpy(float) / pairs[f"{metric}_b"].to_numpy(float))
    centre, n = float(logs.mean()), len(logs)
    if n == 1:
        return math.exp(centre), math.nan, math.nan, 1
    half = float(stats.t.ppf(0.975, n - 1)) * float(logs.std(ddof=1)) / math.sqrt(n)
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half), n


def _ordered(variants: pd.Series[Any]) -> list[Variant]:
    """LongCoT first, then by parameters."""
    distinct: list[Any] = list(dict.fromkeys(variants))
    return sorted(distinct, key=lambda v: (not v.is_longcot, [str(k).rjust(12) for k in v.key]))


def _looks(keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], Variant]:
    """One look a variant: an environment keeps its colour and marker, its parameters choose the dash."""
    looks: dict[tuple[Any, ...], Variant] = {}
    labels = [_variant_label(key, False) for key in dict.fromkeys(keys)]
    others: list[str] = []
    for key in sorted(dict.fromkeys(keys), key=lambda k: [str(part).rjust(12) for part in k]):
        name, label = str(key[0]), _variant_label(key, False)
        if labels.count(label) > 1:
            label = _variant_label(key, True)
        if name not in _MARKERS and name not in others:
            others.append(name)
        role = name if name in _MARKERS else ("third", "fourth", "fifth")[others.index(name) % 3]
        siblings = sum(look.key[0] == name for look in looks.values())
        dash = ("-", "--", "-.", ":")[siblings % 4]
        marker = _MARKERS.get(name) or "^Dv"[others.index(name) % 3]
        looks[key] = Variant(key, label, role, dash, marker)
    return looks


def _variant_label(key: tuple[Any, ...], whole: bool) -> str:
    values = dict(zip(VARIANT, key, strict=True))
    named = {name: values[name] for name in LABELLED}
    if not whole:
        return environment_label(key[0], **named)
    told = {"head {}": values["head"], "{}": values["carryover"], "cue of {} tokens": values["cue_tokens"]}
    rest = [text.format(value) for text, value in told.items() if value is not None]
    return ", ".join([environment_label(key[0], **{**named, "carryover": None}), *rest])


def _describe(values: dict[str, Any], differ: set[str]) -> str:
    """What a setting is called: always model, engine and device, and whatever tells it from the others."""
    parts = [str(values["model"]), str(values["engine"]), str(values["device"])]
    units = {"concurrency_limit": "at once", "prompt_tokens": "prompt tokens", "devices": "devices"}
    for name in SETTING[3:]:
        if name in differ or name == "concurrency_limit":
            parts.append(f"{values[name]} {units.get(name, name.replace('_', ' '))}")
    return " · ".join(parts)

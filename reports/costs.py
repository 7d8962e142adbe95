"""What a trace costs at a length: measured where it was, else by law; and what follows for jobs and methods."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd

from reports.analytic import analytic
from reports.curves import METHODS, Setting, Variant, grouped, paired_ratio, points
from scaling.results import PROFILED_MEANWHILE

if TYPE_CHECKING:
    from scaling.laws import Job

Basis = Literal["full", "profile", "law", "extrapolated", "missing"]
_TRUST: tuple[Basis, ...] = ("full", "profile", "law", "extrapolated", "missing")  # a sum is as good as its worst part
ASKED = (96 << 10, 1 << 20)  # lengths that the literature quotes


@dataclass(frozen=True, slots=True)
class Cost:
    """Device-seconds per trace with an interval: the repeats' range where measured, 95 % where by law."""

    seconds: float
    low: float
    high: float
    basis: Basis


MISSING = Cost(math.nan, math.nan, math.nan, "missing")


def phase_costs(setting: Setting) -> pd.DataFrame:
    """Measured means: variant, phase, method, tokens, mean, low, high, n; full rows before profiled ones."""
    table = points(setting.timed, "device_seconds_per_trace")
    table = table.sort_values(["method", "tokens"], key=lambda c: c.map(METHODS.index) if c.name == "method" else c)
    return table.drop_duplicates(["variant", "phase", "tokens"]).sort_values("tokens").reset_index(drop=True)


def cost_at(setting: Setting, variant: Variant, phase: str, tokens: int, measured: pd.DataFrame) -> Cost:
    """The cost of one phase at one length; `measured` is `phase_costs(setting)`."""
    here = measured[(measured["variant"] == variant) & (measured["phase"] == phase) & (measured["tokens"] == tokens)]
    if len(here):
        row = here.iloc[0]
        return Cost(float(row["mean"]), float(row["low"]), float(row["high"]), row["method"])
    laws = setting.laws(variant, phase)
    if not laws:
        return MISSING
    seen = laws[-1].predict(tokens)
    return Cost(seen.seconds, seen.low, seen.high, "extrapolated" if seen.extrapolated else "law")


def add(costs: Iterable[Cost]) -> Cost:
    """The sum of phases; intervals added end to end, the basis that of the least certain part."""
    parts = list(costs)
    return Cost(
        sum(part.seconds for part in parts),
        sum(part.low for part in parts),
        sum(part.high for part in parts),
        max((part.basis for part in parts), key=_TRUST.index),
    )


def months_frame(setting: Setting, job: Job) -> pd.DataFrame:
    """The job by phases (the first alone, then all together), length and environment.

    phases, tokens, variant, basis, device_seconds_per_trace, and hours and months of one device with low, high and
    what the roofline says.
    """
    measured = phase_costs(setting)
    lengths = sorted({*map(int, measured["tokens"]), *ASKED})
    by_roofline = {
        (variant, phase): dict(zip(lengths, analytic(setting, variant, phase, lengths), strict=True))
        for variant, phase in itertools.product(setting.variants, setting.phases)
    }
    sums = [setting.phases[:1], setting.phases] if len(setting.phases) > 1 else [setting.phases]
    records = []
    for phases, tokens, variant in itertools.product(sums, lengths, setting.variants):
        total = add(cost_at(setting, variant, phase, tokens, measured) for phase in phases)
        record: dict[str, object] = {"phases": "+".join(phases), "tokens": tokens, "variant": variant}
        record |= {"basis": total.basis, "device_seconds_per_trace": total.seconds}
        said = sum(by_roofline[variant, phase][tokens] for phase in phases)
        for unit, convert in (("hours", job.gpu_hours), ("months", job.months)):
            record |= {unit: convert(total.seconds), f"{unit}_low": convert(total.low)}
            record |= {f"{unit}_high": convert(total.high), f"{unit}_analytic": convert(said)}
        records.append(record)
    return pd.DataFrame(records)


def agreement(setting: Setting) -> pd.DataFrame:
    """Rollouts measured by both methods, one row an environment and length.

    variant, tokens, full_seconds and profile_seconds (device-seconds per trace), difference (profile ÷ full − 1) with
    its 95 % interval, full_n, profile_n, apart_n (pairs whose profile was not measured between the steps of their
    repeat's full rollouts, as where a run was resumed after them), and full ÷ profile of processed tokens and elapsed
    seconds.
    """
    rows = setting.timed[setting.timed["phase"] == "rollout"]
    together = _repeats(setting.rows[setting.rows["memory_reason"] == PROFILED_MEANWHILE])
    records = []
    for (variant, tokens), both in grouped(rows.sort_values("tokens"), ["variant", "tokens"]):
        full, profile = (both[both["method"] == method] for method in METHODS)
        paired = paired_ratio(profile, full, "device_seconds_per_trace")
        if paired is None:
            continue
        ratio, low, high, _ = paired
        records.append(
            {
                "variant": variant,
                "tokens": tokens,
                "full_seconds": full["device_seconds_per_trace"].mean(),
                "profile_seconds": profile["device_seconds_per_trace"].mean(),
                "difference": ratio - 1,
                "difference_low": low - 1,
                "difference_high": high - 1,
                "full_n": len(full),
                "profile_n": len(profile),
                "apart_n": len((_repeats(full) & _repeats(profile)) - together),
                "processed_ratio": full["processed_tokens"].mean() / profile["processed_tokens"].mean(),
                "elapsed_ratio": full["elapsed_seconds"].mean() / profile["elapsed_seconds"].mean(),
            }
        )
    columns = [
        "variant", "tokens", "full_seconds", "profile_seconds", "difference", "difference_low", "difference_high",
        "full_n", "profile_n", "apart_n", "processed_ratio", "elapsed_ratio",
    ]  # fmt: skip
    return pd.DataFrame(records, columns=columns)


def _repeats(rows: pd.DataFrame) -> set[tuple[str, int]]:
    return set(zip(rows["run"], rows["repeat"], strict=True))

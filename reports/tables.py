"""The tables of a report, each from one setting's rows and laws, as machine-readable numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from reports.costs import agreement, months_frame, phase_costs
from reports.curves import PHASES, Setting, plain
from reports.drawing import short
from reports.figures import PHASE_NAMES, ratios

if TYPE_CHECKING:
    from scaling.laws import Fit, Job

NONE = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """`data` goes to CSV, raw and with units in its column names; `shown` is text, one column a heading."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    shown: pd.DataFrame


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands grouped, no powers of ten short of a billion: 4,730 · 0.0821 · –."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-6 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{rounded:,.{places}f}".replace("-", "−")


def span(low: float, high: float, show: Callable[[float], str] = number) -> str:
    """An interval as text."""
    if math.isnan(low) or math.isnan(high):
        return NONE
    return f"{show(low)} to {show(high)}"


def percent(value: float | None) -> str:
    if value is None or math.isnan(value):
        return NONE
    return f"{100 * value:.3g} %".replace("-", "−") if math.isfinite(value) else number(value)


def size(count: float | None) -> str:
    """Bytes as text."""
    if count is None or math.isnan(count):
        return NONE
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def costs(setting: Setting) -> Table:
    """Every measured curve point: how long, how fast, how much memory."""
    rows = setting.timed
    keys = ["variant", "phase", "method", "tokens"]
    data = rows.groupby(keys, sort=False).agg(
        n=("device_seconds_per_trace", "count"),
        device_seconds_per_trace_mean=("device_seconds_per_trace", "mean"),
        device_seconds_per_trace_min=("device_seconds_per_trace", "min"),
        device_seconds_per_trace_max=("device_seconds_per_trace", "max"),
        tokens_per_second=("tokens_per_second", "mean"),
        prefill_seconds=("prefill_seconds", "mean"),
        decode_seconds=("decode_seconds", "mean"),
        chunks=("chunks", "mean"),
        concurrency_mean=("concurrency_mean", "mean"),
        preemptions=("preemptions", "mean"),
        peak_kv_bytes=("peak_kv_bytes", "max"),
        peak_memory_bytes=("peak_memory_bytes", "max"),
    )
    data = data.apply(pd.to_numeric).reset_index()
    data = _ordered(data, setting)
    shown = pd.DataFrame(
        {
            "environment": _labels(data),
            "phase": data["phase"],
            "method": data["method"],
            "thinking tokens": data["tokens"].map(short),
            "n": data["n"].astype(str),
            "device-s / trace": data["device_seconds_per_trace_mean"].map(number),
            "range": [
                span(low, high)
                for low, high in zip(
                    data["device_seconds_per_trace_min"], data["device_seconds_per_trace_max"], strict=True
                )
            ],
            "tokens / s": data["tokens_per_second"].map(number),
            "prefill s": data["prefill_seconds"].map(number),
            "decode s": data["decode_seconds"].map(number),
            "at once": data["concurrency_mean"].map(number),
            "peak KV": data["peak_kv_bytes"].map(size),
            "peak memory": data["peak_memory_bytes"].map(size),
        }
    )
    caption = (
        "Means over n repeats and their range. Prefill, decode and tokens per second are of all "
        f"{setting.values['traces']} traces of a repeat. Rows that failed or whose seconds are not valid are left out."
    )
    return Table("costs", "Measured costs", caption, _csv(data), shown)


def by_phase(setting: Setting) -> Table:
    """Device-seconds a trace by length: one column a phase, and their sum where all are there."""
    data = _ordered(phase_costs(setting).drop(columns=["low", "high"]), setting)
    wide = data.pivot_table(index=["variant", "tokens"], columns="phase", values="mean", sort=False)
    names = [phase for phase in PHASES if phase in wide]
    wide = wide[names].assign(total=wide[names].sum(axis=1, skipna=False)).reset_index()
    shown = pd.DataFrame({"environment": _labels(wide), "thinking tokens": wide["tokens"].map(short)})
    for name in names:
        shown[f"{PHASE_NAMES[name]}, s"] = wide[name].map(number)
    total = " + ".join(PHASE_NAMES[name] for name in names)
    if len(names) > 1:
        shown["all of these, s"] = wide["total"].map(number)
    caption = f"Mean device-seconds per trace. Measured phases: {total}. Full rows where there are any, else profiled."
    sync = setting.rows[(setting.rows["phase"] == "sync") & (setting.rows["status"] == "ok")]["wall_seconds"].dropna()
    if len(sync):
        caption += f" A weight transfer takes {number(float(sync.mean()))} s a step (n = {len(sync)}), whatever is thought."
    renamed = wide.rename(columns={name: f"{name}_device_seconds_per_trace" for name in (*names, "total")})
    return Table("phases", "Cost by phase", caption, _csv(renamed), shown)


def months(setting: Setting, job: Job) -> Table:
    """What the stated job takes, measured or predicted, at measured lengths and beyond."""
    data = months_frame(setting, job)
    shown = pd.DataFrame(
        {
            "environment": _labels(data),
            "thinking tokens": data["tokens"].map(short),
            "device-hours": [_estimate(r.hours, r.hours_low, r.hours_high, r.basis) for r in data.itertuples()],
            "device-months": [_estimate(r.months, r.months_low, r.months_high, r.basis) for r in data.itertuples()],
            "interval, months": [span(r.months_low, r.months_high) for r in data.itertuples()],
            "basis": [BASES[r.basis] for r in data.itertuples()],
        }
    )
    phases = " + ".join(PHASE_NAMES[phase] for phase in setting.phases)
    caption = (
        f"{job.steps:,} steps × {job.prompts} prompts × {job.samples} traces on {setting.values['device']}; "
        f"a month is 730 hours of one device. Phases counted: {phases}. Measured: mean and range of the repeats. "
        "† from the fitted law, with its 95 % interval. ‡ beyond 1.5× the largest measured length: an interval only. "
        "Intervals of several phases are added end to end."
    )
    return Table("months", "Device-months of the stated job", caption, _csv(data), shown)


BASES = {
    "full": "measured (full)",
    "profile": "measured (profile)",
    "law": "law †",
    "extrapolated": "extrapolated ‡",
    "missing": "a phase is missing",
}


def _estimate(value: float, low: float, high: float, basis: str) -> str:
    if basis == "extrapolated":
        return f"{span(low, high)} ‡"
    return number(value) + (" †" if basis == "law" else "")


def ratio(setting: Setting, phase: str) -> Table:
    """LongCoT ÷ each other environment by length."""
    data = ratios(setting, phase)
    shown = pd.DataFrame(
        {
            "against": _labels(data),
            "thinking tokens": data["tokens"].map(short),
            "method": data["method"],
            "LongCoT ÷ it": data["ratio"].map(number),
            "95 % interval": [span(r.low, r.high) for r in data.itertuples()],
            "pairs": data["n"].astype(str),
        }
    )
    caption = (
        f"Device-seconds per trace of LongCoT over those of the other environment ({PHASE_NAMES[phase]}), "
        "paired by run and repeat; Student's t interval on log-ratios, none for a single pair."
    )
    return Table(f"ratio-{phase}", f"LongCoT against chunked thinking, {PHASE_NAMES[phase]}", caption, _csv(data), shown)


def laws(setting: Setting) -> Table:
    """Every fitted law with its parameters and how far it can be trusted."""
    pairs = [(v, fit) for v in setting.variants for phase in setting.phases for fit in setting.laws(v, phase)]
    data = pd.DataFrame([_law_record(fit) | {"variant": v} for v, fit in pairs])
    shown = pd.DataFrame(
        {
            "curve": [f"{v.label}, {fit.curve['phase']}, {fit.curve['method']}" for v, fit in pairs],
            "lengths": [
                f"{short(fit.smallest)} to {short(fit.largest)} ({len(set(fit.tokens))} × "
                f"{len(fit.tokens) / len(set(fit.tokens)):.3g})"
                for _, fit in pairs
            ],
            "law": [fit.law for _, fit in pairs],
            "parameters (95 %)": ["; ".join(_parameter(fit, name) for name in fit.parameters) for _, fit in pairs],
            "curvature share (95 %)": [
                f"{percent(f.curvature_share)} ({span(f.curvature_interval.low, f.curvature_interval.high, percent)})"
                for _, f in pairs
            ],
            "exponent (95 %)": [
                f"{number(f.exponent)} ({span(f.exponent_interval.low, f.exponent_interval.high)})" for _, f in pairs
            ],
            "rms": [percent(f.relative_rms) for _, f in pairs],
            "largest left out": [percent(f.leave_largest_out) for _, f in pairs],
            "AICc": [_criterion(f.aicc) for _, f in pairs],
            "BIC": [_criterion(f.bic) for _, f in pairs],
        }
    )
    caption = (
        "T(L) in device-seconds per trace, L in thinking tokens: linear a + bL, quadratic a + bL + cL² with c ≥ 0, "
        "throughput bL + cL², power A·Lᵖ. The curvature share is cL²/T(L) of the quadratic law at the largest length, the "
        "exponent that of the power law, whichever law is selected. Largest left out: relative error at the largest "
        "length of the law fitted to the others. AICc and BIC, relative to the best law, for independent (full) rows."
    )
    return Table("laws", "Fitted laws", caption, _csv(data) if len(data) else data, shown)


def agreements(setting: Setting) -> Table:
    """Where a rollout was both sampled and profiled: does the short way say the same, and what does it save?"""
    data = _ordered(agreement(setting), setting)
    shown = pd.DataFrame(
        {
            "environment": _labels(data),
            "thinking tokens": data["tokens"].map(short),
            "full, s": data["full_seconds"].map(number),
            "profile, s": data["profile_seconds"].map(number),
            "profile ÷ full − 1": [
                f"{percent(r.difference)} ({span(r.difference_low, r.difference_high, percent)})" for r in data.itertuples()
            ],
            "n": [f"{r.full_n} / {r.profile_n}" for r in data.itertuples()],
            "processed tokens, full ÷ profile": data["processed_ratio"].map(number),
            "elapsed time, full ÷ profile": data["elapsed_ratio"].map(number),
        }
    )
    caption = (
        "Rollout device-seconds per trace by both methods, same environment and length; the difference is the geometric "
        "mean over pairs of one run and repeat, with its 95 % interval. The last columns say how many times the tokens "
        "put through the model, and the time spent measuring, are saved; what one profiling grid costs is counted "
        "whole at every length that it serves."
    )
    return Table("agreement", "Full against profile", caption, _csv(data), shown)


def failures(setting: Setting) -> Table:
    """Rows that failed, and metrics that may not be used, each with its reason."""
    rows = setting.rows
    found = []
    for row in rows.itertuples():
        where = (row.variant, row.phase, row.method, row.tokens)
        if row.status != "ok":
            found.append((*where, row.status, plain(row.reason)))
            continue
        if not plain(row.seconds_valid):
            found.append((*where, "seconds invalid", plain(row.seconds_reason)))
        if not plain(row.memory_valid) and row.method == "full":
            found.append((*where, "memory invalid", plain(row.memory_reason)))
        if row.method == "full" and plain(row.energy_joules) is None:
            found.append((*where, "no energy", plain(row.energy_reason)))
    columns = ["variant", "phase", "method", "tokens", "what", "reason"]
    data = pd.DataFrame(found, columns=columns)
    keys = ["variant", "phase", "method", "what", "reason"]
    grouped = data.groupby(keys, sort=False, dropna=False).agg(
        lengths=("tokens", lambda tokens: ", ".join(short(t) for t in sorted(set(tokens)))), repeats=("tokens", "size")
    )
    grouped = grouped.reset_index()
    shown = pd.DataFrame(
        {
            "environment": _labels(grouped),
            "phase": grouped["phase"],
            "method": grouped["method"],
            "thinking tokens": grouped["lengths"],
            "repeats": grouped["repeats"].astype(str),
            "what": grouped["what"],
            "reason": [plain(reason) or NONE for reason in grouped["reason"]],
        }
    )
    good = int((rows["status"] == "ok").sum())
    caption = (
        f"{good} of {len(rows)} repeats finished. A failed repeat has no numbers and enters no mean, law or figure; "
        "an invalid metric is left out of its own figures only. Profiles measure neither memory nor energy."
    )
    return Table("validity", "What failed or may not be used", caption, _csv(grouped), shown)


def _labels(data: pd.DataFrame) -> list[str]:
    return [variant.label for variant in data["variant"]]


def _ordered(data: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """Environment, phase, method, length."""
    rank = {variant: i for i, variant in enumerate(setting.variants)}
    keys = data.assign(variant=data["variant"].map(rank))
    if "phase" in data:
        keys["phase"] = data["phase"].map(PHASES.index)
    by = [name for name in ("variant", "phase", "method", "tokens") if name in data]
    return data.loc[keys.sort_values(by, kind="stable").index].reset_index(drop=True)


def _csv(data: pd.DataFrame) -> pd.DataFrame:
    """The environment by its label, and lengths under their full name."""
    named = data.assign(environment=_labels(data)).drop(columns="variant").rename(columns={"tokens": "thinking_tokens"})
    return named[["environment", *(name for name in named if name != "environment")]]


def _law_record(fit: Fit) -> dict[str, object]:
    record: dict[str, object] = {"phase": fit.curve["phase"], "method": fit.curve["method"], "law": fit.law}
    record |= {"smallest_tokens": fit.smallest, "largest_tokens": fit.largest, "rows": len(fit.tokens)}
    for name, value in fit.parameters.items():
        band = fit.parameter_intervals[name]
        record |= {name: value, f"{name}_low": band.low, f"{name}_high": band.high}
    for name, value, band in (
        ("curvature_share", fit.curvature_share, fit.curvature_interval),
        ("exponent", fit.exponent, fit.exponent_interval),
    ):
        record |= {name: value, f"{name}_low": band.low, f"{name}_high": band.high}
    return record | {"relative_rms": fit.relative_rms, "leave_largest_out": fit.leave_largest_out}


def _parameter(fit: Fit, name: str) -> str:
    band = fit.parameter_intervals[name]
    return f"{name} = {number(fit.parameters[name])} ({span(band.low, band.high)})"


def _criterion(values: dict[str, float] | None) -> str:
    if not values:
        return NONE
    best = min(values.values())
    return ", ".join(f"{law} +{value - best:.1f}" for law, value in sorted(values.items(), key=lambda item: item[1]))



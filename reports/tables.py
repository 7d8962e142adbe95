"""The tables of a report, each from one setting's rows and laws, as machine-readable numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports.analytic import beside
from reports.costs import agreement, months_frame, phase_costs
from reports.curves import PHASES, Setting, each_row, grouped, plain
from reports.drawing import short
from reports.figures import PHASE_NAMES, ratios

if TYPE_CHECKING:
    from scaling.laws import Fit, Job

NONE = "–"

ANALYTIC = (
    "Analytic: what the roofline predicts of the machine as it was probed before measuring, from nothing measured "
    "after."
)


@dataclass(frozen=True, slots=True)
class Table:
    """`data` goes to CSV, raw and with units in its column names; `shown` is text, one column a heading."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    shown: pd.DataFrame


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands grouped, powers of ten where short: 4,730 · 0.0821 · 2.20×10⁻⁷ · –."""
    if value is None or pd.isna(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}×10{_superscript(power)}".replace("-", "−")
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}".replace("-", "−")


def _superscript(power: str) -> str:
    return str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def span(low: float, high: float, show: Callable[[float], str] = number) -> str:
    """An interval as text."""
    if math.isnan(low) or math.isnan(high):
        return NONE
    return f"{show(low)} to {show(high)}"


def _with_span(value: float, low: float, high: float, show: Callable[[float], str] = number) -> str:
    """A value with its interval, where it has one."""
    band = span(low, high, show)
    return show(value) if band == NONE else f"{show(value)} ({band})"


def percent(value: float | None) -> str:
    """A share as text; what rounding leaves of zero is 0."""
    shown = number(None if value is None else 0.0 if abs(value) < 1e-8 else 100 * value)
    return shown if shown == NONE else f"{shown} %"


def size(count: float | None) -> str:
    """Bytes as text."""
    if count is None or pd.isna(count):
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
    analytic = beside(setting, data)
    data["device_seconds_per_trace_analytic"] = analytic
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
            "analytic, s": analytic.map(number),
            "÷ measured": (analytic / data["device_seconds_per_trace_mean"]).map(number),
            "tokens / s": data["tokens_per_second"].map(number),
            "prefill s": data["prefill_seconds"].map(number),
            "decode s": data["decode_seconds"].map(number),
            "peak KV": data["peak_kv_bytes"].map(size),
            "peak memory": data["peak_memory_bytes"].map(size),
        }
    )
    caption = (
        "Means over n repeats and their range. Prefill, decode and tokens per second are of all "
        f"{setting.values['traces']} traces of a repeat. Rows that failed are left out, and so are rows whose seconds "
        f"are not valid, except where a cell has no others. {ANALYTIC}"
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
    shown["all of these, s"] = wide["total"].map(number)
    caption = f"Mean device-seconds per trace. Measured phases: {total}. Full rows where there are any, else profiled."
    renamed = wide.rename(columns={name: f"{name}_device_seconds_per_trace" for name in (*names, "total")})
    return Table("phases", "Cost by phase", caption, _csv(renamed), shown)


def months(setting: Setting, job: Job) -> Table:
    """What the stated job takes, measured or predicted, at measured lengths and beyond."""
    data = months_frame(setting, job)
    shown = pd.DataFrame({"thinking tokens": data["tokens"].drop_duplicates().map(short)}).reset_index(drop=True)
    for (phases, variant), column in grouped(data, ["phases", "variant"]):
        what = "all phases" if "+" in phases else PHASE_NAMES[phases]
        shown[f"{variant.label}, {what}"] = [_estimate(r) for r in each_row(column)]
    phases = " + ".join(PHASE_NAMES[phase] for phase in setting.phases)
    caption = (
        f"{job.steps:,} steps × {job.prompts} prompts × {job.samples} traces on {setting.values['device']}; "
        f"a month is 730 hours of one device. Measured phases: {phases}. ● full and ○ profiled rows: mean and range of "
        "the repeats. † from the fitted law, with its 95 % interval. ‡ extrapolated beyond 1.5× the largest measured "
        "length: the interval alone, beside what the roofline says. Phases are added with their intervals end to end, "
        f"and marked as the least certain. {ANALYTIC}"
    )
    return Table("months", "Device-months of the stated job", caption, _csv(data), shown)


def _estimate(row: Any) -> str:
    """A row of `months_frame` as text, marked with what it rests on."""
    if row.basis == "missing":
        return NONE
    band = span(row.months_low, row.months_high)
    mark = {"full": "●", "profile": "○", "law": "†", "extrapolated": "‡"}[row.basis]
    if row.basis != "extrapolated":
        return f"{mark} {number(row.months)} ({band})"
    return f"{mark} {band}" + ("" if pd.isna(row.months_analytic) else f"\n(analytic {number(row.months_analytic)})")


def ratio(setting: Setting) -> Table:
    """LongCoT ÷ each other environment by length and phase."""
    data = pd.concat([ratios(setting, phase).assign(phase=phase) for phase in setting.phases], ignore_index=True)
    data = _ordered(data, setting)
    keys = ["variant", "method", "tokens"]
    texts = data.assign(text=[_with_span(r.ratio, r.low, r.high) for r in each_row(data)])
    shown = _ordered(data.drop_duplicates(keys)[keys], setting)
    for phase in setting.phases:
        column = shown.merge(texts[texts["phase"] == phase], on=keys, how="left")["text"]
        shown[PHASE_NAMES[phase]] = column.fillna(NONE)
    shown = shown.assign(against=_labels(shown), **{"thinking tokens": shown["tokens"].map(short)})
    shown = shown[["against", "thinking tokens", "method", *(PHASE_NAMES[phase] for phase in setting.phases)]]
    n = sorted(set(data["n"]))
    caption = (
        "Device-seconds per trace of LongCoT over those of the other environment, by phase, with Student's t 95 % "
        f"interval on log-ratios (none for a single pair) over {' or '.join(map(str, n))} pairs of one run and repeat."
    )
    return Table("ratio", "LongCoT ÷ chunked thinking", caption, _csv(data), shown)


def laws(setting: Setting) -> Table:
    """Every fitted law with its parameters and how far it can be trusted."""
    pairs = [(v, fit) for v in setting.variants for phase in setting.phases for fit in setting.laws(v, phase)]
    data = pd.DataFrame([_law_record(fit) | {"variant": v} for v, fit in pairs])
    shown = pd.DataFrame(
        {
            "curve": [f"{v.label}\n{PHASE_NAMES[str(f.curve['phase'])]}, {f.curve['method']}" for v, f in pairs],
            "lengths × repeats": [
                f"{short(f.smallest)} to {short(f.largest)}\n"
                f"{len(set(f.tokens))} × {len(f.tokens) / len(set(f.tokens)):.3g}"
                for _, f in pairs
            ],
            "law": [f.law for _, f in pairs],
            "parameters (95 %)": ["\n".join(_parameter(f, name) for name in f.parameters) for _, f in pairs],
            "curvature share (95 %)": [
                f"{percent(f.curvature_share)}\n({span(f.curvature_interval.low, f.curvature_interval.high, percent)})"
                for _, f in pairs
            ],
            "exponent (95 %)": [
                f"{number(f.exponent)}\n({span(f.exponent_interval.low, f.exponent_interval.high)})" for _, f in pairs
            ],
            "largest left out": [percent(f.leave_largest_out) for _, f in pairs],
            "rms": [percent(f.relative_rms) for _, f in pairs],
            "AICc": [_criterion(f.aicc) for _, f in pairs],
            "BIC": [_criterion(f.bic) for _, f in pairs],
        }
    )
    caption = (
        "T(L) in device-seconds per trace, L in thinking tokens: linear a + bL, quadratic a + bL + cL² with c ≥ 0, "
        "throughput bL + cL², power A·Lᵖ. The curvature share is cL²/T(L) of the quadratic law at the largest length, "
        "the exponent that of the power law, whichever law is selected. Largest left out: relative error at the "
        "largest length of the law fitted to the others. AICc and BIC, above the best law's, for full rows, which are "
        "independent."
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
                _with_span(r.difference, r.difference_low, r.difference_high, percent) for r in each_row(data)
            ],
            "n": [f"{r.full_n} / {r.profile_n}" for r in each_row(data)],
            "tokens, full ÷ profile": data["processed_ratio"].map(number),
            "time, full ÷ profile": data["elapsed_ratio"].map(number),
        }
    )
    caption = (
        "Rollout device-seconds per trace by both methods, same environment and length; the difference is the "
        "geometric mean over pairs of one run and repeat, with its 95 % interval. The last columns: how many times as "
        "many tokens the full method puts through the model, and how many times as long it takes."
    )
    if apart := int(data["apart_n"].sum()):
        caption += (
            f" In {apart} pairs the profile was measured after the full rollouts of its repeat, not between their "
            "steps: there the machine's drift counts as difference."
        )
    return Table("agreement", "Full against profile", caption, _csv(data), shown)


def failures(setting: Setting) -> Table:
    """Rows that failed, and metrics that may not be used, each with its reason."""
    rows = setting.rows
    found = []
    for row in each_row(rows):
        where = (row.variant, row.phase, row.method, row.tokens)
        if row.status != "ok":
            found.append((*where, row.status, plain(row.reason)))
            continue
        if not plain(row.seconds_valid):
            found.append((*where, "seconds invalid", plain(row.seconds_reason)))
        if not plain(row.memory_valid) and row.method == "full":
            found.append((*where, "memory invalid", plain(row.memory_reason)))
    columns = ["variant", "phase", "method", "tokens", "what", "reason"]
    found.sort(key=lambda record: record[4].endswith("invalid"))
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
        "invalid seconds count only where a cell has no valid ones, invalid memory nowhere. "
        "Profiles measure neither memory nor energy."
    )
    full = rows[(rows["status"] == "ok") & (rows["method"] == "full")]
    unmetered = full[full["energy_joules"].isna()]
    if len(unmetered):
        reasons = ", ".join(str(reason) for reason in unmetered["energy_reason"].dropna().drop_duplicates())
        caption += f" Energy is missing in {len(unmetered)} of {len(full)} full repeats: {reasons}."
    return Table("validity", "What failed or may not be used", caption, _csv(grouped), shown)


def _labels(data: pd.DataFrame) -> list[str]:
    return [variant.label for variant in data["variant"]]


def _ordered(data: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """Environment, phase, method, length."""
    rank = {variant: i for i, variant in enumerate(setting.variants)}
    data = data.reset_index(drop=True)
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

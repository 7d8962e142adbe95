"""The first sentences of a report: what costs what at the largest length, whether it bends, and where it tips."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from reports.costs import months_frame
from reports.curves import Setting, each_row, grouped
from reports.drawing import short
from reports.figures import PHASE_NAMES, ratios
from reports.tables import number, percent, span

if TYPE_CHECKING:
    from scaling.laws import Fit, Job


@dataclass(slots=True)
class Headline:
    """Sentences for people, and the numbers in them for programs."""

    sentences: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


def headline(setting: Setting, job: Job) -> Headline:
    """What one setting's rows say; a setting without usable rows says so."""
    said = Headline(numbers={"setting": setting.label})
    if not setting.phases:
        said.sentences.append("No repeat finished with usable times, so there is nothing to compare; see validity.")
        return said
    if setting.values["engine"] == "simulated":
        said.sentences.append(
            f"Simulated on {setting.values['device']}: every token was stepped on a virtual clock and priced by the "
            "planner's roofline; nothing was measured, and repeats differ by nothing."
        )
    phase = setting.phases[0]
    _cost(setting, phase, said)
    _bend(setting, phase, said)
    _job(setting, job, said)
    _crossing(setting, phase, said)
    _doubt(setting, said)
    return said


def _cost(setting: Setting, phase: str, said: Headline) -> None:
    table = ratios(setting, phase)
    timed = setting.timed[setting.timed["phase"] == phase]
    if table.empty:
        tokens = int(timed["tokens"].max())
        for variant, rows in grouped(timed[timed["tokens"] == tokens], "variant"):
            mean = float(rows["device_seconds_per_trace"].mean())
            said.sentences.append(
                f"At {short(tokens)} thinking tokens {variant.label} costs {number(mean)} device-seconds a trace "
                f"({PHASE_NAMES[phase]}, n = {len(rows)})."
            )
        return
    said.numbers["ratios"] = []
    order = table.sort_values(["tokens", "method"], ascending=[True, False])  # full rather than profile
    largest = order.drop_duplicates("variant", keep="last")
    for row in each_row(largest):
        here = timed[(timed["tokens"] == row.tokens) & (timed["method"] == row.method)]
        mean = here.groupby("variant", sort=False)["device_seconds_per_trace"].mean()
        longcot = float(next(mean[v] for v in mean.index if v.is_longcot))
        other = float(mean[row.variant])
        band = f", 95 % interval of the ratio {span(row.low, row.high)}" if math.isfinite(row.low) else ""
        said.sentences.append(
            f"At {short(row.tokens)} thinking tokens LongCoT costs {number(row.ratio)} times what {row.variant.label} "
            f"costs: {number(longcot)} against {number(other)} device-seconds a trace "
            f"({PHASE_NAMES[phase]}, {row.method}{band}, {row.n} {'pair' if row.n == 1 else 'pairs'})."
        )
        said.numbers["ratios"].append(
            {
                "against": row.variant.label,
                "phase": phase,
                "method": row.method,
                "thinking_tokens": int(row.tokens),
                "longcot_device_seconds_per_trace": longcot,
                "device_seconds_per_trace": other,
                "ratio": float(row.ratio),
                "low": _finite(row.low),
                "high": _finite(row.high),
                "pairs": int(row.n),
            }
        )


def _bend(setting: Setting, phase: str, said: Headline) -> None:
    """Rests on full rows where there are any: they are independent, a profile's are not."""
    said.numbers["laws"] = []
    for variant in setting.variants:
        laws = setting.laws(variant, phase)
        full = [fit for fit in laws if fit.curve["method"] == "full"]
        if not laws:
            continue
        fit = (full or laws)[-1]
        if not math.isfinite(fit.curvature_share):
            continue
        band = fit.curvature_interval
        said.sentences.append(
            f"{variant.label}: {percent(fit.curvature_share)} of the cost at {short(fit.largest)} is curvature "
            f"({span(band.low, band.high, percent)}), {_verdict(fit)}; exponent {number(fit.exponent)} "
            f"({span(fit.exponent_interval.low, fit.exponent_interval.high)}; {fit.curve['method']} rows)."
        )
        said.numbers["laws"].append(
            {
                "environment": variant.label,
                "phase": phase,
                "method": fit.curve["method"],
                "law": fit.law,
                "thinking_tokens": fit.largest,
                "curvature_share": fit.curvature_share,
                "curvature_low": _finite(band.low),
                "curvature_high": _finite(band.high),
                "exponent": _finite(fit.exponent),
                "exponent_low": _finite(fit.exponent_interval.low),
                "exponent_high": _finite(fit.exponent_interval.high),
            }
        )


def _verdict(fit: Fit) -> str:
    band = fit.curvature_interval
    if not (math.isfinite(band.low) and math.isfinite(band.high)):
        return "but the rows cannot tell how certain that is"
    if band.low > 0:
        return "above zero: it bends upward"
    return "an interval that contains zero: no bend shown" if band.high >= 0 else "below zero: it bends downward"


def _job(setting: Setting, job: Job, said: Headline) -> None:
    """At the largest length where most environments were measured: for the first phase, and for all together."""
    table = months_frame(setting, job)
    measured = table[table["basis"].isin(["full", "profile"])]
    parts = []
    said.numbers["device_months"] = []
    for phases, rows in grouped(measured, "phases"):
        counts = rows.groupby("tokens").size()
        tokens = int(max(counts[counts == counts.max()].index))
        months = {row.variant.label: float(row.months) for row in each_row(rows[rows["tokens"] == tokens])}
        names = [PHASE_NAMES[phase] for phase in str(phases).split("+")]
        each = ", ".join(f"{label} {number(value)}" for label, value in months.items())
        parts.append(f"{each} ({' + '.join(names)} at {short(tokens)})")
        said.numbers["device_months"].append(
            {"phases": phases, "thinking_tokens": tokens, "job": asdict(job), "months": months}
        )
    if parts:
        said.sentences.append(
            f"In months of this device, {job.steps:,} steps × {job.prompts} prompts × {job.samples} traces would take: "
            f"{'; '.join(parts)}."
        )


def _crossing(setting: Setting, phase: str, said: Headline) -> None:
    from scaling.laws import crossover, settled

    growing = [law for v in setting.variants if v.is_longcot for law in setting.laws(v, phase)]
    for variant in setting.variants:
        laws = setting.laws(variant, phase)
        alike = [law for law in growing if laws and law.curve["method"] == laws[-1].curve["method"]]
        if variant.is_longcot or not alike:
            continue
        found = crossover(alike[-1], laws[-1])
        if found is None or not settled(alike[-1], laws[-1], found):
            continue
        cheaper = variant.label if found.cheaper == laws[-1].label else "LongCoT"
        if found.extrapolated:
            where = f"somewhere in {_tokens_span(found.low, found.high)}, beyond what was measured"
        else:
            where = f"{short(found.tokens)} ({_tokens_span(found.low, found.high)})"
        said.sentences.append(f"By their laws {cheaper} stays the cheaper of the two from {where} thinking tokens on.")
        said.numbers.setdefault("crossovers", []).append(
            {
                "against": variant.label,
                "cheaper": cheaper,
                "thinking_tokens": found.tokens,
                "low": found.low,
                "high": _finite(found.high),
                "extrapolated": found.extrapolated,
            }
        )


def _doubt(setting: Setting, said: Headline) -> None:
    """Rows that are used for want of better ones."""
    doubtful = setting.timed[~setting.timed["seconds_valid"].astype(bool)]
    said.numbers["doubtful_rows"] = len(doubtful)
    if len(doubtful):
        kinds = dict.fromkeys(str(reason).partition(":")[0] for reason in doubtful["seconds_reason"].dropna())
        reasons = ", ".join(kinds)
        said.sentences.append(
            f"Doubtful: {len(doubtful)} of the {len(setting.timed)} repeats behind these numbers have seconds that are "
            f"not valid ({reasons or 'no reason given'}), used because their cells have no better ones."
        )


def _tokens_span(low: float, high: float) -> str:
    return f"{short(low)} to {short(high)}" if math.isfinite(high) else f"{short(low)} or more"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

"""`scaling fit`: the cost laws of a run, where they cross, and what they say about a job."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from scaling.cli.console import print_json, warn
from scaling.errors import FitError, unknown
from scaling.lengths import format_tokens, parse_lengths
from scaling.results import Phase, join, newest_run, open_runs

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from scaling.laws import Crossover, Fit, Interval, Job, Prediction, Total

EXAMPLES = (
    "scaling fit                                                   # the newest run",
    "scaling fit runs/first --at 96k,1m",
    "scaling fit runs/first --phase rollout --steps 150 --json",
)
_ENVIRONMENT = (
    *("environment", "context_size", "state_size", "head", "carryover"),
    *("summary_size", "extensions", "cue_tokens", "concurrency_mean"),
)
_UNITS = {"a": "s", "b": "s/token", "c": "s/token²", "A": "s", "p": ""}
_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"), (1e-15, "f"))
_PLAIN_WIDTH = 240  # where stdout is no terminal: nothing wraps


def fit(
    run: Annotated[Path | None, typer.Argument(help="Directory of a run. Default: the newest under runs/.")] = None,
    at: Annotated[str, typer.Option(help="Thinking tokens to predict at, e.g. 96k,1m.")] = "96k,1m",
    phase: Annotated[
        list[str] | None, typer.Option(help="rollout, logprob, update, sync. Repeatable; all that were measured.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Policy updates of the job.")] = 1000,
    prompts: Annotated[int, typer.Option(help="Prompts a step.")] = 128,
    samples: Annotated[int, typer.Option(help="Traces a prompt.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Fit cost laws to a run: device-seconds a trace by thinking tokens, with 95 % intervals.

    Says how much of the cost bends, from which length one environment is cheaper, and what a training job takes.
    """
    lengths = parse_lengths(at)
    from scaling.api import resampler
    from scaling.laws import Job, fit_frame, totals

    job = Job(steps, prompts, samples)
    path = run or newest_run()
    stores = open_runs(path)
    frame = _chosen(join(stores), path, phase)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = fit_frame(frame, resampler(frame, stores))
    fits.sort(key=_order)
    sums = totals(fits)
    curves: list[Fit | Total] = [*fits, *sums]
    crossings = list(_crossings(curves))
    said = [f"{f.label} {_place(f)}: {remark}" for f in fits for remark in f.warnings]
    said += [str(warning.message) for warning in caught]
    said += [
        f"{c.label} {_place(c)}: {format_tokens(n)} is below its smallest measured length and is left out"
        for c in curves
        for n in lengths
        if n < c.smallest
    ]
    for remark in said:
        warn(remark)
    if json:
        print_json(_as_json(path, fits, sums, crossings, lengths, job, said))
    else:
        _show(fits, curves, crossings, lengths, job)


def _order(fit: Fit) -> tuple[int, bool, str, str]:
    curve = fit.curve
    phases: tuple[object, ...] = get_args(Phase)
    return phases.index(curve["phase"]), curve["environment"] != "longcot", fit.label, str(curve["method"])


def _chosen(frame: pd.DataFrame, path: Path, phases: Sequence[str] | None) -> pd.DataFrame:
    known = get_args(Phase)
    for phase in phases or ():
        if phase not in known:
            raise unknown("phase", phase, known)
    if frame.empty:
        raise FitError(f"{path} has no rows yet; measure them with `scaling run --resume --out {path}`")
    chosen = frame[frame["phase"].isin(phases)] if phases else frame
    if chosen.empty:
        measured = ", ".join(sorted(set(frame["phase"])))
        raise FitError(f"{path} has no rows of phase {' or '.join(phases or ())}; measured: {measured}")
    return chosen


def _crossings(curves: Sequence[Fit | Total]) -> Iterator[tuple[Fit | Total, Fit | Total, Crossover | None]]:
    """Every two environments that were measured alike, and where one becomes cheaper."""
    from scaling.laws import crossover

    for one, other in itertools.combinations(curves, 2):
        alike = [{k: v for k, v in c.curve.items() if k not in _ENVIRONMENT} for c in (one, other)]
        if one.label != other.label and alike[0] == alike[1]:
            yield one, other, crossover(one, other)


def _place(curve: Fit | Total) -> str:
    """Phase and method, as in `rollout (full)`; a total of both methods has none of its own."""
    method = curve.curve.get("method", "full and profile")
    return f"{curve.curve['phase']} ({method})"


# for people


def _show(
    fits: Sequence[Fit],
    curves: Sequence[Fit | Total],
    crossings: Sequence[tuple[Fit | Total, Fit | Total, Crossover | None]],
    lengths: Sequence[int],
    job: Job,
) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=_PLAIN_WIDTH)

    console.print(
        f"Device-seconds a trace at L thinking tokens, 95 % intervals in brackets: {_setting(fits)}\n", soft_wrap=True
    )
    table = _table(
        ["curve", "phase", "law", "parameters", "curvature share", "exponent", "fit error", "largest left out"],
    )
    for each in fits:
        table.add_row(
            _name(each, fits),
            _place(each),
            each.law,
            "\n".join(_parameter(each, name) for name in each.parameters),
            f"{_share(each)} at {_length(each.largest)}",
            _with(each.exponent, each.exponent_interval),
            f"{each.relative_rms:.1%}",
            "–" if each.leave_largest_out is None else f"{each.leave_largest_out:+.1%}",
        )
    console.print(table)
    console.print("\nlinear a + b·L   quadratic a + b·L + c·L²   throughput b·L + c·L²   power A·L^p", style="dim")
    console.print(
        "curvature share: c·L² of the quadratic law at the largest length; exponent: of the power law\n", style="dim"
    )
    for one, other, crossing in crossings:
        console.print(_sentence(one, other, crossing), soft_wrap=True)

    table = _table(
        ["curve", "phase", "L", "seconds a trace", "device-hours", "device-months", "device"],
    )
    marked = False
    for curve in curves:
        for tokens in lengths:
            if tokens < curve.smallest:
                continue
            seen = curve.predict(tokens)
            marked |= seen.extrapolated
            table.add_row(
                _name(curve, curves),
                _place(curve),
                format_tokens(tokens) + "*" * seen.extrapolated,
                *(_predicted(seen, times) for times in (1.0, job.gpu_hours(1.0), job.months(1.0))),
                str(curve.curve["device"]),
            )
    if table.row_count:
        console.print(
            f"\n{job.steps:,} steps × {job.prompts:,} prompts × {job.samples:,} samples = {job.traces:,} traces of "
            "L thinking tokens; a month is 730 hours\n"
        )
        console.print(table)
    if marked:
        console.print(
            "\n* beyond 1.5× the largest measured length: extrapolated, only the interval is given", style="dim"
        )


def _table(headings: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "parameters")
    return table


def _setting(fits: Sequence[Fit]) -> str:
    """What all curves share of how they were measured."""
    shared = {k: v for k, v in fits[0].curve.items() if all(f.curve[k] == v for f in fits)}
    words = [str(shared[k]) for k in ("model", "weight_dtype", "engine", "device") if k in shared]
    if shared.get("devices", 1) != 1:
        words.append(f"{shared['devices']} devices")
    for key in ("concurrency_limit", "traces", "prompt_tokens"):
        if key in shared:
            words.append(f"{key.replace('_', ' ')} {shared[key]}")
    return ", ".join(words)


def _name(curve: Fit | Total, curves: Sequence[Fit | Total]) -> str:
    """The label, with whatever tells it from curves of the same label, phase and method."""
    twins = [c for c in curves if (c.label, _place(c)) == (curve.label, _place(curve))]
    differing = {k: v for k, v in curve.curve.items() if any(c.curve.get(k) != v for c in twins)}
    return " ".join([curve.label, *(f"{k.replace('_', ' ')} {v}" for k, v in differing.items())])


def _length(tokens: float) -> str:
    """Tokens to two digits or so: 8k, 3.2k, 1.1m."""
    for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
        if tokens >= size:
            return f"{tokens / size:.1f}".removesuffix(".0") + unit
    return f"{tokens:.0f}"


def _number(value: float) -> str:
    """Three digits, and none of a large number's in exponents: 0.00123, 12.3, 1,230,000."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"


def _percent(value: float) -> str:
    return _number(value) if math.isinf(value) else f"{value:.1%}"


def _parameter(fit: Fit, name: str) -> str:
    """A parameter in the unit that suits it: `b = 593 [522, 666] µs/token`."""
    value, interval, unit = fit.parameters[name], fit.parameter_intervals[name], _UNITS[name]
    times, prefix = next(((t, p) for t, p in _PREFIXES if abs(value) >= t), (1.0, "")) if unit else (1.0, "")
    low, high = _number(interval.low / times), _number(interval.high / times)
    return f"{name} = {_number(value / times)} [{low}, {high}] {prefix}{unit}".rstrip()


def _with(value: float, interval: Interval) -> str:
    return f"{_number(value)} [{_number(interval.low)}, {_number(interval.high)}]"


def _share(fit: Fit) -> str:
    if math.isnan(fit.curvature_share):
        return "unknown"
    interval = fit.curvature_interval
    return f"{_percent(fit.curvature_share)} [{_percent(interval.low)}, {_percent(interval.high)}]"


def _predicted(seen: Prediction, times: float) -> str:
    low, value, high = (_number(x * times) for x in (seen.low, seen.seconds, seen.high))
    return f"{low} – {high}" if seen.extrapolated else f"{value} [{low}, {high}]"


def _sentence(one: Fit | Total, other: Fit | Total, crossing: Crossover | None) -> str:
    from scaling.laws import settled

    cheaper, dearer = _ranked(one, other, crossing)
    if not settled(one, other, crossing):
        return f"{_place(one)}: which of {one.label} and {other.label} is cheaper is within the rows' scatter"
    if crossing is None:
        start = max(one.smallest, other.smallest)
        return f"{_place(one)}: {cheaper} is cheaper than {dearer} at every length from {_length(start)} on"
    high = _length(crossing.high) if math.isfinite(crossing.high) else "∞"
    interval = f"[{_length(crossing.low)}, {high}]"
    found = interval if crossing.extrapolated else f"{_length(crossing.tokens)} {interval}"
    beyond = ", extrapolated" if crossing.extrapolated else ""
    return f"{_place(one)}: {cheaper} is cheaper than {dearer} from {found} thinking tokens on{beyond}"


def _ranked(one: Fit | Total, other: Fit | Total, crossing: Crossover | None) -> tuple[str, str]:
    """Labels of the two, the one that is cheaper in the end first."""
    largest = max(one.largest, other.largest)
    first = crossing.cheaper == one.label if crossing else one.predict(largest).seconds < other.predict(largest).seconds
    return (one.label, other.label) if first else (other.label, one.label)


# for programs


def _as_json(
    path: Path,
    fits: Sequence[Fit],
    sums: Sequence[Total],
    crossings: Sequence[tuple[Fit | Total, Fit | Total, Crossover | None]],
    lengths: Sequence[int],
    job: Job,
    said: Sequence[str],
) -> dict[str, Any]:
    return {
        "run": path,
        "job": {"steps": job.steps, "prompts": job.prompts, "samples": job.samples, "traces": job.traces},
        "curves": [_fit_json(each) | {"predictions": _predictions(each, lengths, job)} for each in fits],
        "totals": [
            {
                "label": each.label,
                "curve": each.curve,
                "phases": each.phases,
                "predictions": _predictions(each, lengths, job),
            }
            for each in sums
        ],
        "crossovers": [_crossing_json(*each) for each in crossings],
        "warnings": list(said),
    }


def _fit_json(fit: Fit) -> dict[str, Any]:
    from scaling.laws import LAWS

    return {
        "label": fit.label,
        "curve": fit.curve,
        "law": fit.law,
        "formula": LAWS[fit.law].formula,
        "parameters": {n: _estimate_json(v, fit.parameter_intervals[n]) for n, v in fit.parameters.items()},
        "tokens": fit.tokens,
        "seconds": fit.seconds,
        "curvature_share": _estimate_json(fit.curvature_share, fit.curvature_interval),
        "exponent": _estimate_json(fit.exponent, fit.exponent_interval),
        "relative_rms": fit.relative_rms,
        "leave_largest_out": fit.leave_largest_out,
        "aicc": fit.aicc,
        "bic": fit.bic,
        "warnings": fit.warnings,
    }


def _predictions(curve: Fit | Total, lengths: Sequence[int], job: Job) -> list[dict[str, Any]]:
    """Device-seconds a trace, device-hours and device-months of the job; only intervals where extrapolated."""
    found = []
    for tokens in lengths:
        if tokens < curve.smallest:
            continue
        seen = curve.predict(tokens)
        entry: dict[str, Any] = {"tokens": tokens, "extrapolated": seen.extrapolated}
        for name, times in (
            ("device_seconds_per_trace", 1.0),
            ("device_hours", job.gpu_hours(1.0)),
            ("device_months", job.months(1.0)),
        ):
            entry[name] = {"estimate": seen.seconds * times, **_bounds(seen.low * times, seen.high * times)}
        found.append(entry)
    return found


def _crossing_json(one: Fit | Total, other: Fit | Total, crossing: Crossover | None) -> dict[str, Any]:
    from scaling.laws import settled

    cheaper, dearer = _ranked(one, other, crossing)
    entry: dict[str, Any] = {
        "phase": one.curve["phase"],
        "method": one.curve.get("method"),
        "cheaper": cheaper,
        "dearer": dearer,
        "settled": settled(one, other, crossing),
        "tokens": None,
    }
    if crossing is not None:
        entry |= {
            "tokens": crossing.tokens,
            **_bounds(crossing.low, crossing.high),
            "extrapolated": crossing.extrapolated,
        }
    return entry


def _estimate_json(value: float, interval: Interval) -> dict[str, float | None]:
    return {"estimate": value if math.isfinite(value) else None, **_bounds(interval.low, interval.high)}


def _bounds(low: float, high: float) -> dict[str, float | None]:
    """A 95 % interval; null where it is unbounded or unknown."""
    return {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}

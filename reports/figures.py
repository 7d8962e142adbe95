"""The figures of a report, each from one setting's rows and laws; None where the rows have nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.analytic import analytic, beside, smooth
from reports.curves import Setting, Variant, grouped, paired_ratio, points
from reports.drawing import LIGHT, Drawing, Sheet, label_ends, sheet, short, token_axis, value_axis

if TYPE_CHECKING:
    from scaling.laws import Fit

MARKS = "Filled marks are sampled to the end (full), open marks are integrated from timed steps (profile)."
PHASE_NAMES = {"rollout": "rollout", "logprob": "log-probabilities", "update": "update", "sync": "weight transfer"}
_PHASE_COLUMNS = ("variant", "phase", "tokens", "mean")
_SHADES = (1.0, 0.6, 0.28)
_THIN: dict[str, Any] = {"linewidth": 0.9, "dashes": (2, 2)}
_ANALYTIC = "Thin dashes are analytic: the roofline of the machine as probed before measuring, fitted to nothing. "
_REACH = 1.5  # laws are drawn this far beyond their largest measured length


def cost(setting: Setting, phase: str, log: bool = True) -> Drawing | None:
    """Device-seconds a trace by thinking length in one phase, with its laws and their 95 % bands."""
    table = points(setting.timed[setting.timed["phase"] == phase], "device_seconds_per_trace")
    if table["tokens"].nunique() < 2:
        return None
    with sheet() as page:
        ends: dict[Variant, tuple[float, float]] = {}
        for variant in setting.variants:
            laws = setting.laws(variant, phase)
            for fit in laws:
                ends[variant] = _law(page, variant, fit, extend=log and fit is laws[-1])
        _marks(page, table)
        said = _roofline(page, setting, phase, table, extend=log)
        for variant, line in grouped(table, "variant"):
            last = line.iloc[-1]
            if variant not in ends or ends[variant][0] < last["tokens"]:
                ends[variant] = (last["tokens"], last["mean"])
        token_axis(page.axes, table["tokens"], log)
        value_axis(page.axes, "device-seconds per trace", log)
        _method_key(page, table, analytic=said)
        label_ends(page, [(x, y, v.label, LIGHT[v.role]) for v, (x, y) in ends.items()])
        axes = "Both axes are logarithmic: a straight line of slope 1 is a cost proportional to length."
        beyond = ", dashed beyond what was measured" if log else ""
        caption = (
            f"Device-seconds per trace of the {PHASE_NAMES[phase]} phase by thinking length. {_sample(table)} "
            f"Lines are fitted laws{beyond}; shades are their 95 % intervals. {_ANALYTIC if said else ''}"
            + (axes if log else "Both axes are linear, which shows the bend.")
        )
        kind = "log" if log else "linear"
        title = f"Cost of {PHASE_NAMES[phase]}, {'logarithmic' if log else 'linear'} axes"
        data = _data(table.assign(analytic=beside(setting, table)), "device_seconds_per_trace")
        return page.drawing(_name(setting, f"cost-{phase}-{kind}"), title, caption, data)


def ratio(setting: Setting, phase: str) -> Drawing | None:
    """How many times LongCoT costs what each other environment costs, by length, with 95 % intervals."""
    table = ratios(setting, phase)
    if table["tokens"].nunique() < 2:
        return None
    with sheet() as page:
        page.axes.axhline(1, color=LIGHT["muted"], linewidth=1)
        ends = []
        order = table.sort_values(["method", "tokens"], ascending=[False, True])
        for (variant, method), line in grouped(order, ["variant", "method"]):
            colour = LIGHT[variant.role]
            spread = line.dropna(subset=["low", "high"])
            page.axes.vlines(spread["tokens"], spread["low"], spread["high"], color=colour, linewidth=1.2)
            page.axes.plot(line["tokens"], line["ratio"], linestyle=variant.dash, **_mark(variant, method))
            ends.append((line["tokens"].iloc[-1], line["ratio"].iloc[-1], f"vs {variant.label}", colour, variant))
        farthest = {end[4]: end for end in sorted(ends, key=lambda end: end[0])}
        token_axis(page.axes, table["tokens"])
        other = "Delethink" if {v.key[0] for v in table["variant"]} == {"delethink"} else "other"
        value_axis(page.axes, f"LongCoT ÷ {other} cost", log=False)
        _method_key(page, table)
        label_ends(page, [end[:4] for end in farthest.values()])
        caption = (
            "How many times LongCoT's device-seconds per trace are those of the other environment "
            f"({PHASE_NAMES[phase]}); above 1, LongCoT costs more. Each point pairs repeats of one run and method, "
            f"{_range(table['n'])} pairs; bars are 95 % intervals (Student's t on log-ratios). {MARKS}"
        )
        columns = ["tokens", "method", "ratio", "low", "high", "n"]
        data = table.assign(against=[v.label for v in table["variant"]])[["against", *columns]]
        return page.drawing(_name(setting, f"ratio-{phase}"), "LongCoT against chunked thinking", caption, data)


def ratios(setting: Setting, phase: str) -> pd.DataFrame:
    """LongCoT ÷ each other environment in one phase: variant, method, tokens, ratio, low, high, n (pairs)."""
    rows = setting.timed[setting.timed["phase"] == phase]
    whole = rows[[v.is_longcot for v in rows["variant"]]]
    found = []
    for (variant, method, tokens), below in grouped(rows, ["variant", "method", "tokens"]):
        above = whole[(whole["method"] == method) & (whole["tokens"] == tokens)]
        paired = None if variant.is_longcot else paired_ratio(above, below, "device_seconds_per_trace")
        if paired:
            found.append((variant, method, tokens, *paired))
    columns = ["variant", "method", "tokens", "ratio", "low", "high", "n"]
    return pd.DataFrame(found, columns=columns).sort_values("tokens", kind="stable").reset_index(drop=True)


def throughput(setting: Setting) -> Drawing | None:
    """Thinking tokens a second by length."""
    rows = setting.timed[(setting.timed["phase"] == "rollout") & setting.timed["tokens_per_second"].notna()]
    return _by_length(
        setting, points(rows, "tokens_per_second"), "throughput", "Rollout throughput", "thinking tokens per second",
        "Thinking tokens of all traces per second of rollout, by thinking length", "tokens_per_second",
    )  # fmt: skip


def kv_memory(setting: Setting) -> Drawing | None:
    """Peak KV bytes by length."""
    rows = setting.rows[(setting.rows["status"] == "ok") & (setting.rows["phase"] == "rollout")]
    rows = rows[rows["peak_kv_bytes"].notna()]
    return _memory(setting, rows, "peak_kv_bytes", "kv-memory", "Peak KV memory", "peak KV cache")


def peak_memory(setting: Setting) -> Drawing | None:
    """Peak memory of the process or device by length, where it was measured."""
    rows = setting.rows[(setting.rows["status"] == "ok") & (setting.rows["phase"] == "rollout")]
    rows = rows[rows["peak_memory_bytes"].notna() & rows["memory_valid"].fillna(False).astype(bool)]
    how = " and ".join(str(m) for m in dict.fromkeys(rows["memory_method"].dropna()))
    return _memory(
        setting, rows, "peak_memory_bytes", "peak-memory", "Peak memory", f"peak memory{f' ({how})' if how else ''}"
    )


def phases(setting: Setting, table: pd.DataFrame) -> Drawing | None:
    """Device-seconds a trace by phase at the largest length where every environment has every phase.

    `table`: variant, phase, tokens, mean; one row each.
    """
    names = [phase for phase in setting.phases if phase in set(table["phase"])]
    seconds = {(v, p, n): float(mean) for v, p, n, mean in zip(*(table[c] for c in _PHASE_COLUMNS), strict=True)}
    complete = {
        tokens: [v for v in setting.variants if all((v, phase, tokens) in seconds for phase in names)]
        for tokens in sorted(set(table["tokens"]))
    }
    most = max(map(len, complete.values()), default=0)
    if len(names) < 2 or most == 0:
        return None
    tokens = max(tokens for tokens, variants in complete.items() if len(variants) == most)
    shown = complete[tokens]
    with sheet(4.9, 1.4 + 0.6 * len(shown)) as page:
        peak = max(sum(seconds[v, phase, tokens] for phase in names) for v in shown)
        for row, variant in enumerate(shown):
            left = 0.0
            for i, phase in enumerate(names):
                width = seconds[variant, phase, tokens]
                page.axes.barh(
                    row, width, left=left, height=0.55, color=LIGHT[variant.role], alpha=_SHADES[i],
                    edgecolor=LIGHT["paper"], linewidth=1,
                )  # fmt: skip
                left += width
            page.axes.text(left, row, f" {left:,.3g}", va="center", color=LIGHT["ink"])
        page.axes.set_yticks(range(len(shown)), [v.label for v in shown])
        for tick, variant in zip(page.axes.get_yticklabels(), shown, strict=True):
            tick.set_color(LIGHT[variant.role])
            tick.set_fontweight("bold")
        page.axes.tick_params(axis="y", length=0)
        page.axes.invert_yaxis()
        page.axes.grid(visible=False, axis="y")
        page.axes.set_xlim(0, peak * 1.14)
        page.axes.set_xlabel(f"device-seconds per trace at {short(tokens)} thinking tokens")
        page.axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        shades = [
            Patch(facecolor=LIGHT["muted"], alpha=_SHADES[i], label=PHASE_NAMES[name]) for i, name in enumerate(names)
        ]
        _key(page, shades)
        caption = (
            f"Device-seconds per trace by phase at {short(tokens)} thinking tokens, the largest length at which all "
            "of these phases were measured. Means of the repeats."
        )
        data = table[table["tokens"] == tokens].assign(environment=lambda t: [v.label for v in t["variant"]])
        data = data.rename(columns={"mean": "device_seconds_per_trace"})
        columns = ["environment", "phase", "tokens", "device_seconds_per_trace"]
        return page.drawing(_name(setting, "phases"), "Cost by phase", caption, data[columns])


def curvature(setting: Setting) -> Drawing | None:
    """Curvature share of each law at its own largest length, with interval."""
    fits = [
        (variant, fit)
        for variant in setting.variants
        for phase in setting.phases
        for fit in setting.laws(variant, phase)
        if np.isfinite([fit.curvature_share, fit.curvature_interval.low, fit.curvature_interval.high]).all()
    ]
    if not fits:
        return None
    with sheet(4.9, 0.8 + 0.46 * len(fits)) as page:
        page.axes.axvline(0, color=LIGHT["muted"], linewidth=1)
        labels = []
        for row, (variant, fit) in enumerate(fits):
            share, band = fit.curvature_share, fit.curvature_interval
            page.axes.hlines(row, 100 * band.low, 100 * band.high, color=LIGHT[variant.role], linewidth=1.8)
            page.axes.plot(100 * share, row, **_mark(variant, str(fit.curve["method"])))
            labels.append(f"{variant.label}\n{PHASE_NAMES[str(fit.curve['phase'])]} to {short(fit.largest)}")
        page.axes.set_yticks(range(len(fits)), labels)
        for tick, (variant, _) in zip(page.axes.get_yticklabels(), fits, strict=True):
            tick.set_color(LIGHT[variant.role])
            tick.set_fontsize(9)
        page.axes.tick_params(axis="y", length=0)
        page.axes.set_ylim(len(fits) - 0.5, -0.5)
        page.axes.grid(visible=False, axis="y")
        page.axes.set_xlabel("curvature share at the largest length (%)")
        caption = (
            "Curvature share cL²/T(L) at each curve's largest measured length, from the quadratic law, with its 95 % "
            f"interval: above zero, cost bends upward; one that contains zero is consistent with a line. {MARKS}"
        )
        data = pd.DataFrame(
            [
                (v.label, f.curve["phase"], f.curve["method"], f.largest, f.curvature_share, b.low, b.high)
                for v, f in fits
                for b in [f.curvature_interval]
            ],
            columns=["environment", "phase", "method", "tokens", "curvature_share", "low", "high"],
        )
        return page.drawing(_name(setting, "curvature"), "Curvature", caption, data)


def _law(page: Sheet, variant: Variant, fit: Fit, extend: bool) -> tuple[float, float]:
    """Draws a law and its band, and returns where the line ends."""
    colour = LIGHT[variant.role]
    reach = fit.largest * (_REACH if extend else 1)
    measured = np.geomspace(fit.smallest, fit.largest, 60)
    beyond = np.geomspace(fit.largest, reach, 12) if extend else measured[-1:]
    predictions = [fit.predict(float(x)) for x in (*measured, *beyond[1:])]
    x = [p.tokens for p in predictions]
    bounded = np.isfinite([p.high for p in predictions])
    page.axes.fill_between(
        x, [p.low for p in predictions], [p.high if np.isfinite(p.high) else p.seconds for p in predictions],
        where=bounded.tolist(), color=colour, alpha=0.17, linewidth=0,
    )  # fmt: skip
    y = [p.seconds for p in predictions]
    n = len(measured)
    page.axes.plot(x[:n], y[:n], color=colour, linewidth=1.6)
    page.axes.plot(x[n - 1 :], y[n - 1 :], color=colour, linewidth=1.4, dashes=(4, 2.5))
    return x[-1], y[-1]


def _roofline(page: Sheet, setting: Setting, phase: str, table: pd.DataFrame, extend: bool) -> bool:
    """Draws what the roofline says of each environment, at the measured lengths and as far as the laws; whether any."""
    drawn = False
    for variant, line in grouped(table, "variant"):
        first, last = int(line["tokens"].min()), int(line["tokens"].max())
        between = smooth(variant, first, round(_REACH * last) if extend else last)
        lengths = sorted({*(int(tokens) for tokens in line["tokens"]), *between})
        seconds = analytic(setting, variant, phase, lengths)
        if np.isfinite(seconds).all():
            page.axes.plot(lengths, seconds, color=LIGHT[variant.role], **_THIN)
            drawn = True
    return drawn


def _marks(page: Sheet, table: pd.DataFrame, joined: bool = False) -> None:
    """Means as marks, with the range of the repeats."""
    order = table.sort_values(["method", "tokens"], ascending=[False, True])
    for (variant, method), line in grouped(order, ["variant", "method"]):
        colour = LIGHT[variant.role]
        page.axes.vlines(line["tokens"], line["low"], line["high"], color=colour, linewidth=1.2)
        dash = variant.dash if joined else "none"
        page.axes.plot(line["tokens"], line["mean"], linestyle=dash, **_mark(variant, method))


def _mark(variant: Variant, method: str) -> dict[str, Any]:
    """Full is filled; profile is open and larger, so that it stays visible around a full mark."""
    colour = LIGHT[variant.role]
    looks = {"markersize": 4.5, "markerfacecolor": colour} if method == "full" else {"markersize": 7.5}
    looks = {"markerfacecolor": LIGHT["paper"], "markeredgewidth": 1.3, "marker": variant.marker, **looks}
    return {"color": colour, "clip_on": False, "zorder": 3, **looks}


def _by_length(
    setting: Setting, table: pd.DataFrame, stem: str, title: str, axis: str, what: str, metric: str
) -> Drawing | None:
    """Marks joined by lines; the value axis is logarithmic where values differ enough to need it."""
    if table["tokens"].nunique() < 2:
        return None
    with sheet() as page:
        _marks(page, table, joined=True)
        ends = {
            variant: (line["tokens"].iloc[-1], line["mean"].iloc[-1]) for variant, line in grouped(table, "variant")
        }
        token_axis(page.axes, table["tokens"])
        value_axis(page.axes, axis, log=table["mean"].max() > 4 * table["mean"].min())
        _method_key(page, table)
        label_ends(page, [(x, y, v.label, LIGHT[v.role]) for v, (x, y) in ends.items()])
        return page.drawing(_name(setting, stem), title, f"{what}. {_sample(table)}", _data(table, metric))


def _memory(setting: Setting, rows: pd.DataFrame, metric: str, stem: str, title: str, what: str) -> Drawing | None:
    peak = float(rows[metric].max()) if len(rows) else 0.0
    unit, size = next(
        ((u, s) for u, s in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)) if peak >= s), ("bytes", 1)
    )
    table = points(rows, metric)
    table[["mean", "low", "high"]] /= size
    concurrency = setting.values["concurrency_limit"]
    return _by_length(
        setting, table, stem, title, f"{title[:1].lower()}{title[1:]} ({unit})",
        f"{what[:1].upper()}{what[1:]} of up to {concurrency} traces at once during rollout, by thinking length",
        f"{metric.removesuffix('_bytes')}_{unit.lower()}",
    )  # fmt: skip


def _method_key(page: Sheet, table: pd.DataFrame, analytic: bool = False) -> None:
    """Says what filled and open marks mean, where both are there, and the thin line, where there is one."""
    handles = []
    if table["method"].nunique() > 1:
        handles += [
            Line2D([], [], linestyle="", marker="o", color=LIGHT["muted"], markerfacecolor=fill, label=label)
            for label, fill in (("full", LIGHT["muted"]), ("profile", LIGHT["paper"]))
        ]
    if analytic:
        handles.append(Line2D([], [], color=LIGHT["muted"], label="analytic, from the probe", **_THIN))
    if handles:
        _key(page, handles)


def _key(page: Sheet, handles: Sequence[Artist]) -> None:
    """One line above the axes."""
    page.figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, handlelength=1.6,
                       handletextpad=0.5, columnspacing=1.4, borderpad=0, labelcolor=LIGHT["muted"])  # fmt: skip


def _sample(table: pd.DataFrame) -> str:
    methods = " and ".join(dict.fromkeys(table["method"]))
    return (
        f"Marks are means of {_range(table['n'])} repeats ({methods}), bars their range. "
        + (MARKS if table["method"].nunique() > 1 else "")
    ).strip()


def _range(counts: pd.Series[int]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low}–{high}"


def _data(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What a figure shows, under names with units."""
    named = table.assign(environment=[v.label for v in table["variant"]])
    named = named.rename(columns={"tokens": "thinking_tokens", "mean": f"{metric}_mean", "low": f"{metric}_min",
                                  "high": f"{metric}_max", "analytic": f"{metric}_analytic"})  # fmt: skip
    return named.drop(columns="variant")[["environment", *(c for c in named if c not in {"environment", "variant"})]]


def _name(setting: Setting, stem: str) -> str:
    return f"{stem}-{setting.slug}" if setting.slug else stem

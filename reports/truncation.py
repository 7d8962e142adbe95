"""The section on thoughts cut short: accuracy by where they are cut, with the answer forced and without."""

from __future__ import annotations

import pandas as pd

from reports.arms import Record, percent_axis, styles, with_interval
from reports.chapter import Section
from reports.drawing import LIGHT, Drawing, sheet, short, token_axis
from reports.tables import Table
from scaling.text import show


def section(prefix: str, record: Record) -> Section:
    """The section of one run: `record` as `studies.truncation.analyse` makes it."""
    drawing = _curves(prefix, record)
    drawings = [] if drawing is None else [drawing]
    return Section(
        prefix + "truncation", "Cut short, and asked at once", sentences(record), drawings, [_table(prefix, record)]
    )


def sentences(record: Record) -> list[str]:
    """What the record says, a line an arm: what forcing brings where it brings most or costs most."""
    said = []
    for arm in dict.fromkeys(point["arm"] for point in record["points"]):
        mine = [point for point in record["points"] if point["arm"] == arm]
        most = max(mine, key=lambda point: abs(point["difference"]["value"]))
        failed = sum(point["failed"] for point in mine)
        left_out = f" {failed} requests failed and are left out." if failed else ""
        said.append(
            f"{arm}, cut at {short(most['budget'])} thinking tokens: {with_interval(most['forced'])} % right with the "
            f"answer forced, {with_interval(most['trimmed'])} % without; the difference is "
            f"{with_interval(most['difference'])} points.{left_out}"
        )
    return said


def _flat(record: Record) -> pd.DataFrame:
    """One row an arm and budget, for files."""
    rows = []
    for point in record["points"]:
        row = {key: point[key] for key in ("arm", "budget", "traces", "failed", "cut_share")}
        for name in ("forced", "trimmed", "difference"):
            row |= {f"{name}_{end}": point[name][end] for end in ("value", "low", "high")}
        rows.append(row | {"problems": point["forced"]["problems"], "method": point["difference"]["method"]})
    return pd.DataFrame(rows)


def _how(record: Record) -> str:
    cues = ", ".join(repr(show(cue)) for cue in record["cues"])
    return f"Forced: cut, then {cues} and {record['answer_tokens']} tokens of the model."


def _curves(prefix: str, record: Record) -> Drawing | None:
    """None with fewer than two budgets."""
    data = _flat(record)
    if data["budget"].nunique() < 2:
        return None
    arms = list(dict.fromkeys(data["arm"]))
    look = styles([{"label": arm, "environment": "longcot" if arm.endswith("longcot") else ""} for arm in arms])
    with sheet(5.6, 3.8) as page:
        for arm in arms:
            line = data[data["arm"] == arm].sort_values("budget")
            colour = LIGHT[look[arm].role]
            for name, dash, marker in (("forced", "-", "o"), ("trimmed", ":", "s")):
                page.axes.plot(
                    line["budget"], line[f"{name}_value"], label=f"{arm}, {name}", color=colour, linestyle=dash,
                    marker=marker, markersize=3,
                )  # fmt: skip
                page.axes.fill_between(
                    line["budget"], line[f"{name}_low"], line[f"{name}_high"], color=colour, alpha=0.1, linewidth=0
                )
        token_axis(page.axes, data["budget"])
        page.axes.set_xlabel("thinking tokens before the cut")
        percent_axis(page.axes, "accuracy")
        page.axes.legend(frameon=False, fontsize=7)
        ways = "; ".join(dict.fromkeys(point["forced"]["method"] for point in record["points"]))
        caption = (
            f"Accuracy of the same traces cut at each budget, n = {data['traces'].min()} to {data['traces'].max()} "
            f"traces of {data['problems'].max()} problems an arm. {_how(record)} Shades: {ways}."
        )
        return page.drawing(prefix + "truncation", "Forced and trimmed answers", caption, data)


def _table(prefix: str, record: Record) -> Table:
    points = record["points"]
    shown = pd.DataFrame(
        {
            "arm": [point["arm"] for point in points],
            "cut at": [short(point["budget"]) for point in points],
            "traces": [str(point["traces"]) for point in points],
            "failed": [str(point["failed"]) for point in points],
            "forced, %": [with_interval(point["forced"]) for point in points],
            "trimmed, %": [with_interval(point["trimmed"]) for point in points],
            "difference, points": [with_interval(point["difference"]) for point in points],
        }
    )
    ways = "; ".join(dict.fromkeys(point["difference"]["method"] for point in points))
    caption = (
        f"Percent right. {_how(record)} Traces that ended within the budget keep their own answer. Differences: {ways}."
    )
    return Table(prefix + "truncation", "Forced and trimmed answers", caption, _flat(record), shown)

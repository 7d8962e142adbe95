"""The section on stages and cycles of thoughts: how long each is, in right traces and in wrong ones."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from reports.arms import Record, styles
from reports.chapter import Section
from reports.drawing import LIGHT, Drawing, sheet
from reports.tables import NONE, Table, number


def section(prefix: str, record: Record) -> Section:
    """The section of one run: `record` as `studies.stages.summarise` makes it."""
    drawing = _cycles(prefix, record)
    drawings = [] if drawing is None else [drawing]
    return Section(prefix + "stages", "Stages and cycles", sentences(record), drawings, [_stages(prefix, record)])


def sentences(record: Record) -> list[str]:
    """What the record says, a line an arm."""
    said = []
    for arm in record["arms"]:
        firsts = [p for p in record["cycles"] if (p["arm"], p["outcome"], p["cycle"]) == (arm["arm"], "all", 1)]
        cycle = f"the first cycle has {_mean(firsts[0])} {record['unit']}" if firsts else "no cycle was found"
        said.append(
            f"{arm['arm']}: {cycle}; {arm['one_stage_alone']} of {arm['traces']} traces have no more than one stage by "
            "these rules."
        )
    return said


def _mean(point: Record) -> str:
    if point["low"] is None:
        return number(point["value"])
    return f"{number(point['value'])} [{number(point['low'])}, {number(point['high'])}]"


def _stages(prefix: str, record: Record) -> Table:
    data = pd.DataFrame(record["stages"])
    shown = []
    for arm in record["arms"]:
        for stage in dict.fromkeys(data[data["arm"] == arm["arm"]]["stage"]):
            mine = {p["outcome"]: p for p in record["stages"] if (p["arm"], p["stage"]) == (arm["arm"], stage)}
            lengths = {o: _mean(mine[o]) if o in mine else NONE for o in ("all", "right", "wrong")}
            share = f"{100 * mine['all']['share']:.3g}"
            shown.append({"arm": arm["arm"], "stage": stage, "have it, %": share, **lengths})
    caption = (
        f"Mean {record['unit']} of each stage in the traces that have it, with intervals in brackets where there are "
        f"five problems or more ({record['method']}). Stages begin at cue words, which tell them only roughly."
    )
    return Table(prefix + "stages", "Length of stages", caption, data, pd.DataFrame(shown))


def _cycles(prefix: str, record: Record) -> Drawing | None:
    """None with fewer than two cycles."""
    data = pd.DataFrame(record["cycles"])
    if not len(data) or data["cycle"].max() < 2:
        return None
    arms = [arm["arm"] for arm in record["arms"]]
    look = styles([{"label": arm, "environment": "longcot" if arm.endswith("longcot") else ""} for arm in arms])
    with sheet(5.6, 3.8) as page:
        for arm in arms:
            for outcome, dash, marker in (("right", "-", "o"), ("wrong", ":", "s")):
                line = data[(data["arm"] == arm) & (data["outcome"] == outcome)].sort_values("cycle")
                if not len(line):
                    continue
                colour = LIGHT[look[arm].role]
                page.axes.plot(
                    line["cycle"], line["value"], label=f"{arm}, {outcome}", color=colour, linestyle=dash,
                    marker=marker, markersize=3,
                )  # fmt: skip
                band = line.dropna(subset=["low"])
                page.axes.fill_between(
                    band["cycle"], band["low"].astype(float), band["high"].astype(float), color=colour, alpha=0.1,
                    linewidth=0,
                )  # fmt: skip
        page.axes.set_xlabel("cycle")
        page.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        page.axes.set_ylim(0, None)
        page.axes.set_ylabel(f"mean {record['unit']}")
        if page.axes.get_legend_handles_labels()[0]:
            page.axes.legend(frameon=False, fontsize=7)
        caption = (
            f"Mean length of each cycle, over the traces that come so far (1 to {int(data['traces'].max())}, fewer "
            f"with every cycle; the table's file has each n). Shades: {record['method']}."
        )
        return page.drawing(prefix + "cycles", "Length by cycle", caption, data)

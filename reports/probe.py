"""The chapter on the zero-shot Markovian probe: what chunked thinking keeps of a model that was not trained for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports.arms import Record, accuracy_by_budget, percent_axis, said_methods, slug, styles, with_interval
from reports.chapter import Chapter, Section
from reports.drawing import LIGHT, Drawing, sheet, short, token_axis
from reports.tables import NONE, Table, number

KINDS = ("both", "only_first", "only_second", "neither")


def probe_chapter(run: str, record: Record) -> Chapter:
    """The chapter of one run: `record` as `studies.markovian_probe.analyse` makes it."""
    prefix = f"{slug(run)}-"
    ways = said_methods(record["accuracy"])
    shown: list[tuple[str, str, list[Drawing | Table | None]]] = [
        (
            "accuracy",
            "Accuracy by thinking budget",
            [
                accuracy_by_budget(prefix + "accuracy", record["arms"], record["accuracy"], ways),
                _accuracy(prefix, record, ways),
                _tasks(prefix, record),
            ],
        ),
        ("traces", "Ends, lengths and chunks", [_traces(prefix, record)]),
        ("coverage", "Problems solved by majority vote", [_overlap(prefix, record), _coverage(prefix, record)]),
        ("pass", "pass@k", [_passes(prefix, record)]),
        ("ablations", "State and context", [*_ablations(prefix, record)]),
        ("published", "Published", [_published(prefix, record)]),
    ]
    sections = []
    for anchor, title, items in shown:
        drawings = [item for item in items if isinstance(item, Drawing)]
        tables = [item for item in items if isinstance(item, Table)]
        if drawings or tables:
            sections.append(Section(prefix + anchor, title, [], drawings, tables))
    title = f"Markovian probe of {record['model']}, {run}"
    return Chapter(title, sentences(record), dict(record), sections)


def sentences(record: Record) -> list[str]:
    """The verdicts, then each arm in a line, then what could not be compared."""
    said = [verdict["text"] for verdict in record["verdicts"]]
    last = {point["arm"]: point for point in record["accuracy"] if point["budget"] == record["budget"]}
    for arm in record["arms"]:
        if arm["label"] not in last:
            said.append(f"{arm['label']}: every one of {arm['traces']} traces failed.")
            continue
        point = last[arm["label"]]
        said.append(
            f"{arm['label']}: {with_interval(point)} % right at {short(record['budget'])} thinking tokens, "
            f"{with_interval(arm['ended'])} % ended by the model (n = {point['samples']} traces of "
            f"{point['problems']} problems)."
        )
        if arm["failed"]:
            said.append(f"{arm['label']}: {arm['failed']} of {arm['traces']} traces failed and are left out.")
    for verdict in record["verdicts"]:
        if verdict["unpaired"]:
            said.append(
                f"{verdict['arm']}: {verdict['unpaired']} problems have traces in only one of the two arms, and are "
                "not compared."
            )
    return said


def _accuracy(prefix: str, record: Record, ways: str) -> Table:
    data = pd.DataFrame(record["accuracy"])
    rows = []
    for arm in record["arms"]:
        line = {point["budget"]: point for point in record["accuracy"] if point["arm"] == arm["label"]}
        cells = {short(b): with_interval(line[b]) if b in line else NONE for b in sorted(data["budget"].unique())}
        rows.append({"arm": arm["label"], "traces": str(arm["traces"]), "failed": str(arm["failed"]), **cells})
    caption = (
        "Percent right (avg@k) with 95 % intervals, by thinking budget in tokens: the same traces cut off there and "
        f"judged anew; failed traces are left out. {ways}"
    )
    return Table(prefix + "accuracy", "Accuracy by budget", caption, data, pd.DataFrame(rows))


def _tasks(prefix: str, record: Record) -> Table | None:
    if len(record["tasks"]) < 2:
        return None
    points = record["by_task"]
    points = sorted(points, key=lambda point: record["tasks"].index(point["task"]))
    rows = [{"task": each["task"], "arm": each["arm"], "right, %": with_interval(each)} for each in points]
    caption = (
        f"Percent right with 95 % intervals, task by task, at {short(record['budget'])} tokens. {said_methods(points)}"
    )
    return Table(prefix + "tasks", "Accuracy by task", caption, pd.DataFrame(points), pd.DataFrame(rows))


def _traces(prefix: str, record: Record) -> Table:
    arms = record["arms"]
    data = pd.DataFrame(
        [
            {key: value for key, value in arm.items() if not isinstance(value, dict)}
            | {
                f"{name}_{end}": None if arm[name] is None else arm[name][end]
                for name in ("ended", "chunked")
                for end in ("value", "low", "high")
            }
            for arm in arms
        ]
    )
    shown = pd.DataFrame(
        {
            "arm": [arm["label"] for arm in arms],
            "may think": [short(arm["budget"]) for arm in arms],
            "mean tokens": [number(arm["mean_thinking_tokens"]) for arm in arms],
            "mean chunks": [number(arm["mean_chunks"]) for arm in arms],
            "ended, %": [NONE if arm["ended"] is None else with_interval(arm["ended"]) for arm in arms],
            "several chunks, %": [NONE if arm["chunked"] is None else with_interval(arm["chunked"]) for arm in arms],
        }
    )
    ways = said_methods([arm[name] for arm in arms for name in ("ended", "chunked") if arm[name] is not None])
    caption = (
        "Of whole traces, tokens being thinking tokens: what they may think and do on average, the share that the "
        f"model ended itself, and the share that came to a second chunk. {ways}"
    )
    return Table(prefix + "traces", "Ends, lengths and chunks", caption, data, shown)


def _counts(record: Record) -> pd.DataFrame:
    rows = [
        {"arm": one["arm"], "against": one["against"], **{kind: len(one[kind]) for kind in KINDS}}
        for one in record["coverage"]
    ]
    return pd.DataFrame(rows)


def _vote_caption(record: Record) -> str:
    arms = [arm for arm in record["arms"] if arm["traces"]]
    fewest, most = (pick(arm["traces"] // max(arm["problems"], 1) for arm in arms) for pick in (min, max))
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return (
        f"A problem is solved where a majority vote of all its samples ({each} a problem and arm) scores more than "
        "half; votes of whole traces, without intervals."
    )


def _overlap(prefix: str, record: Record) -> Drawing | None:
    data = _counts(record)
    if not len(data):
        return None
    names = ("both", "only this arm", "only LongCoT", "neither")
    colours = ("third", "delethink", "longcot", "rule")
    with sheet(6.4, 1.3 + 0.42 * len(data)) as page:
        left = pd.Series(0.0, index=data.index)
        for kind, name, role in zip(KINDS, names, colours, strict=True):
            page.axes.barh(data.index, data[kind], left=left, color=LIGHT[role], label=name, height=0.6)
            left += data[kind]
        page.axes.set_yticks(data.index, data["arm"])
        page.axes.invert_yaxis()
        page.axes.grid(axis="y", visible=False)
        page.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        page.axes.set_xlabel("problems")
        page.axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0))
        caption = (
            f"Which of {int(data[list(KINDS)].sum(axis=1).max()):,} problems each Delethink arm and LongCoT "
            f"solve. {_vote_caption(record)}"
        )
        return page.drawing(prefix + "coverage", "Overlap of solved problems", caption, data)


def _coverage(prefix: str, record: Record) -> Table | None:
    data = _counts(record)
    if not len(data):
        return None
    shown = data.astype(str).rename(
        columns={"only_first": "only the arm", "only_second": "only the other", "neither": "neither"}
    )
    listed = pd.DataFrame(
        [
            {"arm": one["arm"], "against": one["against"], "solved_by": kind, "problem": problem}
            for one in record["coverage"]
            for kind in KINDS
            for problem in one[kind]
        ]
    )
    return Table(prefix + "coverage", "Solved problems", f"Problems. {_vote_caption(record)}", listed, shown)


def _passes(prefix: str, record: Record) -> Table | None:
    points = record["pass"]
    if not points:
        return None
    ks = sorted({point["k"] for point in points})
    rows = []
    for label in dict.fromkeys(point["arm"] for point in points):
        cells = {point["k"]: with_interval(point) for point in points if point["arm"] == label}
        rows.append({"arm": label, **{f"k = {k}": cells.get(k, NONE) for k in ks}})
    caption = (
        f"Percent of problems that one of k traces solves, at {short(record['budget'])} tokens, with 95 % intervals. "
        f"{said_methods([point for point in points if point['k'] == ks[-1]])}"
    )
    return Table(prefix + "pass", "pass@k", caption, pd.DataFrame(points), pd.DataFrame(rows))


def _ablations(prefix: str, record: Record) -> list[Drawing | Table]:
    made: list[Drawing | Table] = []
    for name, column, label in (
        ("state", "state_size", "state size m, tokens"),
        ("context", "context_size", "context size C, tokens (m = C/2)"),
    ):
        points = record[name]
        if points:
            made += [_swept(prefix, record, name, column, label), _sizes(prefix, record, name)]
    return made


def _swept(prefix: str, record: Record, name: str, column: str, label: str) -> Drawing:
    points = record[name]
    data = _flat(points)
    look = styles(record["arms"])
    base = next(
        (
            point
            for point in record["accuracy"]
            if point["budget"] == record["budget"] and look[point["arm"]].role == "longcot"
        ),
        None,
    )
    with sheet(5.6, 3.8) as page:
        contexts = sorted({point["context_size"] for point in points}) if name == "state" else [None]
        for context, role in zip(contexts, itertools.cycle(("delethink", "third", "fourth", "fifth")), strict=False):
            line = (data if context is None else data[data["context_size"] == context]).sort_values(column)
            of = "" if context is None else f" at C={short(context)}"
            _line(page.axes, line, column, "value", LIGHT[role], "-", f"accuracy{of}")
            _line(page.axes, line, column, "ended_value", LIGHT[role], ":", f"ended{of}")
        if base is not None:
            page.axes.axhline(base["value"], color=LIGHT["longcot"], label="LongCoT's accuracy", zorder=1.5)
            page.axes.axhspan(base["low"], base["high"], color=LIGHT["longcot"], alpha=0.1, linewidth=0)
        token_axis(page.axes, data[column])
        page.axes.set_xlabel(label)
        percent_axis(page.axes, "share of traces")
        page.axes.legend(frameon=False, fontsize=8)
        caption = (
            f"Accuracy at {short(record['budget'])} thinking tokens, and the share of traces that the model ended "
            f"itself, by {name} size, over {data['problems'].max():,} problems and "
            f"{data['samples'].min():,} to {data['samples'].max():,} traces an arm; shades are "
            f"95 % intervals. {_carried(points)}{said_methods(points)}"
        )
        return page.drawing(f"{prefix}{name}", f"Accuracy by {name} size", caption, data)


def _line(axes: Axes, line: pd.DataFrame, column: str, value: str, colour: str, dash: str, label: str) -> None:
    axes.plot(line[column], line[value], color=colour, linestyle=dash, marker="o", markersize=4, label=label)
    low, high = (value.replace("value", end) for end in ("low", "high"))
    axes.fill_between(line[column], line[low], line[high], color=colour, alpha=0.12, linewidth=0)


def _carried(points: Sequence[Record]) -> str:
    """What is to know of states that are larger than what a later chunk thinks anew."""
    if all(2 * point["state_size"] <= point["context_size"] for point in points):
        return ""
    return (
        "Where m is more than half of C, only the second chunk is given m tokens: later ones get all of the last "
        "response, which is C − m (Algorithm 1). "
    )


def _flat(points: Sequence[Record]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {key: value for key, value in point.items() if key != "ended"}
            | {f"ended_{end}": point["ended"][end] for end in ("value", "low", "high")}
            for point in points
        ]
    )


def _sizes(prefix: str, record: Record, name: str) -> Table:
    points = record[name]
    shown = pd.DataFrame(
        {
            "C": [short(point["context_size"]) for point in points],
            "m": [short(point["state_size"]) for point in points],
            "I": [str(point["iterations"]) for point in points],
            "right, %": [with_interval(point) for point in points],
            "ended, %": [with_interval(point["ended"]) for point in points],
        }
    )
    caption = (
        f"By {name} size at {short(record['budget'])} thinking tokens, with 95 % intervals. I: most chunks of a trace. "
        f"{_carried(points)}{said_methods(points)}"
    )
    return Table(f"{prefix}{name}", f"By {name} size", caption, _flat(points), shown)


def _published(prefix: str, record: Record) -> Table | None:
    found: list[dict[str, Any]] = [dict(one) for one in record["published"]]
    if not found:
        return None
    data = pd.DataFrame(found)
    return Table(prefix + "published", "What others found", "Published, not measured here.", data, data)

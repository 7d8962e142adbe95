"""The chapter on what traces look like: lengths by outcome, the sweet spot, repetition, and chunk boundaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from reports.arms import Record, Style, percent_axis, share, slug, styles
from reports.chapter import Chapter, Section
from reports.drawing import LIGHT, Drawing, sheet
from reports.tables import NONE, Table, number

METHOD = (
    "Intervals by bootstrap over problems, nominally of 95 % (in simulation about 85 with 5 problems, 90 with 12, 93 "
    "with 30); none with fewer than 5, or where problems do not differ."
)
MOST_CHUNKS = 24
"""Chunk indices that are drawn; the table has all."""


def thoughts_chapter(run: str, record: Record) -> Chapter:
    """The chapter of one run: `record` as `studies.thoughts.analyse` makes it."""
    prefix = f"{slug(run)}-thoughts-"
    arms, look = record["arms"], styles(record["arms"])
    unit = f"{record['ngram']}-grams of {record['unit']}"
    shown: list[tuple[str, str, list[Drawing | Table | None]]] = [
        ("lengths", "Length of right and wrong traces", [_lengths(prefix, arms)]),
        ("sweet-spot", "Sweet spot", [_sweet_spot(prefix, look, arms), _bins(prefix, arms)]),
        ("rumination", "Repetition", [_by_chunk(prefix, look, arms, unit), _rumination(prefix, arms, unit)]),
        ("boundaries", "Do chunk boundaries cause repetition?", [_boundaries(prefix, arms, record["ngram"])]),
    ]
    sections = []
    for anchor, title, items in shown:
        drawings = [item for item in items if isinstance(item, Drawing)]
        tables = [item for item in items if isinstance(item, Table)]
        if drawings or tables:
            sections.append(Section(prefix + anchor, title, [], drawings, tables))
    return Chapter(f"Thoughts, {run}", sentences(record), dict(record), sections)


def sentences(record: Record) -> list[str]:
    """What the record says of each arm, a line each."""
    said = []
    for arm in record["arms"]:
        right, wrong = arm["lengths"]["right"], arm["lengths"]["wrong"]
        if right is None and wrong is None:
            said.append(f"{arm['label']}: every one of {arm['traces']} traces failed.")
            continue
        means = " and ".join(
            f"{name} ones {number(of['mean'])} (n = {of['traces']})"
            for name, of in (("right", right), ("wrong", wrong))
            if of is not None
        )
        line = f"{arm['label']}: mean tokens of {means}"
        if (apart := arm["difference"]) is not None:
            line += (
                f"; within {apart['problems']} problems that have both, right ones are "
                f"{_told(apart, number)} tokens apart from wrong ones"
            )
        failed = f" {arm['failed']} of {arm['traces']} traces failed and are left out." if arm["failed"] else ""
        said.append(f"{line}.{failed}")
        if (bound := arm["boundary"]) is not None:
            line = (
                f"{arm['label']}: after {bound['boundaries']:,} chunk boundaries {_told(bound['after'], share)} % of "
                f"{record['ngram']}-grams were seen before, {_told(bound['before'], share)} % just ahead of them"
            )
            said.append(f"{line}.")
    return said


def _told(estimate: Record | None, show: Callable[[float], str]) -> str:
    """A value with its interval where it has one."""
    if estimate is None:
        return NONE
    if estimate["low"] is None:
        return show(estimate["value"])
    return f"{show(estimate['value'])} [{show(estimate['low'])}, {show(estimate['high'])}]"


def _flat(estimate: Record | None, name: str) -> dict[str, Any]:
    ends = ("value", "low", "high")
    return {f"{name}_{end}": None if estimate is None else estimate[end] for end in ends}


def _lengths(prefix: str, arms: Sequence[Record]) -> Table:
    rows, data = [], []
    for arm in arms:
        for outcome, found in arm["lengths"].items():
            if found is None:
                continue
            data.append({"arm": arm["label"], "outcome": outcome, **found, **_flat(arm["difference"], "difference")})
            rows.append(
                {
                    "arm": arm["label"],
                    "outcome": outcome,
                    "traces": f"{found['traces']:,}",
                    "mean tokens": number(found["mean"]),
                    "10th to 90th percentile": f"{number(found['p10'])} to {number(found['p90'])}",
                    "median": number(found["median"]),
                    "right − wrong": _told(arm["difference"], number) if outcome == "right" else "",
                }
            )
    caption = (
        "Thinking tokens of traces by outcome; a trace that its budget ended, mostly a wrong one, counts with what it "
        "had thought by then, so such means are too small. Right − wrong: mean within problems that have both, each "
        f"problem counting alike, so that hard problems do not make it. {METHOD}"
    )
    return Table(prefix + "lengths", "Length by outcome", caption, pd.DataFrame(data), pd.DataFrame(rows))


def _binned(arms: Sequence[Record]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm["label"], "bin": place, **(found or {"value": None, "low": None, "high": None, "problems": 0})}
            for arm in arms
            for place, found in enumerate(arm["sweet_spot"]["bins"], 1)
        ]
    )


def _sweet_spot(prefix: str, look: Mapping[str, Style], arms: Sequence[Record]) -> Drawing | None:
    data = _binned(arms)
    if data["value"].notna().sum() < 2:
        return None
    with sheet(5.6, 3.8) as page:
        for label, style in look.items():
            line = data[(data["arm"] == label) & data["value"].notna()].astype({"value": float})
            page.axes.plot(line["bin"], line["value"], marker="o", markersize=4, label=label, **style.line)
            banded = line.dropna(subset=["low", "high"])
            page.axes.fill_between(
                banded["bin"], banded["low"].astype(float), banded["high"].astype(float), alpha=0.1, linewidth=0,
                color=LIGHT[style.role],
            )  # fmt: skip
        page.axes.set_xticks(range(1, 6))
        page.axes.set_xlabel("length within a problem's traces, shortest to longest fifth")
        percent_axis(page.axes, "accuracy")
        page.axes.legend(frameon=False, fontsize=7)
        caption = (
            "Accuracy by length, min–max normalised within each problem and put into five bins; a bin is the mean over "
            f"the problems that have a trace in it (Thoughtology §4.1). Shades: {METHOD[0].lower()}{METHOD[1:]}"
        )
        return page.drawing(prefix + "sweet-spot", "Accuracy by length within a problem", caption, data)


def _bins(prefix: str, arms: Sequence[Record]) -> Table:
    rows = []
    for arm in arms:
        spot = arm["sweet_spot"]
        cells = {
            f"fifth {place}": NONE if found is None else f"{_told(found, share)} (n = {found['problems']})"
            for place, found in enumerate(spot["bins"], 1)
        }
        facts = {"problems": str(spot["problems"]), "of one length": str(spot["equal"])}
        rows.append({"arm": arm["label"], **facts, **cells})
    caption = f"Percent right, n problems with a trace in the bin; problems of one length are left out. {METHOD}"
    return Table(
        prefix + "sweet-spot", "Accuracy by length within a problem", caption, _binned(arms), pd.DataFrame(rows)
    )


def _chunked(arms: Sequence[Record]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm["label"], "chunk": found["chunk"], "traces": found["traces"], **found["repeated"]}
            for arm in arms
            for found in arm["by_chunk"]
        ],
        columns=["arm", "chunk", "traces", "value", "low", "high", "problems"],
    )


def _by_chunk(prefix: str, look: Mapping[str, Style], arms: Sequence[Record], unit: str) -> Drawing | None:
    data = _chunked(arms)
    several = {arm["label"] for arm in arms if len(arm["by_chunk"]) > 1}
    if not several:
        return None
    with sheet(5.6, 3.8) as page:
        for label in several & look.keys():
            line = data[(data["arm"] == label) & (data["chunk"] <= MOST_CHUNKS)]
            page.axes.plot(line["chunk"], line["value"], marker="o", markersize=3, label=label, **look[label].line)
        page.axes.set_xlabel("chunk of the trace")
        percent_axis(page.axes, "repeated")
        page.axes.legend(frameon=False, fontsize=7)
        caption = (
            f"Share of {unit} within a chunk that stood earlier in the same chunk, by the chunk's index, over the "
            "traces that come so far: later chunks are those of longer traces."
        )
        return page.drawing(prefix + "chunks", "Repetition by chunk", caption, data)


def _rumination(prefix: str, arms: Sequence[Record], unit: str) -> Table:
    rows, data = [], []
    for arm in arms:
        for kind in ("outcome", "difficulty"):
            for group in arm[f"by_{kind}"]:
                if not group["traces"]:
                    continue
                named = {"arm": arm["label"], "by": kind, "group": group["group"], "traces": group["traces"]}
                data.append({**named, **_flat(group["repeated"], "repeated"), **_flat(group["entropy"], "entropy")})
                rows.append(
                    {
                        **named,
                        "traces": f"{group['traces']:,}",
                        "repeated, %": _told(group["repeated"], share),
                        "entropy": _told(group["entropy"], number),
                    }
                )
    caption = (
        f"Repeated: share of {unit} of a trace that stood earlier in it. Entropy: of how often each unit is used, by "
        f"its maximum; 1 where all are used equally often (after Thoughtology §3.3). {METHOD}"
    )
    return Table(
        prefix + "rumination", "Repetition by outcome and difficulty", caption, pd.DataFrame(data), pd.DataFrame(rows)
    )


def _boundaries(prefix: str, arms: Sequence[Record], ngram: int) -> Table | None:
    rows, data = [], []
    for arm in arms:
        if (bound := arm["boundary"]) is None:
            continue
        sides = {name: bound[name] for name in ("before", "after", "difference", "excess")}
        sides["longcot"] = None if bound["longcot"] is None else bound["longcot"]["difference"]
        facts = {"arm": arm["label"], "boundaries": bound["boundaries"], "window": bound["window"]}
        data.append(facts | {key: value for name, of in sides.items() for key, value in _flat(of, name).items()})
        rows.append(
            {
                "arm": arm["label"],
                "boundaries": f"{bound['boundaries']:,}",
                "before, %": _told(sides["before"], share),
                "after, %": _told(sides["after"], share),
                "after − before": _told(sides["difference"], share),
                "LongCoT there": _told(sides["longcot"], share),
                "excess": _told(sides["excess"], share),
            }
        )
    if not rows:
        return None
    caption = (
        f"Share of {ngram}-grams of response tokens that stood earlier in the trace, in the window just before and "
        "just after chunk boundaries; what is carried over and read again does not count, nor does what stands "
        "astride. LongCoT there: after − before at the same depths of LongCoT's traces of the same model, where "
        "there is no boundary. Excess: what the arm has beyond that, mean over problems with both; it is no effect of "
        "boundaries alone, since LongCoT's traces that reach such depths are those that did not end before, often "
        f"wrong ones. In % and points. {METHOD}"
    )
    return Table(
        prefix + "boundaries", "Repetition at chunk boundaries", caption, pd.DataFrame(data), pd.DataFrame(rows)
    )

"""The chapter on thinking longer at test time: accuracy by budget and by price, trained × sampled, many in parallel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.ticker import NullFormatter

from reports.arms import (
    Record,
    Style,
    accuracy_by_budget,
    percent_axis,
    said_methods,
    share,
    slug,
    styles,
    with_interval,
)
from reports.chapter import Chapter, Section
from reports.drawing import LIGHT, Drawing, sheet, short
from reports.tables import NONE, Table, number


def test_time_chapter(run: str, record: Record) -> Chapter:
    """The chapter of one run: `record` as `scaling test-time` keeps and prints it."""
    prefix = f"{slug(run)}-"
    shown = record["seeds"] or record
    arms, points = shown["arms"], shown["accuracy"]
    look = styles(arms)
    sections = [
        _section(
            prefix + "accuracy",
            "Accuracy by thinking budget",
            [
                accuracy_by_budget(prefix + "accuracy", arms, points, said_methods(points)),
                _accuracy(prefix, shown),
                _accuracy(prefix + "each-", record) if record["seeds"] else None,
            ],
        ),
        _section(prefix + "transfer", "Trained in × sampled in", [_transfer(prefix, shown)]),
        _section(prefix + "cost", "Accuracy by price", [_front(prefix, look, shown["costs"]), _prices(prefix, shown)]),
        _section(
            prefix + "parallel", "Several traces in parallel", [_parallel(prefix, look, shown), _votes(prefix, shown)]
        ),
    ]
    title = f"Test-time scaling, {run}"
    return Chapter(title, sentences(record), dict(record), [each for each in sections if each is not None])


def sentences(record: Record) -> list[str]:
    """What the record says, a line each, worst news not last."""
    said = []
    shown = record["seeds"] or record
    for arm in shown["arms"]:
        line = [point for point in shown["accuracy"] if point["arm"] == arm["label"]]
        if not line:
            said.append(f"{arm['label']}: every one of {arm['traces']} traces failed.")
            continue
        first, last = line[0], line[-1]
        over = f", brackets span {arm['checkpoints']} checkpoints" if arm.get("checkpoints", 1) > 1 else ""
        failed = f" {arm['failed']} of {arm['traces']} traces failed and are left out." if arm["failed"] else ""
        said.append(
            f"{arm['label']}: {with_interval(last)} % right at {short(last['budget'])} thinking tokens, "
            f"{with_interval(first)} % at {short(first['budget'])} (n = {last['samples']} traces of "
            f"{last['problems']} problems{over}).{failed}"
        )
    for made in () if record["seeds"] else record["comparisons"]:
        ratio = made["ratio"]
        kept = "has no share that can be told" if ratio["value"] is None else f"keeps {with_interval(ratio)} %"
        said.append(
            f"{made['arm']} {kept} of {made['against']} at {short(made['budget'])} thinking tokens; the difference is "
            f"{with_interval(made['difference'])} points."
        )
    return said


def _section(anchor: str, title: str, shown: Sequence[Drawing | Table | None]) -> Section | None:
    drawings = [item for item in shown if isinstance(item, Drawing)]
    tables = [item for item in shown if isinstance(item, Table)]
    return Section(anchor, title, [], drawings, tables) if drawings or tables else None


def _brackets(record: Record) -> str:
    """What stands in brackets beside the values of a record."""
    many = any(arm.get("checkpoints", 1) > 1 for arm in record["arms"])
    return "the lowest and the highest checkpoint in brackets" if many else "95 % intervals in brackets"


def _accuracy(prefix: str, record: Record) -> Table:
    data = pd.DataFrame(record["accuracy"])
    budgets = sorted(data["budget"].unique())
    rows = []
    for arm in record["arms"]:
        line = {point["budget"]: point for point in record["accuracy"] if point["arm"] == arm["label"]}
        cells = {short(b): with_interval(line[b]) if b in line else NONE for b in budgets}
        mean = NONE if arm["mean_thinking_tokens"] is None else number(arm["mean_thinking_tokens"])
        facts = {"failed": str(arm["failed"]), "mean tokens": mean, "ended, %": share(arm["ended_share"])}
        rows.append({"arm": arm["label"], "traces": str(arm["traces"]), **facts, **cells})
    caption = (
        f"Percent right with {_brackets(record)}, by budget: the same traces cut off there and judged anew. Ended: "
        f"traces that the model ended itself. {said_methods(record['accuracy'])}"
    )
    return Table(prefix + "accuracy", "Accuracy by budget", caption, data, pd.DataFrame(rows))


def _transfer(prefix: str, record: Record) -> Table | None:
    data = pd.DataFrame(record["transfer"])
    if not len(data):
        return None
    budgets = sorted(data["budget"].unique())
    rows = []
    for (trained, environment, arm), _ in data.groupby(["trained", "environment", "arm"], sort=False):
        mine = [point for point in record["transfer"] if point["arm"] == arm]
        cells = {int(point["budget"]): with_interval(point) for point in mine}
        named = {"trained in": str(trained), "sampled in": str(environment), "arm": str(arm)}
        rows.append({**named, **{short(b): cells.get(int(b), NONE) for b in budgets}})
    caption = f"Percent right with {_brackets(record)}, by thinking budget, where each was trained and sampled."
    return Table(prefix + "transfer", "Trained in × sampled in", caption, data, pd.DataFrame(rows))


def _front(prefix: str, look: Mapping[str, Style], costs: Sequence[Record]) -> Drawing | None:
    if not costs:
        return None
    data = pd.DataFrame([{**{k: v for k, v in p.items() if k != "price"}, **_price(p)} for p in costs])
    with sheet(5.6, 3.8) as page:
        for label, style in look.items():
            line = data[data["arm"] == label].sort_values("device_seconds")
            page.axes.plot(line["device_seconds"], line["value"], marker="o", markersize=3, label=label, **style.line)
        front = data[data["on_front"]].sort_values("device_seconds")
        page.axes.plot(
            front["device_seconds"], front["value"], color=LIGHT["muted"], linewidth=5, alpha=0.25, zorder=0,
            solid_capstyle="round", label="Pareto front",
        )  # fmt: skip
        page.axes.set_xscale("log")
        page.axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        page.axes.xaxis.set_minor_formatter(NullFormatter())
        page.axes.set_xlabel("device-seconds per trace")
        percent_axis(page.axes, "accuracy")
        page.axes.legend(frameon=False, fontsize=8)
        caption = (
            "Accuracy by what a trace costs when it is cut off at each budget, one point a budget. On the wide line "
            f"nothing is both cheaper and as right. Costs: {'; '.join(dict.fromkeys(data['price_method']))}."
        )
        return page.drawing(prefix + "front", "Accuracy by price", caption, data)


def _price(point: Record) -> dict[str, Any]:
    price = point["price"]
    return {
        "device_seconds": price["device_seconds"],
        "energy_joules": price["energy_joules"],
        "money": price["money"],
        "price_method": price["method"],
    }


def _prices(prefix: str, record: Record) -> Table | None:
    if not record["costs"]:
        return None
    data = pd.DataFrame(
        [{"arm": p["arm"], "budget": p["budget"], "value": p["value"], **_price(p)} for p in record["costs"]]
    )
    shown = pd.DataFrame(
        {
            "arm": data["arm"],
            "budget": data["budget"].map(short),
            "right, %": [with_interval(point) for point in record["costs"]],
            "mean tokens": [number(point["mean_tokens"]) for point in record["costs"]],
            "device-s / trace": data["device_seconds"].map(number),
            "joules / trace": data["energy_joules"].map(number),
            "money / trace": data["money"].map(number),
            "on the front": ["yes" if point["on_front"] else "" for point in record["costs"]],
        }
    )
    caption = f"What a trace costs when cut off at a budget. {'; '.join(dict.fromkeys(data['price_method']))}."
    return Table(prefix + "prices", "Accuracy and price", caption, data, shown)


def _parallel(prefix: str, look: Mapping[str, Style], record: Record) -> Drawing | None:
    data = pd.DataFrame(
        [
            {"arm": p["arm"], "k": p["k"], "tokens": p["tokens"], "rule": rule, **p[rule]}
            for p in record["parallel"]
            for rule in ("pass", "majority")
        ]
    )
    if not len(data) or data["k"].max() < 2:
        return None
    with sheet(5.6, 3.8) as page:
        for label, style in look.items():
            for rule, marker in (("pass", "^"), ("majority", "s")):
                line = data[(data["arm"] == label) & (data["rule"] == rule)].sort_values("tokens")
                name = f"{label}, {'pass@k' if rule == 'pass' else 'maj@k'}"
                page.axes.plot(line["tokens"], line["value"], marker=marker, markersize=4, label=name, **style.line)
        page.axes.set_xscale("log", base=2)
        page.axes.xaxis.set_major_formatter(lambda value, _: short(value))
        page.axes.set_xlabel("thinking tokens of k traces together")
        percent_axis(page.axes, "solved")
        page.axes.legend(frameon=False, fontsize=7)
        ways = said_methods([point[rule] for point in record["parallel"] for rule in ("pass", "majority")])
        caption = (
            "Problems solved by one of k traces (pass@k, unbiased) and by the majority of k (maj@k), by the tokens "
            f"that k traces think, k = 1 to {int(data['k'].max())}. {ways}"
        )
        return page.drawing(prefix + "parallel", "Several traces in parallel", caption, data)


def _votes(prefix: str, record: Record) -> Table | None:
    if not record["parallel"]:
        return None
    flat = [
        {"arm": p["arm"], "k": p["k"], "tokens": p["tokens"]}
        | {f"{rule}_{end}": p[rule][end] for rule in ("pass", "majority") for end in ("value", "low", "high")}
        for p in record["parallel"]
    ]
    shown = pd.DataFrame(
        {
            "arm": [p["arm"] for p in record["parallel"]],
            "k": [str(p["k"]) for p in record["parallel"]],
            "tokens of k": [number(p["tokens"]) for p in record["parallel"]],
            "pass@k, %": [with_interval(p["pass"]) for p in record["parallel"]],
            "maj@k, %": [with_interval(p["majority"]) for p in record["parallel"]],
        }
    )
    caption = f"Percent of problems with {_brackets(record)}."
    return Table(prefix + "parallel", "pass@k and maj@k", caption, pd.DataFrame(flat), shown)

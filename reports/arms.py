"""How the arms of a study are told apart in pictures, and the picture all studies share: accuracy by budget."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from reports.chapter import Section
from reports.drawing import LIGHT, Drawing, sheet, short, token_axis
from reports.tables import NONE, Table, number

Record = Mapping[str, Any]

_ROLES = ("delethink", "third", "fourth")
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True)
class Style:
    """`role` is a colour of `drawing.THEME`."""

    role: str
    dash: str

    @property
    def line(self) -> dict[str, Any]:
        return {"color": LIGHT[self.role], "linestyle": self.dash}


def styles(arms: Sequence[Record]) -> dict[str, Style]:
    """By the arm's label: LongCoT in its own colour, others in turn; a colour that comes again has another dash."""
    roles = itertools.cycle(_ROLES)
    used: dict[str, int] = {}
    found = {}
    for arm in arms:
        role = "longcot" if arm["environment"] == "longcot" else next(roles)
        found[arm["label"]] = Style(role, _DASHES[used.get(role, 0) % len(_DASHES)])
        used[role] = used.get(role, 0) + 1
    return found


def slug(text: str) -> str:
    """Text as part of a file's name or of an anchor."""
    return re.sub(r"[^0-9a-z]+", "-", text.lower()).strip("-") or "study"


def share(value: float | None) -> str:
    """A share as a percentage to a tenth, without its sign: 97.3; – for none."""
    return "–" if value is None else f"{100 * value:.3g}".replace("-", "−")


def with_interval(estimate: Record) -> str:
    """`97.3 [93, 100]`, in percent."""
    high = "∞" if estimate["high"] is None else share(estimate["high"])
    return f"{share(estimate['value'])} [{share(estimate['low'])}, {high}]"


def percent_axis(axes: Axes, label: str) -> None:
    axes.set_ylim(0, None)
    top = min(1.02, max(axes.get_ylim()[1], 0.05))
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    axes.set_ylabel(f"{label}, %")


def accuracy_by_budget(name: str, arms: Sequence[Record], points: Sequence[Record], methods: str) -> Drawing | None:
    """Accuracy of each arm by thinking budget with bands of 95 %; None with fewer than two budgets.

    `points`: one record an arm and budget, with `arm`, `budget`, `value`, `low`, `high`.
    """
    data = pd.DataFrame(points)
    if not len(data) or data["budget"].nunique() < 2:
        return None
    look = styles(arms)
    with sheet(5.6, 3.8) as page:
        for label, style in look.items():
            line = data[data["arm"] == label].sort_values("budget")
            if not len(line):
                continue
            page.axes.plot(line["budget"], line["value"], label=label, marker="o", markersize=3, **style.line)
            page.axes.fill_between(
                line["budget"], line["low"], line["high"], alpha=0.12, linewidth=0, color=LIGHT[style.role]
            )
        token_axis(page.axes, data["budget"])
        page.axes.set_xlabel("thinking budget, tokens (traces cut off there)")
        percent_axis(page.axes, "accuracy")
        page.axes.legend(frameon=False, fontsize=8)
        least, most = int(data["samples"].min()), int(data["samples"].max())
        traces = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        caption = (
            f"Accuracy (avg@k) by thinking budget up to {short(int(data['budget'].max()))} tokens, from the same "
            f"traces cut off at each budget, over {int(data['problems'].max()):,} problems and {traces} traces an arm. "
            f"{methods}"
        )
        return page.drawing(name, "Accuracy by thinking budget", caption, data)


def said_methods(points: Sequence[Record]) -> str:
    """How the intervals were made, each way once."""
    ways = dict.fromkeys(str(point["method"]) for point in points)
    return "Shades and brackets: " + "; ".join(ways) + "." if ways else ""


def sampling_section(prefix: str, measured: Sequence[Record]) -> Section:
    """What sampling each arm took: `measured` as `studies.arm_costs.measured` tells it."""
    data = pd.DataFrame(measured)
    shown = pd.DataFrame(
        {
            "arm": data["arm"],
            "traces": data["traces"].astype(str),
            "device-s / trace": data["device_seconds_per_trace"].map(number),
            "tokens / s": data["tokens_per_second"].map(number),
            "at once": data["concurrency_mean"].map(number),
            "doubtful": [one["reason"] or "" for one in measured],
        }
    )
    devices = " and ".join(dict.fromkeys(data["device"]))
    caption = (
        f"Measured on {devices}: seconds in which the engine worked on an arm's traces, times devices, by trace; "
        f"{NONE} where the arm was not sampled in one go. Arms have traces of different lengths, which the laws of "
        "measured runs do not."
    )
    return Section(
        prefix + "sampling",
        "What sampling took",
        [],
        [],
        [Table(prefix + "sampling", "Measured", caption, data, shown)],
    )

"""A drawing: one picture as SVG for light pages, dark pages and inline use, as PNG, and as the numbers it shows."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import offset_copy

THEME = {  # role: (light, dark); colours after Okabe and Ito, deepened or lifted to 4.5:1 against their paper
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1d2125", "#e6e8ea"),
    "muted": ("#5c6670", "#a3adb7"),
    "rule": ("#d9dde1", "#343a41"),
    "longcot": ("#bd4b00", "#f2904a"),
    "delethink": ("#0067a5", "#5bb6ec"),
    "third": ("#00795a", "#3dc79f"),
    "fourth": ("#a3467b", "#dd94bd"),
    "fifth": ("#7a6400", "#d0b440"),
}
"""The page and its pictures share these colours. They are distinct, so a light drawing can be recoloured by value."""

LIGHT = {role: light for role, (light, _) in THEME.items()}
_DARK = dict(THEME.values())
_VARIABLE = {light: f"var(--{role})" for role, (light, _) in THEME.items()}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scaling",
    "font.family": "DejaVu Sans",  # ships with matplotlib, and is wide: a narrower font never overflows its place
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "text.parse_math": False,  # labels are data: a model may be called $\\frac$
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "text.color": LIGHT["ink"],
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": LIGHT["paper"],
    "savefig.facecolor": LIGHT["paper"],
    "lines.linewidth": 1.8,
}
_FONTS = "system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class Drawing:
    """`name` is a file stem; `caption` says what is shown, from how many measurements, by which method."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    svg: str
    png: bytes

    @property
    def dark(self) -> str:
        """The SVG file for a dark page."""
        return _recolour(self.svg, _DARK)

    @property
    def inline(self) -> str:
        """The SVG element for a page that defines the THEME roles as CSS variables; ids are unique to the drawing."""
        element = self.svg[self.svg.index("<svg") :]
        element = re.sub(r"<style.*?</style>", "", element, count=1, flags=re.S)
        element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
        element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
        element = re.sub(r' id="([^"]+)"', rf' id="{self.name}-\1"', element)
        element = re.sub(r'(url\(|href=")#', rf"\1#{self.name}-", element)
        return _recolour(element, _VARIABLE)


def _recolour(svg: str, to: dict[str, str]) -> str:
    """Swaps THEME's light colours where they paint, leaving text alone."""
    return re.sub(r"((?:fill|stroke): )(#[0-9a-f]{6})", lambda m: m[1] + to.get(m[2], m[2]), svg)


class Sheet:
    """One empty picture to draw on: `axes`, and what `drawing` will be made from."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.axes: Axes = figure.add_subplot()

    def drawing(self, name: str, title: str, caption: str, data: pd.DataFrame) -> Drawing:
        """Renders; must be called inside `sheet()`."""
        png, svg = io.BytesIO(), io.StringIO()
        self.figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        self.figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        text = re.sub(r"(style=\"font[^\"]*?)'DejaVu Sans'", rf"\1{_FONTS}", svg.getvalue())
        return Drawing(name, title, caption, data, text, png.getvalue())


@contextmanager
def sheet(width: float = 4.9, height: float = 3.5) -> Iterator[Sheet]:
    """A picture of `width` × `height` inches in the house style, apart from any global matplotlib state."""
    with matplotlib.rc_context(_STYLE):
        yield Sheet(Figure(figsize=(width, height), layout="constrained"))


def short(tokens: float) -> str:
    """Tokens as people say them: 8192 → 8k, 1048576 → 1M, 1536 → 1.5k."""
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}" if tokens / size < 1000 else f"{tokens / size:.0f}{unit}"
    return f"{tokens:.0f}"


def token_axis(axes: Axes, lengths: Iterable[int], log: bool = True) -> None:
    """Labels the x axis in thinking tokens: at measured lengths where logarithmic, at round steps where linear."""
    lengths = sorted({int(length) for length in lengths})
    top = lengths[-1]
    if log:
        axes.set_xscale("log", base=2)
        gap = max(math.log(top / lengths[0]) / 8, 0.2)
        ticks: list[int] = []
        for length in reversed(lengths):
            if not ticks or math.log(ticks[-1] / length) >= gap:
                ticks.append(length)
    else:
        step = 1 << max(math.ceil(math.log2(top / 7)), 0)
        ticks = list(range(0, int(top * 1.02) + 1, step))
        axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: short(tokens)))
    axes.set_xlabel("thinking tokens per trace")
    axes.grid(visible=False, axis="x")


def value_axis(axes: Axes, label: str, log: bool = True) -> None:
    """Labels the y axis with plain numbers, never powers; a linear one starts at zero."""
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 1000:  # powers of ten alone would leave the axis nearly bare
            steps = (1, 2, 5) if high / low > 12 else (1, 1.5, 2, 3, 4, 5, 6, 8)
            marks = [m * 10.0**e for e in range(-12, 18) for m in steps]
            axes.yaxis.set_major_locator(FixedLocator(marks))
            axes.set_ylim(low, high)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_ylabel(label)


def label_ends(sheet: Sheet, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes (x, y, text, colour) beside the ends of curves, pushed apart so that no two overlap."""
    axes, canvas = sheet.axes, sheet.figure
    texts = [
        axes.text(
            x, y, text, color=colour, va="center", fontweight="bold", clip_on=False,
            transform=offset_copy(axes.transData, fig=canvas, x=7, units="points"),
        )
        for x, y, text, colour in ends
    ]  # fmt: skip
    canvas.draw_without_rendering()
    places = sorted((axes.transData.transform((x, y))[1] * 72 / canvas.dpi, i) for i, (x, y, *_) in enumerate(ends))
    heights = [1.3 * 10 * (text.get_text().count("\n") + 1) for text in texts]
    placed: list[tuple[float, int]] = []
    for y, i in places:
        if placed:
            below, j = placed[-1]
            y = max(y, below + (heights[i] + heights[j]) / 2)  # noqa: PLW2901
        placed.append((y, i))
    for y, i in placed:
        x, at, *_ = ends[i]
        shift = y - axes.transData.transform((x, at))[1] * 72 / canvas.dpi
        texts[i].set_transform(offset_copy(axes.transData, fig=canvas, x=7, y=shift, units="points"))

"""The picture of `scaling plan --optimise`: total GPU-hours by context and state size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from reports.drawing import LIGHT, Drawing, sheet
from scaling.lengths import format_tokens
from scaling.predict.search import STATE_SHARES

if TYPE_CHECKING:
    from scaling.predict.search import Choice


def grid_drawing(choices: Sequence[Choice], title: str) -> Drawing:
    """A field for every pair, darker where it costs more, the least framed; one without a plan stays empty."""
    sizes = sorted({choice.context_size for choice in choices})
    hours = np.full((len(sizes), len(STATE_SHARES)), np.nan)
    for choice in choices:
        if choice.plan is not None:
            column = [int(share * choice.context_size) for share in STATE_SHARES.values()].index(choice.state_size)
            hours[sizes.index(choice.context_size), column] = choice.plan.total_gpu_hours
    least = np.unravel_index(np.nanargmin(hours), hours.shape)
    with sheet(width=4.9, height=0.6 + 0.5 * len(sizes)) as page:
        axes = page.axes
        axes.grid(visible=False)
        colours = matplotlib.colormaps["Blues"].with_extremes(bad=LIGHT["paper"])
        span = np.nanmax(hours) / np.nanmin(hours)
        norm = LogNorm(np.nanmin(hours), np.nanmax(hours) * 1.01 if span > 1 else np.nanmin(hours) * 2)
        axes.imshow(hours, cmap=colours, norm=norm, aspect="auto", alpha=0.8)
        for (row, column), value in np.ndenumerate(hours):
            text = "–" if np.isnan(value) else f"{value:,.0f}"
            best = (row, column) == tuple(least)
            dark = not np.isnan(value) and float(norm(value)) > 0.6
            axes.text(
                column, row, text, ha="center", va="center", fontweight="bold" if best else "normal",
                color=LIGHT["paper"] if dark else LIGHT["ink"],
            )  # fmt: skip
        row, column = (int(index) for index in least)
        frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=2.5, edgecolor=LIGHT["longcot"])
        axes.add_patch(frame)
        axes.set_xticks(range(len(STATE_SHARES)), [f"m = {share}" for share in STATE_SHARES])
        axes.set_yticks(range(len(sizes)), [f"C = {format_tokens(size)}" for size in sizes])
        axes.tick_params(length=0)
        data = pd.DataFrame(
            [(c.context_size, c.state_size, c.plan.total_gpu_hours if c.plan else None) for c in choices],
            columns=["context_size", "state_size", "total_gpu_hours"],
        )
        axes.set_title(title, fontsize=10)
        return page.drawing("optimise", title, "Total GPU-hours by context and state size; analytic.", data)

"""The chapter on training: what reinforcement learning brought, by step and by second, and where its seconds went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports.arms import Record, Style, percent_axis, share, styles
from reports.chapter import Chapter, Section
from reports.drawing import LIGHT, Drawing, sheet
from reports.figures import PHASE_NAMES
from reports.tables import Table, number

MEAN_OF = 5
PHASES = ("rollout", "logprob", "update", "sync")


def training_chapter(runs: Mapping[str, Record]) -> Chapter:
    """The chapter of all training runs of a report together.

    `runs`, by name: the `recipe` that its manifest holds, and `lines` of `metrics.jsonl`, at least one a run.
    """
    data = pd.concat([_steps(name, run["lines"]) for name, run in runs.items()], ignore_index=True)
    look = styles([{"label": name, "environment": run["recipe"]["mode"]} for name, run in runs.items()])
    reward = f"training reward, mean of {MEAN_OF} steps"
    drawings = [
        _curve(look, data, "reward", "step", reward, "Reward by step"),
        _curve(look, data, "reward", "seconds", reward, "Reward by seconds of all phases"),
        _curve(look, data, "thinking_tokens", "step", "thinking tokens per trace", "Length by step"),
    ]
    section = Section("training", "Reward, seconds and lengths", [], drawings, [_table(runs, data)])
    said = [
        f"{name} ({run['recipe']['name']}): reward {share(float(mine['step_reward'].iloc[0]))} % at its first step, "
        f"{share(float(mine['reward'].iloc[-1]))} % over the last {min(MEAN_OF, len(mine))} of {len(mine)}, "
        f"{number(float(mine['seconds'].iloc[-1]))} s."
        for name, run in runs.items()
        for mine in [data[data["run"] == name]]
    ]
    return Chapter("Training", said, {"training": data.groupby("run")["reward"].last().to_dict()}, [section])


def _steps(name: str, lines: Sequence[Record]) -> pd.DataFrame:
    """A row a step: its reward and the mean of the last ones, seconds until then by phase, and lengths."""
    seconds = {phase: [line.get(f"{phase}_seconds") or 0.0 for line in lines] for phase in PHASES}
    rewards = pd.Series([line["reward"] for line in lines], dtype=float)
    return pd.DataFrame(
        {
            "run": name,
            "step": [line["step"] for line in lines],
            "step_reward": rewards,
            "reward": rewards.rolling(MEAN_OF, min_periods=1).mean(),
            "seconds": pd.DataFrame(seconds).sum(axis=1).cumsum(),
            **{f"{phase}_seconds": spent for phase, spent in seconds.items()},
            "thinking_tokens": [line["thinking_tokens"] for line in lines],
        }
    )


def _curve(look: Mapping[str, Style], data: pd.DataFrame, what: str, by: str, label: str, title: str) -> Drawing:
    with sheet(5.2, 3.6) as page:
        for name, style in look.items():
            line = data[data["run"] == name]
            page.axes.plot(line[by], line[what], label=name, linewidth=1.4, **{**style.line})
        page.axes.set_xlabel("step" if by == "step" else "seconds of all phases")
        if what == "reward":
            percent_axis(page.axes, label)
        else:
            page.axes.set_ylabel(label)
            page.axes.set_ylim(bottom=0)
        page.axes.grid(color=LIGHT["rule"])
        page.axes.legend(frameon=False, fontsize=8)
        caption = f"{label[0].upper()}{label[1:]}, one line a run of one seed; measured, as the trainer wrote it."
        return page.drawing(f"training-{what.replace('_', '-')}-{by}", title, caption, data[["run", by, what]])


def _table(runs: Mapping[str, Record], data: pd.DataFrame) -> Table:
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        mine = data[data["run"] == name]
        spent = {PHASE_NAMES[phase]: number(float(mine[f"{phase}_seconds"].sum())) for phase in PHASES}
        rows.append(
            {
                "run": name,
                "recipe": run["recipe"]["name"],
                "trained in": run["recipe"]["mode"],
                "seed": str(run["recipe"]["seed"]),
                "steps": f"{len(mine):,}",
                "first reward, %": share(float(mine["step_reward"].iloc[0])),
                "last, %": share(float(mine["reward"].iloc[-1])),
                **{f"{phase}, s": seconds for phase, seconds in spent.items()},
            }
        )
    caption = f"Last: mean of the last {MEAN_OF} steps. Seconds are sums over all steps, measured."
    return Table("training", "Training runs", caption, data, pd.DataFrame(rows))

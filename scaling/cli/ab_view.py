"""How `scaling ab` shows its outcome: a table and sentences for a terminal, the same as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.cli.check_view import plain, tables
from scaling.cli.console import visible

if TYPE_CHECKING:
    from scaling.gate.ab import Series, Trial

_HEADINGS = ("", "what", "candidate ÷ baseline", "95 % interval", "pairs", "noise of a pair")
_MARKS = {"fine": "✅", "regression": "❌", "undecided": "⚠️"}
_STYLES = {"fine": "green", "regression": "bold red", "undecided": "yellow"}


def show(trial: Trial) -> None:
    """What was compared, a line a series, and the verdicts in words, on stdout."""
    from rich import box
    from rich.table import Table

    console = tables()
    console.print(visible(heading(trial)), soft_wrap=True)
    if trial.series:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for place, title in enumerate(_HEADINGS):
            table.add_column(title, justify="right" if place > 1 else "left")
        for series in trial.series:
            table.add_row(*map(visible, _row(series)), style=_STYLES[series.reading.answer])
        console.print(table)
    for sentence in _all_sentences(trial):
        console.print(visible(sentence), soft_wrap=True, style=_STYLES[trial.outcome])


def to_markdown(trial: Trial) -> str:
    """The same for a step summary or a comment."""
    lines = [f"### {_MARKS[trial.outcome]} `scaling ab`: {plain(heading(trial))}", ""]
    if trial.series:
        lines += [f"| {' | '.join(_HEADINGS)} |", "|---|---|--:|--:|--:|--:|"]
        lines += [f"| {' | '.join(map(plain, _row(series)))} |" for series in trial.series]
        lines.append("")
    lines += [f"- {plain(sentence)}" for sentence in _all_sentences(trial)]
    return "\n".join(lines) + "\n"


def heading(trial: Trial) -> str:
    taken = f"{trial.elapsed_seconds / 60:.1f} min"
    return f"{trial.b.spec} ({trial.b.described}) against {trial.a.spec} ({trial.a.described}), {taken}"


def _all_sentences(trial: Trial) -> list[str]:
    """The verdicts, then what the counters of the first pair say where they moved."""
    moved = [cell.sentence for cell in trial.counters.moved if cell.verdict != "advice"] if trial.counters else []
    return [*trial.sentences, *moved]


def _row(series: Series) -> tuple[str, ...]:
    found = series.reading
    span = "none yet" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"
    noise = "" if found.noise is None else f"{100 * found.noise:.1f} %"
    return (found.answer, series.label, f"{found.ratio:.3f}", span, f"{found.pairs}", noise)

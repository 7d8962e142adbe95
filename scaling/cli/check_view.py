"""How `scaling check` shows its outcome: a table and sentences for a terminal, the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from scaling.cli.console import visible
from scaling.gate.check import FAILING, Check, Compared, number, percent

if TYPE_CHECKING:
    from rich.console import Console

_HEADINGS = ("verdict", "", "what", "baseline", "candidate", "change")
_STYLES = {"improvement": "green", "advice": "yellow", "note": "dim"} | dict.fromkeys(FAILING, "bold red")
_MARKS = ("✅", "❌", "⚠️")  # by exit code
_PLAIN_WIDTH = 240  # where stdout is no terminal: nothing wraps


def show(outcome: Check) -> None:
    """What moved as a table, the most important first, each verdict in a sentence, and what follows."""
    console = tables()
    if outcome.moved:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for place, heading in enumerate(_HEADINGS):
            table.add_column(heading or outcome.noun, justify="right" if place > 2 else "left")
        for cell in outcome.moved:
            for row in _rows(cell):
                table.add_row(*map(visible, row), style=_STYLES.get(cell.verdict))
        console.print(table)
        console.print()
    for sentence in _sentences(outcome):
        console.print(visible(sentence), soft_wrap=True)
    console.print(visible(outcome.timing_sentence), style="dim", soft_wrap=True)
    console.print(outcome.sentence, style="bold red" if outcome.fails else "bold", soft_wrap=True)


def to_markdown(outcome: Check) -> str:
    """The same for a step summary or a comment: verdict first, the table, then a sentence each."""
    mark = _MARKS[outcome.exit_code]
    lines = [f"### {mark} `scaling check`: {plain(outcome.candidate)} against {plain(outcome.baseline)}", ""]
    lines += [f"**{plain(outcome.sentence)}** {plain(outcome.timing_sentence)}", ""]
    if outcome.moved:
        lines.append(f"| {' | '.join(heading or outcome.noun for heading in _HEADINGS)} |")
        lines.append("|---|---|---|--:|--:|--:|")
        lines += [f"| {' | '.join(map(plain, row))} |" for cell in outcome.moved for row in _rows(cell)]
        lines += ["", *(f"- {plain(sentence)}" for sentence in _sentences(outcome)), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _rows(cell: Compared) -> Iterator[tuple[str, ...]]:
    """A line a counter that moved, and one for seconds that are worth an advice; one at least."""
    for change in cell.changes:
        moved = "" if change.ratio is None else percent(change.ratio)
        yield (change.verdict, cell.label, change.title, number(change.baseline), number(change.candidate), moved)
    if cell.timing and cell.advice:
        before, after = f"{cell.timing.baseline:.3g}", f"{cell.timing.candidate:.3g}"
        yield ("advice", cell.label, "seconds", before, after, percent(cell.timing.ratio))
    elif not cell.changes:
        yield (cell.verdict, cell.label, "", "", "", "")


def _sentences(outcome: Check) -> Iterator[str]:
    for cell in outcome.moved:
        if cell.verdict != "advice":
            yield cell.sentence
        if cell.advice:
            yield cell.advice


def plain(text: str) -> str:
    """Text that Markdown shows as it is: `code` stays, what would steer a page or a table does not."""
    shown = visible(text).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\|*_[]":  # backslashes first: one that was there must not take away one of ours
        shown = shown.replace(mark, f"\\{mark}")
    return shown


def tables() -> Console:
    """Stdout for tables of names that are data: what looks like markup or an emoji stays as it is."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_PLAIN_WIDTH)

"""`scaling check`: whether a candidate does the work of its baseline, at no greater cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.cli.console import print_json, say, warn
from scaling.errors import UsageError

if TYPE_CHECKING:
    from scaling.gate.side import Side

EXAMPLES = (
    "scaling check runs/main runs/candidate",
    "scaling check runs/main --save main",
    "scaling check runs/candidate --against main",
    'scaling check runs/candidate --against main --markdown - >> "$GITHUB_STEP_SUMMARY"',
    "scaling check before.json after.json --json                   # of pytest --benchmark-json",
)

_SIDE = "A run's directory, a file of pytest --benchmark-json, or a saved baseline"


def check(
    first: Annotated[
        Path,
        typer.Argument(metavar="BASELINE", help=f"{_SIDE}. With --save or --against, the only side that is given."),
    ],
    candidate: Annotated[Path | None, typer.Argument(metavar="CANDIDATE", help="The same of the candidate.")] = None,
    against: Annotated[str | None, typer.Option(help="Compare with the baseline saved under this name.")] = None,
    save: Annotated[
        str | None, typer.Option(help="Save a baseline under this name, one for each machine's fingerprint.")
    ] = None,
    directory: Annotated[
        Path, typer.Option(help="Where baselines are kept, as small text files fit for committing.")
    ] = Path("baselines"),
    markdown: Annotated[
        Path | None, typer.Option(help="Write the outcome as Markdown to a file, or with - to stdout.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on stdout.")] = False,
) -> int:
    """Check that a run does the same work as its baseline, at the same cost or less.

    Counters that do not depend on the machine (tokens, chunks, FLOPs, bytes, planned seconds, allocations) are compared
    exactly: the exit code is 1 where one says more cost or other work, or a cell fails or is missing, 2 where nothing
    could be compared, and else 0.
    Seconds are compared on machines alike, as advice that never changes it.
    """
    if sum(given is not None for given in (candidate, against, save)) != 1:
        raise UsageError(
            "give two sides, or one with --against NAME or --save NAME; as in `scaling check runs/main runs/candidate`"
        )
    to_stdout = markdown is not None and str(markdown) == "-"
    if json and to_stdout:
        raise UsageError("--json and --markdown - both write to stdout; give --markdown a file")
    from scaling.gate.baselines import find, kept_in
    from scaling.gate.side import read_side

    if save is not None:
        return _save(first, read_side(first), save, directory, json, markdown)
    from scaling.cli.check_view import show, to_markdown
    from scaling.gate.check import check as compare

    if candidate is not None:
        outcome = compare(read_side(first), read_side(candidate))
    else:
        side = read_side(first)
        outcome = compare(find(against or "", side, directory), side)
    if markdown is not None:
        if to_stdout:
            print(to_markdown(outcome), end="")
        else:
            write(markdown, to_markdown(outcome))
    if json:
        print_json(outcome.to_json())
    elif not to_stdout:
        show(outcome)
    if outcome.moved and against is not None and any(cell.changes for cell in outcome.moved):
        say(f"where that is meant: scaling check {first} --save {against}{kept_in(directory)}")
    return outcome.exit_code


def _save(source: Path, side: Side, name: str, directory: Path, json: bool, markdown: Path | None) -> int:
    from scaling.gate.baselines import displaced, save
    from scaling.gate.side import lacking

    if markdown is not None:
        raise UsageError("--save compares nothing, so has nothing to say in Markdown; leave --markdown out")
    if other := displaced(side, name, directory):
        field, (was, now) = next(iter(other.items()))
        warn(f"{name} was a baseline of other measurements, and is replaced: {field} was {was!r}, and is {now!r}")
    path, renewed = save(side, name, directory)
    if rows := lacking(source):
        warn(
            f"{source} is not finished: it lacks {rows} row{'' if rows == 1 else 's'}, and the baseline with it; "
            f"finish it with `scaling run --resume --out {source}`, and save it again"
        )
    for cell in side.measured.values():
        if cell.status != "ok":
            warn(f"{cell.label} failed ({cell.status}: {cell.reason}); the baseline keeps that")
    if json:
        print_json({"baseline": path, "fingerprint_id": side.fingerprint_id, "renewed": renewed})
    else:
        print(path)
    for there in renewed:
        say(f"{there}, of another machine, has the new counters too, without seconds")
    return 0


def write(path: Path, text: str) -> None:
    from scaling.errors import StoreError
    from scaling.files import appearing

    try:
        with appearing(path, replace=True) as pending:
            pending.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error

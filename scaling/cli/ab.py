"""`scaling ab`: whether one build is slower than another, by interleaved pairs."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import console, print_json
from scaling.errors import UsageError

if TYPE_CHECKING:
    from scaling.gate.ab import Progress, Trial
    from scaling.gate.sessions import Work

EXAMPLES = (
    "scaling ab --a main                                           # main against the working tree, in minutes",
    "scaling ab --a v0.1.0 --b HEAD --floor 5% -- --mode longcot --lengths 1k",
    "scaling ab --a main -- pytest tests/benchmarks --benchmark-only -k decode_step",
    "scaling ab --a envs/vllm-0.32 --b envs/vllm-0.33 -- --engine vllm --model smollm2-135m",
    'scaling ab --a origin/main --markdown - >> "$GITHUB_STEP_SUMMARY"',
)

SHORT_CELL = {"lengths": (256,), "context_size": 128, "state_size": 64, "head": 16}
"""Where no size is given: three chunks of the tiny model in a third of a second, so that a turn is soon over."""

DEFAULTS = {"model": "tiny", "modes": ("delethink",), "lengths": (1024,), "method": "full"}


def ab(
    a: Annotated[
        str,
        typer.Option(
            help="The baseline: a git ref, a source tree, a wheel, or the directory of an environment that has it.",
            show_default=False,
        ),
    ],
    b: Annotated[str, typer.Option(help="The candidate, likewise; the working tree by default.")] = ".",
    work: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- WORK...]",
            help="What to time, after --: options of `scaling run` for a short cell, or pytest and its arguments.",
            show_default=False,
        ),
    ] = None,
    floor: Annotated[str, typer.Option(help="The slowdown that matters.")] = "3%",
    budget: Annotated[str, typer.Option(help="Most time to take: 90s, 8m, 1h.")] = "8m",
    seed: Annotated[
        int | None, typer.Option(help="Of the coins that say which side of a pair begins. Default: a new one.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the outcome as Markdown to a file, or with - to stdout.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on stdout.")] = False,
) -> int:
    """Tell whether a candidate is slower than a baseline, on a machine as noisy as it is.

    Both are built apart and run in pairs of processes that take turns, until the 95 % interval of the slowdown lies
    wholly below the floor (exit 0) or above it (exit 1), or the time is up (exit 3). Refs, trees and wheels borrow the
    other packages of this environment. They compute on one thread unless OMP_NUM_THREADS says otherwise.
    """
    share, seconds = _share(floor), _seconds(budget)
    to_stdout = markdown is not None and str(markdown) == "-"
    if json and to_stdout:
        raise UsageError("--json and --markdown - both write to stdout; give --markdown a file")
    wanted = _work(work or [])
    with tempfile.TemporaryDirectory(prefix="scaling-ab-") as scratch:
        trial = _compare(a, b, wanted, Path(scratch), share, seconds, secrets.randbits(32) if seed is None else seed)
    from scaling.cli.ab_view import show, to_markdown
    from scaling.cli.check import write

    if to_stdout:
        print(to_markdown(trial), end="")
    elif json:
        print_json(trial.to_json())
    else:
        show(trial)
    if markdown is not None and not to_stdout:  # last: what took minutes is not lost with a file that cannot be written
        write(markdown, to_markdown(trial))
    return trial.exit_code


def _compare(a: str, b: str, work: Work, scratch: Path, floor: float, budget: float, seed: int) -> Trial:
    """Builds both sides and measures them, under a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    from scaling.gate import builds
    from scaling.gate.ab import compare

    # names of one length: how long a path is moves what is on the stack, and so speeds
    folders = {"a": scratch / "a", "b": scratch / "b"}
    for folder in folders.values():
        folder.mkdir()
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(f"building {a}", total=None)
        baseline = builds.make(a, folders["a"])
        bar.update(task, description=f"building {b}")
        candidate = builds.make(b, folders["b"])

        def observe(progress: Progress) -> None:
            told = "a first pair, to warm up" if progress.pairs is None else "pairs"
            if progress.series:
                ratios = ", ".join(f"{100 * (each.reading.ratio - 1):+.1f} %" for each in progress.series[:4])
                told = f"pairs, so far {ratios}"
            bar.update(task, description=told, total=progress.pairs, completed=progress.made)

        return compare(
            baseline, candidate, work, scratch / "pairs", floor=floor, budget=budget, seed=seed, observe=observe
        )


def _work(arguments: Sequence[str]) -> Work:
    from scaling.gate.sessions import Benchmarks, Cells

    if arguments and arguments[0] == "pytest":
        return Benchmarks(arguments[1:])
    return Cells(_options(arguments))


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    """The fields of `RunConfig` that options of `scaling run` set, with those of a short cell for the rest."""
    from scaling.cli import app
    from scaling.cli.run import NO_SETTINGS, settings
    from scaling.measure.run import configure, located

    command: Any = typer.main.get_command(app)
    context = command.commands["run"].make_context("scaling run", list(arguments))
    for option in context.command.params:
        if option.name in (*NO_SETTINGS, "repeats") and context.params[option.name] not in (None, option.default):
            raise UsageError(f"{option.opts[0]} is no part of a cell; `scaling ab` takes the other options of a run")
    given = settings(context.params)
    sized = given.keys() & SHORT_CELL.keys()
    options = {**DEFAULTS, **({} if sized else SHORT_CELL), **given}
    config, _ = located(configure(options))  # refuses what no run could be
    return {**options, "model": config.model}


def _share(text: str) -> float:
    """3% or 0.03, as 0.03."""
    number, percent = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / percent
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"floor {text!r} is no share; expected a slowdown such as 3% or 0.03")
    return share


def _seconds(text: str) -> float:
    """90s, 8m, 1h or a number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"budget {text!r} is no time; expected one such as 90s, 8m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]

"""`scaling thoughts`: what traces look like, of any study or file of traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.cli.console import print_json
from scaling.errors import UsageError

EXAMPLES = (
    "scaling thoughts runs/far",
    "scaling thoughts gcd.jsonl --json                     # of scaling trace --out gcd.jsonl",
    "scaling report runs/far                               # the same, with figures, in the study's report",
)


def thoughts(
    places: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN_OR_FILE…", help="Runs of probe or test-time, or files of scaling trace --out."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Tell how long right and wrong traces are, which lengths do best, and how much traces repeat themselves.

    Chunked arms also: whether chunk boundaries cause repetition. After DeepSeek-R1 Thoughtology.
    """
    from scaling.behaviour import thoughts_of

    if not places:
        raise UsageError("no traces given; name a run or a file of them, as in runs/far or gcd.jsonl")
    found = {str(place): thoughts_of(place) for place in dict.fromkeys(places)}
    if json:
        print_json({"thoughts": [{"of": place, **record} for place, record in found.items()]})
        return
    from reports.thoughts import sentences

    for place, record in found.items():
        for sentence in sentences(record):
            print(f"{place}: {sentence}" if len(found) > 1 else sentence)

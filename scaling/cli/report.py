"""`scaling report`: what runs measured, as a page, Markdown, tables and figures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import print_json, warn
from scaling.errors import FitError, StoreError
from scaling.results import Store, newest_run

if TYPE_CHECKING:
    import pandas as pd

    from scaling.laws import Fit

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
    json: Annotated[bool, typer.Option("--json", help="Print the files and the headline numbers as JSON.")] = False,
) -> None:
    """Report what runs measured: one HTML page that needs no network, Markdown, CSV, SVG and PNG.

    Measures nothing. Rows of equal model, engine, device and load are drawn together, whichever run they are from.
    """
    stores = _open(runs or [newest_run()])
    paths = [store.path for store in stores.values()]
    target = out or (paths[0] / "report" if len(paths) == 1 else paths[0].resolve().parent / "report")
    if target.exists() and not target.is_dir():
        raise StoreError(f"cannot write a report to {target}: it is a file; give a directory")

    from reports.page import build, write
    from scaling.laws import Job

    frame = _rows(stores)
    fits, remarks = _fits(frame, stores)
    manifests = {name: store.manifest for name, store in stores.items()}
    made = build(frame, manifests, fits, Job(), remarks)
    files = write(made, target)
    for remark in remarks:
        warn(remark)
    if json:
        print_json(
            {"runs": paths, "page": files[0], "files": files, "headline": made.headline, "settings": made.numbers}
        )
    else:
        print(files[0], *made.headline, sep="\n")


def _open(runs: Sequence[Path]) -> dict[str, Store]:
    """Each run once, by its directory's name, or by its path where names clash."""
    unique = list({path.resolve(): path for path in runs}.values())
    names = [path.resolve().name for path in unique]
    if len(set(names)) < len(names):
        names = [str(path) for path in unique]
    return {name: Store.open(path) for name, path in zip(names, unique, strict=True)}


def _rows(stores: Mapping[str, Store]) -> pd.DataFrame:
    """All rows, with a column `run`."""
    import pandas as pd

    return pd.concat([store.frame().assign(run=name) for name, store in stores.items()], ignore_index=True)


def _fits(frame: pd.DataFrame, stores: Mapping[str, Store]) -> tuple[list[Fit], list[str]]:
    """The laws that the rows determine, and one remark for each curve that has none."""
    from scaling.laws import FitWarning, fit_frame

    frame = frame[frame["phase"] != "sync"]  # weight transfer does not depend on thinking: it has no law
    if frame.empty:
        return [], []
    profiled = bool((frame["method"] == "profile").any())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FitWarning)
        try:
            fits = fit_frame(frame, _replicates(stores) if profiled else None)
        except FitError as error:
            return [], [f"no law was fitted: {error}"]
    return fits, [f"no law for {warning.message}" for warning in caught if warning.category is FitWarning]


def _replicates(stores: Mapping[str, Store]) -> Callable[[pd.DataFrame], Any]:
    """How to resample profiled rows of several runs: each run's rows over its own grids."""
    import numpy as np

    from scaling.measure.profile import replicates

    def resample(rows: pd.DataFrame) -> Any:
        places = rows.reset_index(drop=True).groupby("run", sort=False).indices
        drawn = [replicates(stores[str(run)])(rows.iloc[at]) for run, at in places.items()]
        order = np.argsort(np.concatenate(list(places.values())))
        return np.hstack(drawn)[:, order]

    return resample

"""The same as the command line, for programs: `scaling.run`, `scaling.fit`, `scaling.report`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import FitError
from scaling.measure.run import run
from scaling.results import Run, Store, join, open_runs

if TYPE_CHECKING:
    import pandas as pd

    from reports.page import Report
    from scaling.laws import Fit

__all__ = ["fit", "report", "run"]


def fit(runs: Run | Sequence[Run]) -> list[Fit]:
    """The cost laws of one or several runs, as `scaling fit` finds them: one a curve.

    Warns (`scaling.laws.FitWarning`) of a curve that the rows do not determine; raises `FitError` if none is.
    """
    from scaling.laws import fit_frame

    stores = open_runs(runs)
    frame = join(stores)
    return fit_frame(frame, resampler(frame, stores))


def report(runs: Run | Sequence[Run], out: Path | str | None = None) -> Path:
    """Writes the report of one or several runs, as `scaling report` does, and returns its page."""
    from reports.page import write

    stores = open_runs(runs)
    return write(build_report(stores), Path(out) if out else report_directory(stores))[0]


def report_directory(stores: Mapping[str, Store]) -> Path:
    """RUN/report; for several runs, beside the first."""
    paths = [store.path for store in stores.values()]
    return paths[0] / "report" if len(paths) == 1 else paths[0].resolve().parent / "report"


def resampler(frame: pd.DataFrame, stores: Mapping[str, Store]) -> Callable[[pd.DataFrame], Any] | None:
    """How to resample profiled rows, which share a grid and so are not independent: each run's over its own grids."""
    import numpy as np

    from scaling.measure.profile import replicates

    if not (frame["method"] == "profile").any():
        return None

    def resample(profiled: pd.DataFrame) -> Any:
        places = profiled.reset_index(drop=True).groupby("run", sort=False).indices
        drawn = [replicates(stores[str(run)])(profiled.iloc[at]) for run, at in places.items()]
        order = np.argsort(np.concatenate(list(places.values())))
        return np.hstack(drawn)[:, order]

    return resample


def build_report(stores: Mapping[str, Store], stages: Path | None = None) -> Report:
    """The report of some runs, a chapter for each of a study; a curve without a law is remarked in it.

    `stages`: a file of rules by which the thoughts of studies are labelled too.
    """
    from reports.page import build
    from scaling.behaviour import study_chapters, trace_page
    from scaling.laws import FitWarning, Job, fit_frame
    from studies.trace_frame import is_study

    frame = join(stores)
    measured = [name for name, store in stores.items() if not is_study(store) and store.manifest.get("kind") is None]
    trained = [name for name, store in stores.items() if store.manifest.get("kind") == "training"]
    costs = frame[frame["run"].isin(measured or trained)]  # steps of training have all lengths at once: no curves
    fits: list[Fit] = []
    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FitWarning)
        try:
            fits = fit_frame(costs, resampler(costs, stores)) if len(costs) else []
        except FitError as error:
            remarks.append(f"no law was fitted: {error}")
    remarks += [f"no law for {w.message}" for w in caught if w.category is FitWarning]
    studies = study_chapters(stores, (costs, fits), remarks.append, stages)
    manifests = {name: store.manifest for name, store in stores.items()}
    return build(costs, manifests, fits, Job(), remarks, studies, trace_page(stores))

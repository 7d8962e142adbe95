"""Several runs read as one: found, opened, named, and their rows joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.errors import StoreError, UsageError
from scaling.results.store import MANIFEST, Store

if TYPE_CHECKING:
    import pandas as pd

Run = Store | Path | str


def newest_run(root: str | Path = "runs") -> Path:
    """The run under `root` that was created last; raises `StoreError` if there is none."""
    manifests = [path for path in Path(root).glob(f"*/{MANIFEST}") if path.is_file()]
    if not manifests:
        raise StoreError(f"no run under {root}; start one with `scaling run`")
    return max(manifests, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent


def open_runs(runs: Run | Sequence[Run]) -> dict[str, Store]:
    """Each run once, by its directory's name, or by its path where names clash; raises `UsageError` without any."""
    given = [runs] if isinstance(runs, Store | Path | str) else runs
    stores = {s.path.resolve(): s for s in (r if isinstance(r, Store) else Store.open(r) for r in given)}
    if not stores:
        raise UsageError("no run given; give the directory of at least one, as in runs/first")
    names = [path.name for path in stores]
    if len(set(names)) < len(names):
        names = [str(store.path) for store in stores.values()]
    return dict(zip(names, stores.values(), strict=True))


def join(stores: Mapping[str, Store]) -> pd.DataFrame:
    """The rows of all these runs, with a column `run`: the name of each."""
    import pandas as pd

    return pd.concat([store.frame().assign(run=name) for name, store in stores.items()], ignore_index=True)


def load(runs: Run | Sequence[Run]) -> pd.DataFrame:
    """The rows of one or several runs, with a column `run`: the directory's name, or its path where names clash."""
    return join(open_runs(runs))

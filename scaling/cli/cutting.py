"""What `scaling thoughts --truncate` does: cutting thoughts and forcing their answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from scaling.cli.console import warn
from scaling.errors import UsageError

if TYPE_CHECKING:
    from scaling.measure.sampler import EngineChoice
    from scaling.results import Store
    from studies.truncation import Forcing


def truncated(store: Store, forcing: Forcing, models: Sequence[str], engine: EngineChoice) -> dict[str, Any]:
    """Forces what answers the study's run still lacks, and returns the analysis of this forcing's budgets.

    `models`: those that wrote the traces, None given being those that the run remembers. Raises as `truncate`.
    """
    from scaling.tasks import load
    from studies.checkpoints import DEFAULT_MODEL, find
    from studies.trace_frame import labels
    from studies.truncation import analyse, results, truncate

    arms, options = labels(store), store.manifest.get("options")
    if not isinstance(options, dict):
        raise UsageError(f"{store.path} does not remember its tasks; expected a run of `scaling probe` or `test-time`")
    asked = options.get("model") or [DEFAULT_MODEL]
    named = list(models) or (asked if isinstance(asked, list) else [asked])
    sources = [find(model, engine).source for model in dict.fromkeys(named)]
    with ExitStack() as stack:
        tasks = {}
        for task in store.manifest["tasks"]:
            tasks[task["label"]] = opened = load(task["label"], seed=options["seed"])
            stack.callback(opened.close)
        truncate(store, forcing, sources, tasks, engine, remark=warn)
    return analyse([one for arm in arms for one in results(store, arm) if one["budget"] in forcing.budgets])

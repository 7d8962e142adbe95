"""A run on a Ray cluster: a task for each unit of its cells, run again where its worker is killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling.errors import ScalingError, UsageError, first_line
from scaling.measure.cells import RunConfig
from scaling.measure.run import Outcome, config_of, missing, outcome, planned_cells
from scaling.measure.shards import POLL_SECONDS, Announce, Tally, join, units
from scaling.measure.sweep import Progress, label
from scaling.results import Store
from scaling.results.store import MANIFEST

RETRIES = 3  # of a task whose worker was killed


def launch_ray(
    config: RunConfig | None,
    out: Path,
    *,
    observe: Callable[[Progress], None] = lambda _: None,
    announce: Announce = lambda *_: None,
    command: str | None = None,
) -> Outcome:
    """Measures a run with a Ray task for each unit, on the cluster that Ray finds, or on a local one of its own.

    A task has `tensor_parallel` GPUs, none where the cluster has none, a process of its own, and `RETRIES` more tries
    if that is killed: what it had stored stays. `out` must be the same directory for every node.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unasked
    try:
        import ray
    except ImportError:
        raise UsageError("--launcher ray needs Ray; pip install 'thinking-cost[ray]'") from None
    out = out.resolve()
    effective = config or config_of(Store.open(out))
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    pending: dict[Any, str] = {}
    died: list[str] = []
    try:
        gpus = effective.tensor_parallel if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(num_gpus=gpus, max_retries=RETRIES, max_calls=1)(measure_unit)

        def start(index: int) -> Any:
            return remote.remote(index, config and config.to_json(), str(out), command)

        def collect(seconds: float) -> None:
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=seconds)
            for reference in done:
                name = pending.pop(reference)
                try:
                    said = ray.get(reference)
                except ray.exceptions.RayError as error:
                    said = first_line(getattr(error, "cause", None) or error)
                if said:
                    died.append(f"{name}: {said}")

        if config is not None:
            pending[start(0)] = "the longest cell"  # begins the run, on a machine as those that measure it
        while pending and not (out / MANIFEST).exists():
            collect(POLL_SECONDS)
        if not (out / MANIFEST).exists():
            raise ScalingError(died[0] if died else f"no run appeared at {out}; give a directory that all nodes share")
        store = Store.open(out)
        planned = planned_cells(store)
        if config is not None:
            announce(config, store.manifest["device"], planned)
        pending.update({reference: label(units(planned)[0][0].cell) for reference in pending})
        for index, unit in enumerate(units(planned)):
            if (index > 0 or config is None) and missing(store, unit):
                pending[start(index)] = label(unit[0].cell)
        tally = Tally(store, _at_once(ray.cluster_resources(), gpus))
        while pending:
            collect(POLL_SECONDS)
            observe(tally.progress())
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()
    return outcome(store, planned, died)


def _at_once(resources: dict[str, float], gpus: int) -> int:
    return max(1, int(resources.get("GPU", 0) // gpus if gpus else resources.get("CPU", 1)))


def measure_unit(index: int, config: dict[str, Any] | None, out: str, command: str | None) -> str | None:
    """A Ray task: measures the unit `index` of the run in `out`; what it could not be measured for, in a line."""
    try:
        join(
            None if config is None else RunConfig.from_json(config),
            Path(out),
            lambda planned: units(planned)[index],
            command=command,
        )
    except ScalingError as error:
        return str(error)
    return None

"""What a gate compares: the cells of a run, or the benchmarks of a pytest-benchmark file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from scaling.errors import StoreError
from scaling.labels import LABELLED, environment_label
from scaling.lengths import format_tokens
from scaling.results import ALLOCATED, SCHEMA_VERSION, Store, check_version, read_json, timed

if TYPE_CHECKING:
    from pandas import DataFrame

Kind = Literal["run", "benchmarks"]

FORMAT = "scaling-baseline"
"""Of a side that was saved."""

WORK = {
    "actual_thinking_tokens": "thinking tokens a trace",
    "traces": "traces",
    "prompt_tokens": "prompt tokens",
    "chunks": "chunks",
    "decode_tokens": "decode tokens",
}
"""Counters that say which work was done, and what readers see them called."""

COST = {
    "prefill_computed_tokens": "prefill tokens computed",
    "prefill_cached_tokens": "prefill tokens cached",
    "processed_tokens": "processed tokens",
    "preemptions": "preemptions",
    "kv_bytes_per_token": "KV bytes a token",
    "peak_kv_bytes": "peak KV bytes",
}
"""Counters that say what the work took; beside them FLOPs, and `PLANNED_SECONDS` of a simulated engine."""

PLANNED_SECONDS = "planned_seconds"

_NOT_OF_A_PROFILE = "processed_tokens"  # there the tokens of its visits to the grid
_NOT_OF_A_SERVER = ("prefill_computed_tokens", "prefill_cached_tokens", "processed_tokens", "preemptions")
_NOT_MEASURED = ("base_url", "deadline", "key_variable")  # where a server is and how long it may take
_MACHINE = ("system", "release", "machine", "python_implementation", "python_version")


@dataclass(frozen=True, slots=True)
class Measured:
    """One cell of a run, or one benchmark.

    `key` is the same wherever the same is measured: a `cell_id`, or a benchmark's full name; `label` says it in plain
    words. `status` is "ok" or what the worst repeat came to, for a `reason`. `counters` are deterministic: the same
    code has the same, in every repeat, whatever the machine. `memory_bytes` is the peak that an allocator counted, None
    where there is no count. `seconds`: of a run, device-seconds a trace of each repeat that is worth using; of a
    benchmark, the first quartile, the median and the third quartile of its rounds.
    """

    key: str
    label: str
    status: str
    reason: str | None
    counters: Mapping[str, float]
    memory_bytes: float | None
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """What was measured, by key, in the order of measuring.

    `config` of a run is its `RunConfig`, with the model's name for its path, its `weights` and its kind of `device`,
    and without what measures nothing: where a server is. Of benchmarks it is empty. Sides with one `fingerprint_id`
    were measured on machines that should be alike; it is None where nothing says.
    """

    name: str
    kind: Kind
    config: Mapping[str, Any]
    fingerprint_id: str | None
    measured: Mapping[str, Measured]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "kind": self.kind,
            "fingerprint_id": self.fingerprint_id,
            "config": dict(self.config),
            "measured": [asdict(each) for each in self.measured.values()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Side:
        """Raises `KeyError`, `TypeError`, `AttributeError`, `ValueError` or `OverflowError` where something is missing,
        of another type or no number; what a newer minor schema added is left out."""
        if data["kind"] not in get_args(Kind):
            raise ValueError(f"{data['kind']!r} is no kind of side")
        measured = (
            Measured(
                key=str(each["key"]),
                label=str(each["label"]),
                status=str(each["status"]),
                reason=None if each["reason"] is None else str(each["reason"]),
                counters={name: _number(value) for name, value in each["counters"].items()},
                memory_bytes=None if each["memory_bytes"] is None else _number(each["memory_bytes"]),
                seconds=_positive(each["seconds"]),
            )
            for each in data["measured"]
        )
        return cls(
            str(data["name"]),
            data["kind"],
            dict(data["config"]),
            None if data["fingerprint_id"] is None else str(data["fingerprint_id"]),
            {each.key: each for each in measured},
        )


def read_side(path: str | Path) -> Side:
    """A run's directory, a file that pytest-benchmark wrote, or a saved baseline.

    Raises `StoreError` for anything else, for what is damaged, and for what a newer version wrote.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(
            f"nothing at {path}; expected the directory of a run, a file that `pytest --benchmark-json` wrote, or a "
            "saved baseline"
        )
    if path.is_dir():
        return _of_run(Store.open(path))
    data = read_json(path)
    if data.get("format") == FORMAT:
        check_version(path, data.get("schema_version"))
        read = Side.from_json
    elif "benchmarks" in data and "machine_info" in data:
        read = _of_benchmarks
    else:
        raise StoreError(
            f"{path} is neither a saved baseline nor what pytest-benchmark wrote; expected one of them, as "
            "`scaling check --save` or `pytest --benchmark-json` writes it"
        )
    try:
        return read({"name": path.stem, **data})
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error}); write it again") from error


def _of_run(store: Store) -> Side:
    manifest = store.manifest
    if not {"config", "cells"} <= manifest.keys():
        raise StoreError(f"{store.path} holds no run of measurements; expected one that `scaling run` made")
    rows = store.frame()
    if rows.empty:
        raise StoreError(f"{store.path} has no row yet; measure it with `scaling run --resume --out {store.path}`")
    worth = timed(rows)
    found = {cell["cell_id"]: cell for cell in manifest["cells"]}
    measured: dict[str, Measured] = {}
    for key in found:
        of_cell = rows[rows["cell_id"] == key]
        if not of_cell.empty:
            seconds = worth[worth["cell_id"] == key]["device_seconds_per_trace"]
            measured[key] = _cell(key, of_cell, tuple(float(s) for s in seconds))
    model = manifest["model"]
    config = {name: value for name, value in manifest["config"].items() if name not in _NOT_MEASURED}
    config |= {"model": model["name"], "weights": model["digest"] or model["weights"]}
    config |= {"device": manifest["cells"][0]["device"]}
    return Side(store.path.resolve().name, "run", config, manifest["fingerprint_id"], measured)


def lacking(path: Path) -> int:
    """How many rows a run was begun for and has not; none of a file."""
    if not path.is_dir():
        return 0
    store = Store.open(path)
    cells = {cell["cell_id"] for cell in store.manifest["cells"]}
    planned = {(cell, repeat) for cell in cells for repeat in range(store.manifest["config"]["repeats"])}
    return len(planned - store.done())


def _cell(key: str, rows: DataFrame, seconds: tuple[float, ...]) -> Measured:
    """A cell, from the rows of its repeats."""
    one = rows.iloc[0]
    label = environment_label(one["environment"], **{name: _given(one[name]) for name in LABELLED})
    label += "" if one["phase"] == "sync" else f" at {format_tokens(int(one['mean_thinking_tokens']))} tokens"
    label += f", {one['phase']}" + (", profiled" if one["method"] == "profile" else "")
    failed, fine = rows[rows["status"] != "ok"], rows[rows["status"] == "ok"]
    status, reason = "ok", None
    if len(failed):
        status = str(failed["status"].iloc[0])
        reason = f"{len(failed)} of {len(rows)} repeats: {failed['reason'].iloc[0]}"
    peaks = fine[fine["memory_valid"] & (fine["memory_method"] == ALLOCATED)]["peak_memory_bytes"]
    return Measured(key, label, status, reason, _counters(fine), float(peaks.max()) if len(peaks) else None, seconds)


def _counters(rows: DataFrame) -> dict[str, float]:
    """What every repeat agrees on, of the columns that are deterministic where the row comes from."""
    if rows.empty:
        return {}
    one = rows.iloc[0]
    names = [*WORK, *COST]
    if one["method"] == "profile":
        names.remove(_NOT_OF_A_PROFILE)
    if one["engine"] == "openai":
        names = [name for name in names if name not in _NOT_OF_A_SERVER]
    columns = {name: name for name in names} | {"flops": f"flops_{one['flops_convention']}"}
    if one["engine"] == "simulated":
        columns["wall_seconds"] = PLANNED_SECONDS
    found: dict[str, float] = {}
    for column, name in columns.items():
        values = rows[column]
        if values.notna().all() and same(values.min(), values.max()):
            found[name] = _number(values.iloc[0])
    return found


def same(one: float, other: float) -> bool:
    """Whether two counts are equal; of seconds, and beyond 2⁵³, to a part in 10⁹: sums of floats round."""
    exact = float(one).is_integer() and float(other).is_integer() and max(abs(one), abs(other)) < 2**53
    return one == other if exact else math.isclose(one, other, rel_tol=1e-9)


def _of_benchmarks(data: Mapping[str, Any]) -> Side:
    machine = data["machine_info"]
    cpu = machine.get("cpu", {})
    told = {name: machine.get(name) for name in _MACHINE}
    told |= {"cpu": cpu.get("brand_raw") or machine.get("processor"), "processors": cpu.get("count")}
    id = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    measured = (
        Measured(
            key=str(each["fullname"]),
            label=str(each["name"]),
            status="ok",
            reason=None,
            counters=_numbers(each["extra_info"].items()),
            memory_bytes=None,
            seconds=_positive(each["stats"][name] for name in ("q1", "median", "q3")),
        )
        for each in data["benchmarks"]
    )
    return Side(str(data["name"]), "benchmarks", {}, id, {each.key: each for each in measured})


def _numbers(items: Iterable[tuple[str, object]]) -> dict[str, float]:
    """The numbers among some named values."""
    kept = ((name, value) for name, value in items if isinstance(value, int | float) and not isinstance(value, bool))
    return {name: _number(value) for name, value in kept if math.isfinite(value)}


def _positive(seconds: Iterable[float]) -> tuple[float, ...]:
    """Those that a clock can have measured: a round that is too short for it takes 0."""
    return tuple(float(s) for s in seconds if 0 < s < math.inf)


def _number(value: float) -> float:
    """A whole number as such, which is how JSON shows it; raises `ValueError` for what is no number."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no count")
    return cast(float, int(value)) if float(value).is_integer() else float(value)


def _given(value: Any) -> Any:
    """None for what a row leaves out."""
    import pandas as pd

    return None if pd.isna(value) else value

"""One run from its configuration to its rows: model, engine, plan, manifest, sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from scaling.engines.base import Limits
from scaling.errors import StoreError, UsageError, unknown
from scaling.lengths import parse_lengths
from scaling.measure.cells import OPENAI, SIMULATED, VLLM, RunConfig
from scaling.measure.fingerprint import config_hash, fingerprint, fingerprint_id
from scaling.measure.machine import probe_machine
from scaling.measure.plan import PlannedCell, plan
from scaling.measure.served import build_served, plan_served, served_by, served_device, served_source
from scaling.measure.simulation import build_simulation, simulated_device, simulated_limits
from scaling.measure.subject import Subject, build_subject, device_kind, has_gpu, torch_device
from scaling.measure.sweep import Progress, Sweep
from scaling.measure.vllm import build_vllm
from scaling.models import Source, resolve
from scaling.predict.shape import Shape
from scaling.results import Store
from scaling.thinking import Delethink, check_options


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is about to start: what it measures and how long that should take.

    `machine` is empty where a server runs the model: it cannot be probed.
    """

    config: RunConfig
    source: Source
    device: str
    planned: list[PlannedCell]
    fingerprint: dict[str, Any]
    machine: dict[str, Any]

    @property
    def expected_seconds(self) -> float | None:
        """Of all repeats; None where that cannot be known."""
        seconds = [p.seconds for p in self.planned if p.seconds is not None]
        return self.config.repeats * sum(seconds) if len(seconds) == len(self.planned) else None


Part = Callable[[list[PlannedCell]], list[PlannedCell]]
"""Which of a run's cells one of its writers measures."""


def whole(planned: list[PlannedCell]) -> list[PlannedCell]:
    """All cells: the part of a run's only writer."""
    return planned


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run, or of a part of it: the store of the whole run, the rows that it has when it is finished,
    how many rows of the part say why they failed, and a line for each writer that died."""

    store: Store
    total: int
    failed: int
    died: tuple[str, ...] = ()


ENGINE_OPTIONS = {
    SIMULATED: {"gpu"},
    VLLM: {"tensor_parallel", "prefix_caching"},
    OPENAI: {
        "base_url",
        "served_model",
        "devices",
        "tensor_parallel",
        "data_parallel",
        "deadline",
        "key_variable",
    },
}
"""What goes with one engine alone."""


def configure(given: Mapping[str, Any], *, iterations: int | None = None, like: Path | None = None) -> RunConfig:
    """The configuration of a run: what is `given` (fields of `RunConfig`), over that of the run `like`, or over the
    defaults of the model and the device.

    `iterations` sets the one length instead: Delethink's budget at so many. `tiny`'s context size is 1024, so that a
    laptop sees many chunks; the state is half the context.
    """
    if like is not None:
        base = config_of(Store.open(like)).to_json()
    else:
        if given.get("engine") == OPENAI and "model" not in given:
            raise UsageError("which model does the server run? give --model: a built-in name, or its directory here")
        gpu = given.get("engine") in (SIMULATED, OPENAI) or has_gpu()
        model = given.get("model", "r1-distill-qwen-1.5b" if gpu else "tiny")
        base = {
            "model": model,
            "lengths": tuple(parse_lengths("1k..96k" if model == "tiny" else "8k..96k")),
            "dtype": "bfloat16" if gpu else "float32",
            "context_size": 1024 if model == "tiny" else 8192,
            "concurrency": 32 if gpu else 2,
        }
    merged = {**base, **given}
    if "state_size" not in given and (like is None or "context_size" in given):
        merged["state_size"] = merged["context_size"] // 2
    if "traces" not in given and (like is None or "concurrency" in given):
        merged["traces"] = merged["concurrency"]
    if {"tensor_parallel", "data_parallel"} & given.keys() and "devices" not in given:
        merged.pop("devices", None)  # those of the run `like` were placed otherwise
    if base.get("engine") != merged.get("engine"):  # than the run `like`, whose own options say nothing here
        for name in set().union(*ENGINE_OPTIONS.values()) - set(given):
            merged.pop(name, None)
    config = RunConfig.from_json(merged)
    check_options(config.modes, given)
    if iterations is None:
        return config
    if "lengths" in given:
        raise UsageError("iterations and lengths both set the thinking tokens; give one of them")
    budget = Delethink(config.context_size, config.state_size, iterations, config.head, config.carryover).budget
    return replace(config, lengths=(budget,))


def run(
    *,
    out: Path | str | None = None,
    iterations: int | None = None,
    like: Path | str | None = None,
    observe: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> Store:
    """Measures, as `scaling run` does, and returns the store of the rows.

    `options` are the fields of `RunConfig`; `lengths` may be text such as "1k..8k". `store.frame()` is a DataFrame
    with a row a repeat.
    """
    if isinstance(options.get("lengths"), str):
        options["lengths"] = tuple(parse_lengths(options["lengths"]))
    if unknown_options := set(options) - {f.name for f in fields(RunConfig)}:
        raise unknown("option", sorted(unknown_options)[0], [f.name for f in fields(RunConfig)])
    prepared = prepare(configure(options, iterations=iterations, like=Path(like) if like else None))
    return execute(prepared, Path(out) if out else default_directory(prepared.config), observe=observe).store


def default_directory(config: RunConfig) -> Path:
    """runs/<time>-<model>."""
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{Path(config.model).name}"


def located(config: RunConfig) -> tuple[RunConfig, Source]:
    """The configuration with the whole path of its checkpoint, so that it resumes from anywhere; and its model."""
    source = served_source(config.model) if config.engine == OPENAI else resolve(config.model, weights=False)
    return (config if source.path is None else replace(config, model=str(source.path.resolve()))), source


def prepare(config: RunConfig) -> Prepared:
    """Plans a run without building its model: costs every cell analytically, on a machine that is probed for a second
    unless it is simulated. What a server will take is not foreseen; whether it answers is seen."""
    config, source = located(config)
    if config.engine == OPENAI:
        return _prepare_served(config, source)
    shape = Shape.from_config(source.config)
    here = fingerprint()
    training = None
    if config.engine == SIMULATED:
        gpu, name = simulated_device(config)
        kind, machine, training = name, gpu.serving, gpu.training
    else:
        kind, machine = device_kind(), probe_machine(torch_device(), config.dtype)
        name = kind if has_gpu() else f"{here['hardware']['cpu']}, {here['software']['torch_threads']} threads"
    planned = plan(
        replace(config, model=source.name),
        shape,
        machine,
        weights=source.digest or source.weights,
        device=kind,
        training=training,
    )
    if config.engine == SIMULATED:
        simulated_limits(config, shape, [p.cell for p in planned])  # refuses what does not fit before anything starts
    longest = max(p.cell.peak_context for p in planned)
    if source.weights == "checkpoint" and longest > shape.max_positions:
        raise UsageError(
            f"these cells reach a context of {longest} tokens, but {source.name} was trained for "
            f"{shape.max_positions}; shorten --lengths or --context-size"
        )
    return Prepared(config, source, name, planned, here, machine.to_json())


def _prepare_served(config: RunConfig, source: Source) -> Prepared:
    found = served_by(config)
    kind = served_device(config, found)
    named = replace(config, model=source.name)
    planned = plan_served(named, Shape.from_config(source.config), source, found, device=kind)
    return Prepared(config, source, kind, planned, _fingerprint(config, found), {})


def _fingerprint(config: RunConfig, served: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a run is measured on, the server that runs the model included."""
    here = fingerprint()
    if config.engine == OPENAI:
        here["software"]["server"] = served or served_by(config)
    return here


def execute(
    prepared: Prepared,
    out: Path,
    *,
    part: Part = whole,
    shared: bool = False,
    observe: Callable[[Progress], None] = lambda _: None,
    command: str | None = None,
) -> Outcome:
    """Measures a part of a prepared run into a new directory `out`.

    With `shared`, others may begin the same run there at the same moment: the first of them writes the manifest, and
    the rest follow it.
    """
    subject = _subject(prepared.config, prepared.source, prepared.planned)
    prepared.fingerprint["surroundings"]["attention"]["engine"] = subject.attention
    manifest = {
        "config": prepared.config.to_json(),
        "config_hash": config_hash(prepared.config.to_json()),
        "device": prepared.device,
        "cells": [{**p.cell.to_json(), "expected_seconds": p.seconds} for p in prepared.planned],
        "model": prepared.source.record(),
        "machine": prepared.machine,
        "fingerprint": prepared.fingerprint,
        "fingerprint_id": fingerprint_id(prepared.fingerprint),
        "profile_limits": asdict(subject.profile_limits),
        "served": subject.served,
        "command": command,
    }
    store = Store.create(out, manifest, join=shared)
    check_same(store, prepared.config)
    _check_comparable(store, prepared.fingerprint, prepared.source)
    planned = planned_cells(store)
    if [p.cell for p in planned] != [p.cell for p in prepared.planned]:  # `auto` foresaw another speed there
        raise StoreError(f"{out} was begun a moment ago with other cells than are planned here; run this part again")
    subject.profile_limits = Limits(**store.manifest["profile_limits"])
    return _sweep(store, prepared.config, subject, part(planned), observe)


def resume(out: Path, *, part: Part = whole, observe: Callable[[Progress], None] = lambda _: None) -> Outcome:
    """Goes on with a part of the run in `out` as its manifest says; what it has already is kept.

    Raises `StoreError` where the machine, the versions or the weights differ from those that it began with: rows of
    one run must be comparable.
    """
    store = Store.open(out)
    config = config_of(store)
    planned = planned_cells(store)
    _, source = located(config)
    _check_comparable(store, _fingerprint(config), source)
    if not missing(store, part(planned)):
        return outcome(store, part(planned))
    subject = _subject(config, source, planned)
    subject.profile_limits = Limits(**store.manifest["profile_limits"])
    return _sweep(store, config, subject, part(planned), observe)


def config_of(store: Store) -> RunConfig:
    """The configuration of a run of measurements; raises `StoreError` for a run of another kind."""
    if not {"config", "cells"} <= store.manifest.keys():
        raise StoreError(f"{store.path} holds no run of measurements; expected one that `scaling run` made")
    return RunConfig.from_json(store.manifest["config"])


def planned_cells(store: Store) -> list[PlannedCell]:
    """All cells of a run."""
    return [PlannedCell.from_json(cell) for cell in store.manifest["cells"]]


def missing(store: Store, planned: list[PlannedCell]) -> set[tuple[str, int]]:
    """(cell_id, repeat) of the rows that these cells still lack."""
    repeats = range(store.manifest["config"]["repeats"])
    return {(p.cell.id, repeat) for p in planned for repeat in repeats} - store.done()


def outcome(store: Store, part: list[PlannedCell], died: Sequence[str] = ()) -> Outcome:
    """What came of a part of a run."""
    frame = store.frame()
    failed = frame["cell_id"].isin([p.cell.id for p in part]) & (frame["status"] != "ok")
    total = store.manifest["config"]["repeats"] * len(store.manifest["cells"])
    return Outcome(store, total, int(failed.sum()), tuple(died))


def check_same(store: Store, config: RunConfig) -> None:
    """Raises `StoreError`, naming a difference, unless the run in `store` measures what `config` says."""
    there = config_of(store)
    for name, here in asdict(config).items():
        if (other := getattr(there, name)) != here:
            raise StoreError(
                f"{store.path} is another run: its {name} is {other}, here it is {here}; give another --out"
            )


def _check_comparable(store: Store, found: dict[str, Any], source: Source) -> None:
    out, began, here = store.path, store.manifest["fingerprint_id"], fingerprint_id(found)
    if began != here:
        raise StoreError(
            f"{out} was begun on another machine or with other versions (fingerprint {began}, here {here}); "
            f"start a new run with --from {out}"
        )
    if source.digest != store.manifest["model"]["digest"]:
        name = store.manifest["config"]["model"]
        raise StoreError(f"{out} was begun with other weights of {name}; start a new run with --from {out}")


def _subject(config: RunConfig, source: Source, planned: list[PlannedCell]) -> Subject:
    cells = [p.cell for p in planned]
    if config.engine == SIMULATED:
        return build_simulation(config, Shape.from_config(source.config), cells)
    if config.engine == OPENAI:
        return build_served(config, source)
    return (build_vllm if config.engine == VLLM else build_subject)(config, source, cells)


def _sweep(
    store: Store,
    config: RunConfig,
    subject: Subject,
    planned: list[PlannedCell],
    observe: Callable[[Progress], None],
) -> Outcome:
    sweep = Sweep(
        subject,
        planned,
        store,
        repeats=config.repeats,
        seed=config.seed,
        device_name=store.manifest["device"],
        fingerprint_id=store.manifest["fingerprint_id"],
        observe=observe,
    )
    try:
        sweep.run()
    finally:
        subject.engine.close()
    return outcome(store, planned)

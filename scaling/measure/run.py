"""One run from its configuration to its rows: model, engine, plan, manifest, sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from scaling.thinking import Delethink


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run: its store, and how many of its repeats are rows that say why they failed."""

    store: Store
    total: int
    failed: int


ENGINE_OPTIONS = {
    SIMULATED: {"gpu"},
    VLLM: {"tensor_parallel", "prefix_caching"},
    OPENAI: {"base_url", "served_model", "devices"},
}
"""What goes with one engine alone."""


def configure(given: Mapping[str, Any], *, iterations: int | None = None, like: Path | None = None) -> RunConfig:
    """The configuration of a run: what is `given` (fields of `RunConfig`), over that of the run `like`, or over the
    defaults of the model and the device.

    `iterations` sets the one length instead: Delethink's budget at so many. `tiny`'s context size is 1024, so that a
    laptop sees many chunks; the state is half the context.
    """
    if like is not None:
        base = dict(Store.open(like).manifest["config"])
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
    for engine, own in ENGINE_OPTIONS.items():
        if merged.get("engine") != engine:
            for name in own - set(given):
                merged.pop(name, None)  # of the run `like`, which had another engine
    config = RunConfig.from_json(merged)
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


def prepare(config: RunConfig) -> Prepared:
    """Plans a run without building its model: costs every cell analytically, on a machine that is probed for a second
    unless it is simulated. What a server will take is not foreseen; whether it answers is seen."""
    if config.engine == OPENAI:
        return _prepare_served(config)
    source = resolve(config.model, weights=False)
    if source.path is not None:
        config = replace(config, model=str(source.path.resolve()))  # so that it resumes from anywhere
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


def _prepare_served(config: RunConfig) -> Prepared:
    source = served_source(config.model)
    if source.path is not None:
        config = replace(config, model=str(source.path.resolve()))
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
    prepared: Prepared, out: Path, *, observe: Callable[[Progress], None] = lambda _: None, command: str | None = None
) -> Outcome:
    """Measures a prepared run into a new directory `out`."""
    subject = _subject(prepared.config, prepared.source, prepared.planned)
    store = Store.create(
        out,
        {
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
        },
    )
    return _sweep(store, prepared.config, subject, prepared.planned, observe)


def resume(out: Path, *, observe: Callable[[Progress], None] = lambda _: None) -> Outcome:
    """Goes on with the run in `out` as its manifest says; what it has already is kept.

    Raises `StoreError` where the machine, the versions or the weights differ from those that it began with: rows of
    one run must be comparable.
    """
    store = Store.open(out)
    config = RunConfig.from_json(store.manifest["config"])
    here = fingerprint_id(_fingerprint(config))
    if store.manifest["fingerprint_id"] != here:
        raise StoreError(
            f"{out} was begun on another machine or with other versions (fingerprint "
            f"{store.manifest['fingerprint_id']}, here {here}); start a new run with --from {out}"
        )
    planned = [PlannedCell.from_json(cell) for cell in store.manifest["cells"]]
    source = served_source(config.model) if config.engine == OPENAI else resolve(config.model, weights=False)
    if source.digest != store.manifest["model"]["digest"]:
        raise StoreError(f"{out} was begun with other weights of {config.model}; start a new run with --from {out}")
    subject = _subject(config, source, planned)
    subject.profile_limits = Limits(**store.manifest["profile_limits"])
    return _sweep(store, config, subject, planned, observe)


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
    frame = store.frame()
    return Outcome(store, sweep.total, int((frame["status"] != "ok").sum()))

"""What a step leaves behind: a line of metrics, and its phases as rows of the results' schema."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.errors import StoreError, UsageError
from scaling.files import appearing
from scaling.measure.cells import Cell
from scaling.measure.fingerprint import fingerprint_id
from scaling.measure.full import Measurement
from scaling.measure.rows import FLOPS_CONVENTION, Context, build_row
from scaling.measure.subject import device_kind
from scaling.measure.telemetry import Telemetry
from scaling.packing import Batch
from scaling.predict import hardware
from scaling.predict.shape import Shape
from scaling.results import Phase, Row
from scaling.rollout import Trace
from scaling.thinking import Environment
from trainer.checkpoint import cannot_write
from trainer.recipe import Recipe

FILE = "metrics.jsonl"


@dataclass(slots=True)
class Phases:
    """Seconds of each phase of one step; a phase entered twice adds up."""

    device: str
    seconds: dict[Phase, float] = field(default_factory=dict)
    watched: dict[Phase, tuple[Telemetry, float]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        started = time.time()
        with Telemetry(self.device) as telemetry:
            start = self._now()
            yield
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self._now() - start
        self.watched[phase] = telemetry, started

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over the response tokens of a micro-batch before the step's updates: entropies in nats, and differences
    between the log-probabilities of trainer and engine."""

    tokens: int = 0
    entropy: float = 0.0
    difference: float = 0.0
    largest_difference: float = 0.0

    @classmethod
    def of(cls, batch: Batch, old: Tensor, entropy: Tensor) -> Score:
        if not batch.counted:
            return cls()
        gap = (old - batch.behaviour).abs()
        return cls(len(gap), float(entropy.double().sum()), float(gap.sum()), float(gap.max()))


def summary(scores: Sequence[Score]) -> dict[str, float | None]:
    """The scores of all micro-batches of a step in a line of metrics; nulls where nothing was trained on."""
    tokens = sum(score.tokens for score in scores)
    return {
        "entropy": sum(score.entropy for score in scores) / tokens if tokens else None,
        "logprob_difference": max(score.largest_difference for score in scores) if tokens else None,
        "mean_logprob_difference": sum(score.difference for score in scores) / tokens if tokens else None,
    }


def rows_of(
    recipe: Recipe,
    environment: Environment,
    shape: Shape,
    fingerprint: dict[str, Any],
    devices: int,
    step: int,
    phases: Phases,
    passed: Mapping[Phase, Sequence[Trace]],
) -> list[Row]:
    """One row a phase, the step as its repeat; tokens and FLOPs are those of the traces as they really were.

    `passed`: the traces that each phase put through a model, one as often as it did; what values took is not in it.
    Rows are of the traces that were rolled out, whatever became of them.
    """
    traces = passed["rollout"]
    thought = sum(trace.thinking_tokens for trace in traces) / len(traces)
    prompt = round(sum(len(trace.query) for trace in traces) / len(traces))
    segments = {
        phase: [s for t in some for s in environment.schedule(len(t.query), t.response_lengths)]
        for phase, some in passed.items()
    }
    flops = {
        "rollout": shape.rollout_flops(segments["rollout"], FLOPS_CONVENTION),
        "logprob": shape.logprob_flops(segments["logprob"], FLOPS_CONVENTION),
        "update": shape.update_flops(segments["update"], FLOPS_CONVENTION, recompute=recipe.checkpoint_activations),
    }
    context = Context(shape, str(fingerprint["hardware"]["device"]), devices, fingerprint_id(fingerprint))
    rows = []
    for phase, seconds in phases.seconds.items():
        telemetry, started = phases.watched[phase]
        cell = Cell(
            model=recipe.model,
            weights="checkpoint",
            engine=recipe.engine,
            device=device_kind(),
            weight_dtype="float32",
            activation_dtype=recipe.dtype,
            kv_dtype=recipe.dtype,
            environment=environment.name,
            parameters=tuple(environment.parameters().items()),
            prompt_tokens=prompt,
            thinking_tokens=max(1, round(thought)),
            phase=phase,
            concurrency=min(devices * recipe.concurrency, len(traces)),
            traces=len(traces),
            method="full",
        )
        measured = Measurement(
            wall_seconds=seconds,
            elapsed_seconds=seconds,
            processed_tokens=sum((s.prefill if phase == "rollout" else s.prompt) + s.steps for s in segments[phase]),
            actual_thinking_tokens=None if phase == "sync" else thought,
            chunks=None if phase == "sync" else len(segments["rollout"]),
        )
        row = build_row(cell, step, recipe.seed, started, context, telemetry, measured)
        rows.append(replace(row, flops=flops.get(phase), data_parallel=devices))
    return rows


def utilisation(rows: Sequence[Row]) -> float | None:
    """Model FLOPs utilisation of the step, where the datasheet of the device is known."""
    try:
        peak = hardware.gpu(rows[0].device).flops_per_s.get(rows[0].activation_dtype)
    except UsageError:
        return None
    seconds = sum((row.wall_seconds or 0.0) * row.devices for row in rows)
    return sum(row.flops or 0.0 for row in rows) / seconds / peak if peak else None


class Metrics:
    """`metrics.jsonl` of a run, a line a step, and TensorBoard's events where that is installed."""

    def __init__(self, run: Path, done: int) -> None:
        """Lines after step `done` belong to steps that will be made again, and go."""
        self.path = run / FILE
        kept = [line for line in read(run) if line["step"] <= done]
        try:
            with appearing(self.path, replace=True) as pending:
                pending.write_text("".join(json.dumps(line) + "\n" for line in kept))
        except OSError as error:
            raise cannot_write(self.path, error, "checkpoints are whole") from None
        self._board = _tensorboard(run / "tensorboard", done)

    def append(self, line: dict[str, Any]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error, "checkpoints are whole") from None
        if self._board is not None:
            for name, value in line.items():
                for number, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
                    if isinstance(each, int | float):
                        self._board.add_scalar(name if number is None else f"{name}/{number}", each, line["step"])

    def close(self) -> None:
        """Writes what TensorBoard's writer still holds, which is up to two minutes of events."""
        if self._board is not None:
            self._board.close()


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, a last one that a kill cut short left out; raises `StoreError` for a damaged one."""
    path = run / FILE
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        if line.endswith("\n"):
            try:
                step = json.loads(line)
                sound = isinstance(step, dict) and isinstance(step.get("step"), int)
            except ValueError:
                sound = False
            if not sound:
                raise StoreError(f"{path}, line {number} is damaged; take it out to go on")
            found.append(step)
    return found


def _tensorboard(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)

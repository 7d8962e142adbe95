"""What a simulated run simulates: one GPU at the rates that engines get out of its datasheet, on a virtual clock."""

from __future__ import annotations

import time
from collections.abc import Sequence

from scaling.engines.base import Limits
from scaling.engines.simulated import SimulatedEngine
from scaling.errors import UsageError
from scaling.measure.cells import Cell, RunConfig
from scaling.measure.full import Measurement
from scaling.measure.plan import expected_seconds
from scaling.measure.subject import Subject
from scaling.predict import hardware
from scaling.predict.efficiency import device
from scaling.predict.memory import kv_bytes, serving
from scaling.predict.roofline import Precision, Roofline
from scaling.predict.setup import Device, Setup
from scaling.predict.shape import Shape


def simulated_device(config: RunConfig) -> tuple[Device, str]:
    """The GPU to simulate, and what rows call it; raises `UsageError` for an unknown one."""
    gpu = hardware.gpu(config.gpu or "")
    return device(gpu, config.dtype, 1), f"{gpu.title} (simulated)"


def simulated_limits(config: RunConfig, shape: Shape, cells: Sequence[Cell]) -> Limits:
    """What fits on the GPU, paged: `kv_memory` bytes of keys and values, or what `memory.serving` leaves for them.

    Memory is counted in tokens, each as big as one of the longest cell's sequence on average: a window makes it
    smaller. Raises `UsageError` where the weights leave no room.
    """
    gpu, _ = simulated_device(config)
    precision = Precision.of(config.dtype)
    setup = Setup(gpu, gpus=1, max_sequences=config.concurrency, precision=precision)
    free = serving(shape, setup, 1).kv
    longest = max(cell.peak_context for cell in cells)
    tokens = int(min(config.kv_memory or free, free) * longest / kv_bytes(shape, longest, precision, 1))
    if tokens < 1:
        raise UsageError(
            f"{shape.weight_bytes(config.dtype) / 1e9:.0f} GB of {config.dtype} weights leave no room for keys and "
            f"values on one {config.gpu} ({setup.usable_bytes / 1e9:.0f} GB used); `scaling plan` prices several GPUs"
        )
    return Limits(tokens, config.concurrency, longest)


def build_simulation(config: RunConfig, shape: Shape, cells: Sequence[Cell]) -> Subject:
    """A simulated engine for these cells; training phases are priced as `scaling run --dry-run` does."""
    gpu, _ = simulated_device(config)
    limits = simulated_limits(config, shape, cells)
    engine = SimulatedEngine(Roofline(shape, gpu.serving, Precision.of(config.dtype)), limits, admission="paged")

    def train(cell: Cell, _seed: int) -> Measurement:
        started = time.perf_counter()
        return Measurement(
            wall_seconds=expected_seconds(cell, shape, gpu.training),
            elapsed_seconds=time.perf_counter() - started,
            processed_tokens=0
            if cell.phase == "sync"
            else cell.traces * sum(s.prompt + s.steps for s in cell.segments),
            actual_thinking_tokens=None if cell.phase == "sync" else float(cell.thinking_tokens),
            chunks=None if cell.phase == "sync" else cell.traces * len(cell.segments),
        )

    return Subject(shape, "cpu", engine, engine, limits, train)

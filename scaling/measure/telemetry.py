"""Watches a measurement from inside its process: memory, energy, and whether the machine was ours alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from scaling.errors import first_line
from scaling.measure.gpu import GpuUse, Watches
from scaling.measure.occupancy import Occupancy
from scaling.results import ALLOCATED

__all__ = ["SAMPLE_SECONDS", "Occupancy", "Telemetry"]

SAMPLE_SECONDS = 0.2  # waking up oftener was seen to slow small two-thread kernels by more than a hundredth

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Telemetry:
    """`with Telemetry(device) as t: …` around what runs on `gpus` GPUs, where `device` is one; then, after the block:

    `seconds`, `cpu_seconds`, `seconds_valid` with `seconds_reason`: as `Occupancy` finds them.
    `baseline_memory_bytes`, `peak_memory_bytes` by `memory_method`: this process's resident set (the kernel's
    high-water mark, which the block resets, so blocks must not be nested; samples where there is none), or on CUDA
    what torch's allocator handed out. Where the model is `apart`, in other processes, it is what is in use on the GPUs,
    by their driver; null without one. `energy_joules` of the GPUs, or null with `energy_reason`. `gpu`: all that their
    driver said, null without one; it may make `seconds_valid` false too. `sampler_cpu_seconds`: what watching cost.

    On CUDA the window begins and ends synchronised: what was queued before is not in it, what was queued in it is.
    """

    seconds: float
    cpu_seconds: float
    seconds_valid: bool
    seconds_reason: str | None
    baseline_memory_bytes: int
    peak_memory_bytes: int | None
    memory_method: str
    energy_joules: float | None
    energy_reason: str | None
    gpu: GpuUse | None
    sampler_cpu_seconds: float

    _kernel_keeps_peak: bool
    _seen_bytes: int
    _watches: Watches | None
    _occupancy: Occupancy

    def __init__(self, device: str, *, gpus: int = 1, apart: bool = False) -> None:
        self.device, self.gpus, self.apart = device, gpus, apart
        self.gpu = None
        self.sampler_cpu_seconds = 0.0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        if self.device == "cpu":
            self._kernel_keeps_peak = _reset_peak()
            sampled = f"resident set sampled every {SAMPLE_SECONDS * 1000:.0f} ms"
            self.memory_method = "resident set, the kernel's high-water mark" if self._kernel_keeps_peak else sampled
            self.baseline_memory_bytes = self._process.memory_info().rss
        else:
            import torch

            self.memory_method = "in use on the GPUs, by their driver" if self.apart else ALLOCATED
            torch.cuda.reset_peak_memory_stats(self.device)
            self.baseline_memory_bytes = torch.cuda.memory_allocated(self.device)
            self._watch_gpus()
        self._seen_bytes = self.baseline_memory_bytes
        self._occupancy = Occupancy(self.device, gpus=0)
        self._occupancy.start()
        if self.device == "cpu" and not self._kernel_keeps_peak:
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device != "cpu":
            _synchronise(self.device)
        self._occupancy.stop()
        self.seconds, self.cpu_seconds = self._occupancy.seconds, self._occupancy.cpu_seconds
        self.seconds_valid, self.seconds_reason = self._occupancy.verdict()
        if self.device == "cpu":
            if self._kernel_keeps_peak:
                seen = _kernel_peak()
            else:
                self._done.set()
                self._sampler.join()
                seen = self._process.memory_info().rss
            self.peak_memory_bytes = None if self.apart else max(self._seen_bytes, seen)
            self.energy_joules, self.energy_reason = None, "no energy counter on a CPU"
        else:
            import torch

            if self._watches is not None:
                self._judge(self._watches)
            told = self.gpu.peak_memory_bytes if self.gpu else None
            self.peak_memory_bytes = told if self.apart else torch.cuda.max_memory_allocated(self.device)

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._seen_bytes = max(self._seen_bytes, self._process.memory_info().rss)
        self.sampler_cpu_seconds = time.thread_time()

    def _watch_gpus(self) -> None:
        self._watches, self.energy_joules = None, None
        try:
            self._watches = Watches(self.device, self.gpus)
        except Exception as error:  # NVML's errors are its own; energy is never worth a measurement
            self.energy_reason = f"no energy counter: {first_line(error)}"
        _synchronise(self.device)
        if self._watches is not None:
            self._watches.start()

    def _judge(self, watches: Watches) -> None:
        watches.stop()
        self.gpu = watches.use()
        self.sampler_cpu_seconds = watches.cpu_seconds
        self.energy_joules, self.energy_reason = self.gpu.energy_joules, self.gpu.energy_reason
        if self.gpu.seconds_reason and self.seconds_valid:
            self.seconds_valid, self.seconds_reason = False, self.gpu.seconds_reason


def _synchronise(device: str) -> None:
    import torch

    torch.cuda.synchronize(device)


def _reset_peak() -> bool:
    """Sets the kernel's high-water mark of our resident set to what it is now; False where the kernel has none."""
    try:
        _RESET.write_text("5")
        return _kernel_peak() > 0
    except OSError:
        return False


def _kernel_peak() -> int:
    lines = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0

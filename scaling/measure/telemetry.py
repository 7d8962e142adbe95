"""Watches a measurement from inside its process: memory, energy, and whether the machine was ours alone."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

SAMPLE_SECONDS = 0.2  # waking up oftener was seen to slow small two-thread kernels by more than a hundredth
FOREIGN_SHARE = 0.10  # of the processors we may use, by processes that are not ours, that still counts as quiet
CLOCK_SECONDS = 0.02  # the kernel books processor time in ticks of 10 ms: what two readings may be wrong by
SHORTEST_ENERGY_SECONDS = 1.0  # the driver refreshes its counter a few times a second

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_BUSY = ("user", "nice", "system", "irq", "softirq")


class Occupancy:
    """Who used the processors over one or several windows, each from `start` to `stop`.

    `seconds`, `cpu_seconds`: wall time, and processor time of this process and its children, over all windows.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._everyone = self._stolen = 0.0
        self._windows = 0
        self._process = psutil.Process()

    def start(self) -> None:
        self._before = self._clocks()

    def stop(self) -> None:
        seconds, ours, everyone, stolen = (
            now - before for now, before in zip(self._clocks(), self._before, strict=True)
        )
        self.seconds += seconds
        self.cpu_seconds += ours
        self._everyone += everyone
        self._stolen += stolen
        self._windows += 1

    def verdict(self) -> tuple[bool, str | None]:
        """Whether the processors were ours: False, and why, where others (`foreign_process`) or the hypervisor
        (`stolen`) took more than `FOREIGN_SHARE` of those that we may use."""
        processors = len(_usable())
        allowed = FOREIGN_SHARE * processors * self.seconds + CLOCK_SECONDS * processors * self._windows**0.5
        for reason, used in (("foreign_process", self._everyone - self.cpu_seconds), ("stolen", self._stolen)):
            if used > allowed:
                return False, f"{reason}: {used / (processors * self.seconds):.0%} of {processors} processors"
        return True, None

    def _clocks(self) -> tuple[float, float, float, float]:
        """Now: seconds; processor seconds of ours, and on the processors we may use of everyone and of other guests."""
        own = self._process.cpu_times()
        ours = own.user + own.system + own.children_user + own.children_system
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may have ended since it was listed
                times = child.cpu_times()
                ours += times.user + times.system
        usable = set(_usable())
        processors = [t for i, t in enumerate(psutil.cpu_times(percpu=True)) if i in usable]
        # a guest's time is in `user` already
        everyone = sum(sum(getattr(t, name, 0.0) for name in _BUSY) for t in processors)
        return time.perf_counter(), ours, everyone, sum(getattr(t, "steal", 0.0) for t in processors)


class Telemetry:
    """`with Telemetry(device) as t: …`, then, after the block:

    `seconds`, `cpu_seconds`, `seconds_valid` with `seconds_reason`: as `Occupancy` finds them.
    `baseline_memory_bytes`, `peak_memory_bytes` by `memory_method`: this process's resident set (the kernel's
    high-water mark, which the block resets, so blocks must not be nested; samples where there is none), or on CUDA
    what torch's allocator handed out. `energy_joules` of the
    GPU, or null with `energy_reason`. `sampler_cpu_seconds`: what watching itself cost.
    """

    seconds: float
    cpu_seconds: float
    seconds_valid: bool
    seconds_reason: str | None
    baseline_memory_bytes: int
    peak_memory_bytes: int
    memory_method: str
    energy_joules: float | None
    energy_reason: str | None
    sampler_cpu_seconds: float

    _kernel_keeps_peak: bool
    _joules_before: float | str | None
    _occupancy: Occupancy

    def __init__(self, device: str) -> None:
        self.device = device
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
            self._joules_before = None
        else:
            import torch

            self.memory_method = "torch.cuda.max_memory_allocated"
            torch.cuda.reset_peak_memory_stats(self.device)
            self.baseline_memory_bytes = torch.cuda.memory_allocated(self.device)
            self._joules_before = _gpu_joules(self.device)
        self.peak_memory_bytes = self.baseline_memory_bytes
        self._occupancy = Occupancy()
        self._occupancy.start()
        if self.device == "cpu" and not self._kernel_keeps_peak:
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            self.peak_memory_bytes = max(self.peak_memory_bytes, seen)
            self.energy_joules, self.energy_reason = None, "no energy counter on a CPU"
        else:
            import torch

            self.peak_memory_bytes = torch.cuda.max_memory_allocated(self.device)
            self._charge(_gpu_joules(self.device))

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_memory_bytes = max(self.peak_memory_bytes, self._process.memory_info().rss)
        self.sampler_cpu_seconds = time.thread_time()

    def _charge(self, joules: float | str) -> None:
        before = self._joules_before
        self.energy_joules, self.energy_reason = None, None
        if isinstance(joules, str):
            self.energy_reason = joules
        elif not isinstance(before, float):
            self.energy_reason = before or "no energy counter at the start"
        elif self.seconds < SHORTEST_ENERGY_SECONDS:
            self.energy_reason = f"shorter than {SHORTEST_ENERGY_SECONDS:.0f} s"
        else:
            self.energy_joules = joules - before


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


def _usable() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(psutil.cpu_count() or 1)


def _gpu_joules(device: str) -> float | str:
    """The GPU's energy counter in joules, or why there is none."""
    import torch

    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            # by UUID: torch's numbering follows CUDA_VISIBLE_DEVICES, the driver's does not
            uuid = torch.cuda.get_device_properties(device).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        finally:
            pynvml.nvmlShutdown()
    except Exception as error:  # NVML's errors are its own; energy is never worth a measurement
        return f"no energy counter: {error}"

"""Whether the machine was ours while something was measured, or other processes' or the hypervisor's other guests'."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection

import psutil

from scaling.measure.gpu import Watches

FOREIGN_SHARE = 0.10  # of the processors we may use, by processes that are not ours, that still counts as quiet
CLOCK_SECONDS = 0.02  # the kernel books processor time in ticks of 10 ms: what two readings may be wrong by

_BUSY = ("user", "nice", "system", "irq", "softirq")


class Occupancy:
    """Who used the processors over one or several windows, each from `start` to `stop`; and, of the `gpus` that a model
    on a CUDA `device` runs on, whether they were ours and at full speed when the windows began and ended.

    `seconds`, `cpu_seconds`: wall time, and processor time of this process and its children, over all windows. With
    no `gpus` their driver is not asked: somebody else watches them.
    """

    def __init__(self, device: str = "cpu", gpus: int = 1) -> None:
        self.device = device
        self.seconds = self.cpu_seconds = 0.0
        self._everyone = self._stolen = 0.0
        self._windows = 0
        self._process = psutil.Process()
        self._watches: Watches | None = None
        if device != "cpu" and gpus:
            with contextlib.suppress(Exception):  # without a driver nobody knows, as `energy_reason` says
                self._watches = Watches(device, gpus)

    def start(self) -> None:
        if self._watches is not None:
            self._watches.take()
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
        if self._watches is not None:
            self._watches.take()

    def verdict(self) -> tuple[bool, str | None]:
        """Whether the machine was ours: False, and why, where others (`foreign_process`) or the hypervisor (`stolen`)
        took more than `FOREIGN_SHARE` of the processors that we may use, or for what `examine` says of the GPUs.

        Where a GPU does the work, the processors only feed it: others, such as the workers of a run's other GPUs, are
        welcome to them as long as one processor is free."""
        reason = self._busy()
        if reason is None and self._watches is not None and self._windows:
            reason = self._watches.use().seconds_reason
        return reason is None, reason

    def _busy(self) -> str | None:
        processors = len(usable())
        allowed = FOREIGN_SHARE * processors * self.seconds + CLOCK_SECONDS * processors * self._windows**0.5
        found = [("foreign_process", self._everyone - self.cpu_seconds), ("stolen", self._stolen)]
        if self.device != "cpu" and processors * self.seconds - self._everyone - self._stolen > self.seconds:
            del found[0]
        for reason, used in found:
            if used > allowed:
                return f"{reason}: {used / (processors * self.seconds):.0%} of {processors} processors"
        return None

    def _clocks(self) -> tuple[float, float, float, float]:
        """Now: seconds; processor seconds of ours, and on the processors we may use of everyone and of other guests."""
        own = self._process.cpu_times()
        ours = own.user + own.system + own.children_user + own.children_system
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may have ended since it was listed
                times = child.cpu_times()
                ours += times.user + times.system
        ours_to_use = set(usable())
        processors = [t for i, t in enumerate(psutil.cpu_times(percpu=True)) if i in ours_to_use]
        # a guest's time is in `user` already
        everyone = sum(sum(getattr(t, name, 0.0) for name in _BUSY) for t in processors)
        return time.perf_counter(), ours, everyone, sum(getattr(t, "steal", 0.0) for t in processors)


def usable() -> Collection[int]:
    """The processors that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(psutil.cpu_count() or 1)

"""GPUs over a window: samples taken by a thread, and what they say about energy and whether the seconds are good.

A `Trace` is what a window saw, and can be kept as JSON: `{"format": "nvml-trace", "schema_version": "1.0", "uuid",
"our_pids", "samples": [{"seconds": 0.0, "energy_joules": …, …}]}` with the fields of `Sample`; a field that is absent
or null was not told. `Replay` plays one back at its own pace.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from scaling.errors import UsageError
from scaling.measure.nvml import POWER_CAP, SLOWDOWNS, Device, Sample, Source, bare, slowdowns

SAMPLE_SECONDS = 0.1  # about as often as drivers refresh power
SAMPLER_SHARE = 0.005  # of one processor that the thread may take: where samples are dear, it takes fewer
GAP_SECONDS = 0.5  # between samples, beyond which nobody knows what happened
SHORTEST_ENERGY_SECONDS = 2.0  # a counter refreshed every 0.1 s is up to 5 % wrong over these
MISMATCH = 0.05  # between the counter and integrated power, relative to the counter
THROTTLED_SHARE = 0.05  # of the window under a slowdown that is still taken for full speed

_FORMAT = "nvml-trace"


@dataclass(frozen=True, slots=True)
class Trace:
    """Samples of one GPU in order of time, and the processes that are ours."""

    uuid: str | None
    our_pids: frozenset[int]
    samples: tuple[Sample, ...]

    def save(self, path: Path) -> None:
        """Writes it as JSON, for `load` and `Replay`."""
        samples = [{k: v for k, v in asdict(sample).items() if v is not None} for sample in self.samples]
        data = {"format": _FORMAT, "schema_version": "1.0", "uuid": self.uuid, "our_pids": sorted(self.our_pids)}
        path.write_text(json.dumps({**data, "samples": samples}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Raises `UsageError` where the file is no trace, such as one without samples or with samples out of order."""
        try:
            data = json.loads(path.read_text())
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']!r}")
            if not isinstance(uuid := data.get("uuid"), str | None):
                raise ValueError(f"uuid {uuid!r}")
            samples = tuple(map(_sample, data["samples"]))
            if not samples or any(after.seconds <= before.seconds for before, after in pairwise(samples)):
                raise ValueError("samples are missing or out of order")
            return cls(uuid, frozenset(data["our_pids"]), samples)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is not a recorded trace of a GPU ({error!r}); expected {_FORMAT!r}") from None


def _sample(data: dict[str, Any]) -> Sample:
    pids = data.get("pids")
    if bad := [name for name, value in data.items() if name != "pids" and not _is_figure(value)]:
        raise ValueError(f"{bad[0]} {data[bad[0]]!r}")
    return Sample(**{**data, "pids": None if pids is None else tuple(pids)})


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


class Replay:
    """Plays a trace from the first call of `sample` on: what it recorded last by now, under its recorded time."""

    def __init__(self, trace: Trace) -> None:
        self.uuid = trace.uuid
        self._samples = trace.samples
        self._began: float | None = None

    def sample(self) -> Sample:
        now = time.perf_counter()
        self._began = now if self._began is None else self._began
        due = now - self._began + self._samples[0].seconds
        return max((s for s in self._samples if s.seconds <= due), key=lambda s: s.seconds)


def gpu_of(device: str) -> tuple[str, Source]:
    """The UUID of a torch device as torch says it, and that GPU at its driver. Raises what torch or NVML raises."""
    import torch

    # by UUID: torch's numbering follows CUDA_VISIBLE_DEVICES, the driver's does not
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid, Device(uuid, torch.device(device).index or 0)


class Watch:
    """Samples `source` in a thread of its own from `start` to `stop`, or whenever `take` is called.

    The thread takes at most `share` of one processor. `cpu_seconds` is what it took, `trace` what was seen.
    """

    def __init__(self, source: Source, share: float = SAMPLER_SHARE) -> None:
        self.cpu_seconds = 0.0
        self._source = source
        self._share = share
        self._samples: list[Sample] = []
        self._ours: frozenset[int] = frozenset()
        self._known: set[int] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)

    def start(self) -> None:
        self.take()
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        self.take()

    @property
    def trace(self) -> Trace:
        return Trace(self._source.uuid, self._ours, tuple(self._samples))

    def take(self) -> None:
        sample = self._source.sample()
        self._samples.append(sample)
        pids = set(sample.pids or ())
        if not self._ours or not pids <= self._known:  # finding children is dear: only when somebody new is there
            self._ours |= {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
            self._known |= pids

    def _run(self) -> None:
        pause = SAMPLE_SECONDS
        while not self._done.wait(pause):
            before = time.thread_time()  # not wall time, which waiting for the interpreter's lock would stretch
            self.take()
            pause = max(SAMPLE_SECONDS, (time.thread_time() - before) / self._share)
        self.cpu_seconds = time.thread_time()


class Watches:
    """A `Watch` on each of the `count` GPUs that a measurement on torch's `device` runs on, as if they were one.

    Several are the first ones that this process is shown. Raises what torch or NVML raises.
    """

    def __init__(self, device: str, count: int = 1) -> None:
        devices = [device] if count == 1 else [f"cuda:{index}" for index in range(count)]
        found = [gpu_of(each) for each in devices]
        self._watches = [(uuid, Watch(source, SAMPLER_SHARE / count)) for uuid, source in found]

    def start(self) -> None:
        for _, watch in self._watches:
            watch.start()

    def stop(self) -> None:
        for _, watch in self._watches:
            watch.stop()

    def take(self) -> None:
        for _, watch in self._watches:
            watch.take()

    @property
    def cpu_seconds(self) -> float:
        return sum(watch.cpu_seconds for _, watch in self._watches)

    def use(self) -> GpuUse:
        return together([examine(watch.trace, uuid) for uuid, watch in self._watches])


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What a window's samples say; null where the driver did not.

    `energy_joules` by the driver's counter, null with `energy_reason` where it is not to be trusted;
    `integrated_joules` from instantaneous power. `seconds_reason`: why the window's seconds are not those of a GPU that
    was ours and at full speed, or null. Clocks are means over time, shares are of the window.
    """

    energy_joules: float | None
    energy_reason: str | None
    integrated_joules: float | None
    seconds_reason: str | None
    sm_mhz: float | None
    memory_mhz: float | None
    max_temperature_celsius: int | None
    peak_memory_bytes: int | None
    throttled_share: float | None
    power_capped_share: float | None


def examine(trace: Trace, device_uuid: str) -> GpuUse:
    """Judges a trace as that of the device that torch calls `device_uuid`.

    A reason is its code, then the figures: `device_mismatch`, `foreign_process`, `throttled`, `window_too_short`,
    `sample_gap`, `energy_mismatch`; the first that holds, in this order.
    """
    samples = trace.samples
    slow = sum(SLOWDOWNS)
    throttled = _mean(samples, lambda s: None if s.clock_events is None else float(bool(s.clock_events & slow)))
    integrated = _integral(samples, lambda s: s.power_watts)
    mismatch = None
    if trace.uuid is None or bare(trace.uuid) != bare(device_uuid):
        mismatch = f"device_mismatch: torch uses {device_uuid}, the driver watched {trace.uuid or 'an unnamed one'}"
    foreign = _foreign(trace)
    slowed = None
    if throttled is not None and throttled > THROTTLED_SHARE:
        events = 0
        for sample in samples:
            events |= sample.clock_events or 0
        slowed = f"throttled: {throttled:.0%} of the window ({', '.join(slowdowns(events))})"
    reason = mismatch or foreign or _untrusted(samples, integrated)
    counted = _counted(samples)
    return GpuUse(
        energy_joules=None if reason else counted,
        energy_reason=reason,
        integrated_joules=None if mismatch else integrated,
        seconds_reason=mismatch or foreign or slowed,
        sm_mhz=_mean(samples, lambda s: s.sm_mhz),
        memory_mhz=_mean(samples, lambda s: s.memory_mhz),
        max_temperature_celsius=max(_told(s.temperature_celsius for s in samples), default=None),
        peak_memory_bytes=max(_told(s.memory_bytes for s in samples), default=None),
        throttled_share=throttled,
        power_capped_share=_mean(
            samples, lambda s: None if s.clock_events is None else float(bool(s.clock_events & POWER_CAP))
        ),
    )


def together(uses: Sequence[GpuUse]) -> GpuUse:
    """What several GPUs that ran one model did in one window, as of one GPU.

    Joules and bytes are sums, clocks means, temperature and shares those of the worst; what one does not tell is null.
    A reason is that of the first GPU that has one, and says which.
    """
    if len(uses) == 1:
        return uses[0]

    def over(join: Callable[[list[float]], float], of: Callable[[GpuUse], float | None]) -> float | None:
        told = [value for use in uses if (value := of(use)) is not None]
        return join(told) if len(told) == len(uses) else None

    def reason(of: Callable[[GpuUse], str | None]) -> str | None:
        return next((f"{why} (GPU {index})" for index, use in enumerate(uses) if (why := of(use))), None)

    def whole(number: float | None) -> int | None:
        return None if number is None else int(number)

    return GpuUse(
        energy_joules=over(sum, lambda u: u.energy_joules),
        energy_reason=reason(lambda u: u.energy_reason),
        integrated_joules=over(sum, lambda u: u.integrated_joules),
        seconds_reason=reason(lambda u: u.seconds_reason),
        sm_mhz=over(fmean, lambda u: u.sm_mhz),
        memory_mhz=over(fmean, lambda u: u.memory_mhz),
        max_temperature_celsius=whole(over(max, lambda u: u.max_temperature_celsius)),
        peak_memory_bytes=whole(over(sum, lambda u: u.peak_memory_bytes)),
        throttled_share=over(max, lambda u: u.throttled_share),
        power_capped_share=over(max, lambda u: u.power_capped_share),
    )


def _untrusted(samples: Sequence[Sample], integrated: float | None) -> str | None:
    """Why the energy counter's difference over these samples is not to be trusted; null where it is."""
    counted = _counted(samples)
    if counted is None:
        return "no energy counter"
    seconds = samples[-1].seconds - samples[0].seconds
    if seconds < SHORTEST_ENERGY_SECONDS:
        return f"window_too_short: {seconds:.2f} s of at least {SHORTEST_ENERGY_SECONDS:.0f} s"
    times = [samples[0].seconds, *(s.seconds for s in samples if s.power_watts is not None), samples[-1].seconds]
    gap = max(after - before for before, after in pairwise(times))
    if gap > GAP_SECONDS or integrated is None:
        return f"sample_gap: {gap:.2f} s without a power reading"
    if abs(counted - integrated) > MISMATCH * counted:
        return f"energy_mismatch: {counted:.1f} J counted, {integrated:.1f} J by integrated power"
    return None


def _counted(samples: Sequence[Sample]) -> float | None:
    first, last = samples[0].energy_joules, samples[-1].energy_joules
    return None if first is None or last is None else last - first


def _foreign(trace: Trace) -> str | None:
    """Whether somebody else computed on the device.

    In a container the driver may list the host's process numbers, where we cannot find ourselves: then only more
    processes than we have are surely another's.
    """
    listed = [set(sample.pids) for sample in trace.samples if sample.pids is not None]
    others = set().union(*listed) - trace.our_pids
    if not any(pids & trace.our_pids for pids in listed):
        beyond = max(map(len, listed), default=0) - len(trace.our_pids)
        return f"foreign_process: {beyond} more on the GPU than we have" if beyond > 0 else None
    return f"foreign_process: {', '.join(map(str, sorted(others)))} on the GPU" if others else None


def _told(values: Iterable[int | None]) -> Iterable[int]:
    return (value for value in values if value is not None)


def _integral(samples: Sequence[Sample], of: Callable[[Sample], float | None]) -> float | None:
    """Over time by the trapezoid rule, from the first to the last sample that tells; null unless time passed."""
    points = [(s.seconds, value) for s in samples if (value := of(s)) is not None]
    if not points or points[-1][0] <= points[0][0]:
        return None
    return sum((t1 - t0) * (v0 + v1) / 2 for (t0, v0), (t1, v1) in pairwise(points))


def _mean(samples: Sequence[Sample], of: Callable[[Sample], float | None]) -> float | None:
    """Over time, of what `of` tells."""
    times = [s.seconds for s in samples if of(s) is not None]
    total = _integral(samples, of)
    return None if total is None else total / (times[-1] - times[0])

"""Seconds of the parts of a device's work, without making it wait in between."""

from __future__ import annotations

import time
from typing import Any


class Stopwatch:
    """Starts when it is made; `lap()` ends a part of the work that has been given to `device` by then.

    On CUDA a lap's end is an event in the current stream, which the GPU stamps when it gets there: laps are its own
    seconds, and nothing waits until they are read. Elsewhere work is done when it has been given, and `perf_counter`
    stamps it.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device != "cpu"
        self._stamps: list[Any] = []
        self.lap()

    def lap(self) -> None:
        if not self._on_gpu:
            self._stamps.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._stamps.append(event)

    def laps(self) -> list[float]:
        """Seconds of each lap, once the last one is over."""
        before, after = self._stamps[:-1], self._stamps[1:]
        if not self._on_gpu:
            return [end - start for start, end in zip(before, after, strict=True)]
        self._stamps[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in zip(before, after, strict=True)]  # of milliseconds

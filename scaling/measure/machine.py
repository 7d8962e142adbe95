"""What a device sustains, measured in about a second: the rates that the roofline needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from scaling.errors import unknown
from scaling.predict.roofline import Machine
from scaling.predict.shape import DTYPE_BYTES

if TYPE_CHECKING:
    import torch

ROUNDS = 5

# (bytes far larger than any cache, side of a matrix product that takes some milliseconds)
_SIZES = {"cpu": (256 * 2**20, 1024), "cuda": (2 * 2**30, 8192)}
_CONTEXT, _HEADS, _HEAD_DIM = 8192, 4, 64


def probe_machine(device: str, dtype: str, seconds: float = 1.0) -> Machine:
    """Measures `device` ("cpu", "cuda", "cuda:1") in `dtype` ("float32", …) for about `seconds`, buffers apart.

    Four small loops, interleaved over `ROUNDS` rounds so that drift meets them all: a matrix-vector product over a
    buffer far larger than the caches, attention of one query a row over that buffer as KV, a square matrix product,
    and a mix of kernels too small to be anything but dispatch. Each rate is the median of its rounds; `spread` says
    how far they were apart. Uses the thread count that torch has. Raises `UsageError` for an unknown dtype.
    """
    import torch
    from torch.nn import functional

    if dtype not in DTYPE_BYTES:
        raise unknown("dtype", dtype, DTYPE_BYTES)
    number = getattr(torch, dtype)
    size, side = _SIZES[torch.device(device).type]

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=number, device=device)

    rows = size // (2 * _HEADS * _CONTEXT * _HEAD_DIM * DTYPE_BYTES[dtype])
    keys, values = buffer = ones(2, rows, _HEADS, _CONTEXT, _HEAD_DIM)
    query = ones(rows, _HEADS, 1, _HEAD_DIM)
    matrix, vector = buffer.view(-1, 4096), ones(4096)
    square = ones(side, side)
    small, weight, gain = ones(4, 256), ones(256, 256), ones(256)

    def dispatch() -> None:
        for _ in range(25):
            functional.rms_norm(functional.linear(small, weight) * small + small, (256,), gain)

    loops: dict[str, tuple[Callable[[], object], float]] = {  # what to run, and the work that it does
        "bandwidth_bytes_per_s": (lambda: matrix @ vector, buffer.nbytes),
        "kv_bandwidth_bytes_per_s": (
            lambda: functional.scaled_dot_product_attention(query, keys, values),
            buffer.nbytes,
        ),
        "flops_per_s": (lambda: square @ square, 2 * side**3),
        "seconds_per_kernel": (dispatch, 100),
    }
    slice_seconds = seconds / (ROUNDS * len(loops))
    found: dict[str, list[float]] = {name: [] for name in loops}
    with torch.inference_mode():
        for run, _ in loops.values():
            run()  # first-use costs: threads, handles, kernels
        for _ in range(ROUNDS):
            for name, (run, work) in loops.items():
                each = _seconds_each(run, slice_seconds, device)
                found[name].append(each / work if name == "seconds_per_kernel" else work / each)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    spread = {name: (max(rates) - min(rates)) / medians[name] for name, rates in found.items()}
    return Machine(**medians, spread=spread)


def _seconds_each(run: Callable[[], object], seconds: float, device: str) -> float:
    """Mean seconds of `run`, synchronised, over about `seconds`."""
    import torch

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start, done = now(), 0
    while True:
        run()
        done += 1
        elapsed = now() - start
        if elapsed >= seconds:
            return elapsed / done

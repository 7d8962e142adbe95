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
_HEAD_DIM = 64


def probe_machine(device: str, dtype: str, seconds: float = 1.0) -> Machine:
    """Measures `device` ("cpu", "cuda", "cuda:1") in `dtype` ("float32", …) for about `seconds`, buffers apart.

    Small loops of the embedded engine's kernels, interleaved over `ROUNDS` rounds so that drift meets them all: a
    product of four rows with a buffer far larger than the caches as weights, attention of one query a page over that
    buffer as KV, a square matrix product, and a mix of kernels too small to be anything but dispatch. Each rate is
    the median of its rounds; `spread` says how far they were apart. Uses the thread count that torch has. Raises
    `UsageError` for an unknown dtype.
    """
    import torch
    from torch.nn import functional

    from scaling.engines.kv import PAGE_TOKENS
    from scaling.linear import linear

    if dtype not in DTYPE_BYTES:
        raise unknown("dtype", dtype, DTYPE_BYTES)
    number = getattr(torch, dtype)
    size, side = _SIZES[torch.device(device).type]

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=number, device=device)

    pages = size // (2 * PAGE_TOKENS * _HEAD_DIM * DTYPE_BYTES[dtype])
    keys, values = buffer = ones(2, pages, PAGE_TOKENS, _HEAD_DIM)
    query = ones(pages, 1, _HEAD_DIM)
    weights, few = buffer.view(-1, 1024), ones(4, 1024)
    # Random, as activations are: a GPU multiplies constants faster, for they take less power.
    square = torch.randn(side, side, dtype=number, device=device)
    small, weight, gain = ones(4, 64), ones(64, 64), ones(64)

    def dispatch() -> None:
        for _ in range(25):
            functional.rms_norm(functional.linear(small, weight) * small + small, (64,), gain)

    def attend() -> torch.Tensor:
        return torch.bmm(torch.bmm(query, keys.transpose(1, 2)).softmax(-1), values)

    loops: dict[str, tuple[Callable[[], object], float]] = {  # what to run, and the work that it does
        "bandwidth_bytes_per_s": (lambda: linear(few, weights), buffer.nbytes),
        "kv_bandwidth_bytes_per_s": (attend, buffer.nbytes),
        "flops_per_s": (lambda: square @ square, 2 * side**3),
        "kernels_per_s": (dispatch, 100),
    }
    slice_seconds = seconds / (ROUNDS * len(loops))
    found: dict[str, list[float]] = {name: [] for name in loops}
    with torch.inference_mode():
        for run, _ in loops.values():
            run()  # first-use costs: threads, handles, kernels
        for _ in range(ROUNDS):
            for name, (run, work) in loops.items():
                found[name].append(work / seconds_each(run, slice_seconds, device))
    median = {name: statistics.median(rates) for name, rates in found.items()}
    return Machine(
        bandwidth_bytes_per_s=median["bandwidth_bytes_per_s"],
        kv_bandwidth_bytes_per_s=median["kv_bandwidth_bytes_per_s"],
        flops_per_s=median["flops_per_s"],
        seconds_per_kernel=1 / median["kernels_per_s"],
        spread={name: (max(rates) - min(rates)) / median[name] for name, rates in found.items()},
    )


def seconds_each(run: Callable[[], object], seconds: float, device: str) -> float:
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

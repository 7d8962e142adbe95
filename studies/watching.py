"""What does watching a GPU cost the work that is watched? The same small work with and without, in interleaved pairs.

On CUDA the driver is asked. Elsewhere a recorded trace stands in for it, which shows all but what its calls take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch

from scaling.measure.fingerprint import fingerprint
from scaling.measure.gpu import SAMPLE_SECONDS, Replay, Trace, Watch, gpu_of
from scaling.measure.nvml import Sample, Source

SCHEMA_VERSION = "1.0"
SIDES = {"cpu": 64, "cuda": 2048}  # of the matrix products: small ones feel a thread that wakes up most


def source(device: str, seconds: float) -> Source:
    """The driver's GPU, or a trace of `seconds` of a steady one that tells everything."""
    if device != "cpu":
        return gpu_of(device)[1]
    times = takewhile(lambda at: at <= seconds, (SAMPLE_SECONDS * step for step in count()))
    samples = [Sample(at, 500 * at, 500.0, 1980, 2619, 60, 2**30, 0, (os.getpid(),)) for at in times]
    return Replay(Trace("GPU-recorded", frozenset(), tuple(samples)))


def rate(device: str, seconds: float) -> float:
    """Matrix products a second over so many seconds, each one waited for."""
    side = SIDES[torch.device(device).type]
    square, done, start = torch.ones(side, side, device=device), 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        square @ square
        if device != "cpu":
            torch.cuda.synchronize(device)
        done += 1
    return done / elapsed


def run(device: str, pairs: int, seconds: float) -> dict[str, Any]:
    """Pairs of windows, every other one watched first: how their rates compare, and what the thread took."""
    rate(device, seconds)  # first-use costs
    ratios, cpu_seconds, watched_seconds, samples = [], 0.0, 0.0, 0
    for pair in range(pairs):
        rates: dict[bool, float] = {}
        for watched in (True, False) if pair % 2 else (False, True):
            if not watched:
                rates[watched] = rate(device, seconds)
                continue
            watch = Watch(source(device, seconds + 1))
            began = time.perf_counter()
            watch.start()
            rates[watched] = rate(device, seconds)
            watch.stop()
            watched_seconds += time.perf_counter() - began
            cpu_seconds += watch.cpu_seconds
            samples += len(watch.trace.samples)
        ratios.append(rates[True] / rates[False])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "schema_version": SCHEMA_VERSION,
        "device": device,
        "driver": device != "cpu",
        "pairs": pairs,
        "seconds": seconds,
        "rate_ratio": {"median": middle, "quartiles": [low, high], "all": ratios},
        "cpu_share": cpu_seconds / watched_seconds,
        "samples_per_second": samples / watched_seconds,
        "machine": fingerprint(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.watching", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a window")
    parser.add_argument("--out", type=Path, help="where to store the record, JSON")
    given = parser.parse_args(arguments)
    if given.pairs < 2 or given.seconds <= 0:
        parser.error("at least 2 pairs of more than 0 seconds")
    found = run(given.device, given.pairs, given.seconds)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    ratio = found["rate_ratio"]
    print(f"the thread took {found['cpu_share']:.2%} of one processor, {found['samples_per_second']:.1f} samples/s")
    print(
        f"watched ÷ unwatched rate: median {ratio['median']:.4f}, "
        f"half of {given.pairs} pairs between {ratio['quartiles'][0]:.4f} and {ratio['quartiles'][1]:.4f}"
    )


if __name__ == "__main__":
    main()

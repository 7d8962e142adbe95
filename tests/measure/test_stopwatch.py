"""Laps add up to what is seen from outside, and reading them is all that waits."""

import time

import pytest
import torch

from scaling.measure.stopwatch import Stopwatch


def test_laps_on_a_processor_are_what_lies_between():
    began = time.perf_counter()
    watch = Stopwatch("cpu")
    for seconds in (0.02, 0.06):
        time.sleep(seconds)
        watch.lap()
    outside = time.perf_counter() - began
    short, long = watch.laps()
    assert short >= 0.02
    assert long >= 0.06
    assert short + long <= outside
    assert watch.laps() == [short, long]


def test_without_a_lap_there_is_nothing_to_tell():
    assert Stopwatch("cpu").laps() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_laps_on_a_gpu_are_its_own_seconds_and_nothing_waits_for_them():
    square = torch.ones(4096, 4096, device="cuda")
    square @ square
    torch.cuda.synchronize()
    began = time.perf_counter()
    watch = Stopwatch("cuda")
    for times in (20, 60):
        for _ in range(times):
            square @ square
        watch.lap()
    queued = time.perf_counter() - began
    torch.cuda.synchronize()
    outside = time.perf_counter() - began
    short, long = watch.laps()
    assert queued < 0.5 * outside
    assert long == pytest.approx(3 * short, rel=0.2)
    assert short + long == pytest.approx(outside, rel=0.1)

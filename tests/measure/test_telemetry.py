"""Telemetry: real load, real memory."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from scaling.measure import telemetry as module
from scaling.measure.telemetry import SAMPLE_SECONDS, Telemetry

MIB = 2**20
SPIN = "import time\nprint('spinning', flush=True)\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"


@contextmanager
def spinning(processes: int, *, adopted_by_init: bool = False) -> Iterator[None]:
    """Processes that keep a processor busy: our children, or, started through a shell that ends, nobody's."""
    started = []
    for _ in range(processes):
        if adopted_by_init:
            shell = subprocess.run(
                ["sh", "-c", '"$0" -c "$1" >/dev/null 2>&1 & echo $!', sys.executable, SPIN],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            started.append(psutil.Process(int(shell.stdout)))
        else:
            child = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()
            started.append(psutil.Process(child.pid))
    try:
        yield
    finally:
        for process in started:
            process.kill()
        assert not psutil.wait_procs(started, timeout=5)[1]


def idle(seconds: float = 0.3) -> Telemetry:
    with Telemetry("cpu") as window:
        time.sleep(seconds)
    return window


def test_a_process_of_others_invalidates_seconds() -> None:
    with spinning(psutil.cpu_count() or 1, adopted_by_init=True), Telemetry("cpu") as window:
        time.sleep(0.6)
    assert not window.seconds_valid
    assert window.seconds_reason is not None
    assert window.seconds_reason.startswith(("foreign_process: ", "stolen: "))


def test_our_own_work_and_our_childrens_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine where nobody else runs: its processors are as busy as we and our child are."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(psutil.cpu_count() or 1)

    def busy(*, percpu: bool) -> list[SimpleNamespace]:
        assert percpu
        us = [psutil.Process(), *psutil.Process().children()]
        seconds = sum(sum(process.cpu_times()[:2]) for process in us)
        return [SimpleNamespace(user=seconds / len(usable) if i in usable else 0.0) for i in range(max(usable) + 1)]

    monkeypatch.setattr(psutil, "cpu_times", busy)
    with spinning(1), Telemetry("cpu") as window:
        end = time.process_time() + 0.3  # however long that takes where others run too
        while time.process_time() < end:
            pass
    assert window.seconds_valid, window.seconds_reason
    assert window.seconds_reason is None
    assert window.cpu_seconds > 0.25  # there was work that could have been taken for another's


def test_processor_time_includes_our_children() -> None:
    with spinning(1), Telemetry("cpu") as window:
        time.sleep(0.5)
    assert 0.2 * window.seconds < window.cpu_seconds < 1.3 * window.seconds


@pytest.fixture
def no_mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel that keeps no high-water mark, as macOS."""
    monkeypatch.setattr(module, "_RESET", tmp_path / "absent" / "clear_refs")


@pytest.mark.skipif(sys.platform != "linux", reason="the mark is Linux's")
def test_peak_memory_is_what_was_held_at_most_for_however_short() -> None:
    for size in (200, 100):  # the second window does not see the first one's peak
        with Telemetry("cpu") as window:
            block = np.ones(size * MIB, dtype=np.uint8)
            del block
        assert window.peak_memory_bytes - window.baseline_memory_bytes == pytest.approx(size * MIB, rel=0.15)
    assert window.memory_method == "resident set, the kernel's high-water mark"


@pytest.mark.usefixtures("no_mark")
def test_without_a_mark_peak_memory_is_sampled() -> None:
    with Telemetry("cpu") as window:
        block = np.ones(200 * MIB, dtype=np.uint8)
        time.sleep(3 * SAMPLE_SECONDS)
        del block
    assert window.peak_memory_bytes - window.baseline_memory_bytes == pytest.approx(200 * MIB, rel=0.15)
    assert window.memory_method == "resident set sampled every 200 ms"


def test_memory_still_held_at_the_end_counts_however_short_the_window() -> None:
    with Telemetry("cpu") as window:
        block = np.ones(100 * MIB, dtype=np.uint8)
    assert window.peak_memory_bytes - window.baseline_memory_bytes > 95 * MIB
    assert block.nbytes == 100 * MIB


def test_a_cpu_has_no_energy_and_says_why() -> None:
    window = idle(0.01)
    assert window.energy_joules is None
    assert window.energy_reason == "no energy counter on a CPU"


@pytest.mark.usefixtures("no_mark")
def test_sampling_costs_less_than_a_hundredth() -> None:
    with Telemetry("cpu") as window:
        time.sleep(1.0)
    assert 0 < window.sampler_cpu_seconds < 0.01 * window.seconds


def test_a_failing_measurement_is_watched_to_its_end_and_its_error_passed_on() -> None:
    window = Telemetry("cpu")
    with pytest.raises(MemoryError), window:
        raise MemoryError
    assert window.seconds > 0
    assert window.peak_memory_bytes >= window.baseline_memory_bytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reports_allocated_memory_and_energy() -> None:
    with Telemetry("cuda") as window:
        square = torch.ones(4096, 4096, device="cuda")
        end = time.perf_counter() + 2.5
        while time.perf_counter() < end:
            square @ square
            torch.cuda.synchronize()
    assert window.peak_memory_bytes - window.baseline_memory_bytes >= 2 * square.nbytes
    assert window.memory_method == "torch.cuda.max_memory_allocated"
    assert window.energy_joules is None or window.energy_joules > 20
    assert (window.energy_joules is None) == (window.energy_reason is not None)

"""Who used the processors: what spoils a measurement on them, and what does not where a GPU does the work.

The kernel's clocks are played: so many of this machine's processors busy all the time, by others than us.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import psutil
import pytest

from scaling.measure import occupancy as module
from scaling.measure.occupancy import Occupancy


def window(monkeypatch: pytest.MonkeyPatch, device: str, *, processors: int, busy: int, stolen: int = 0) -> str | None:
    """Why a window on such a machine is spoilt."""

    def clocks(*, percpu: bool) -> list[SimpleNamespace]:
        assert percpu
        now = time.perf_counter()
        return [
            SimpleNamespace(user=now if i < busy else 0.0, steal=now if i >= processors - stolen else 0.0)
            for i in range(processors)
        ]

    monkeypatch.setattr(psutil, "cpu_times", clocks)
    monkeypatch.setattr(module, "usable", lambda: range(processors))
    occupancy = Occupancy(device, gpus=0)
    occupancy.start()
    time.sleep(0.3)
    occupancy.stop()
    return occupancy.verdict()[1]


def test_the_workers_of_a_run_s_other_gpus_are_welcome_to_processors_that_are_free(monkeypatch):
    """Eight GPUs on 16 processors: seven neighbours, each of which keeps one busy."""
    assert window(monkeypatch, "cuda", processors=16, busy=7) is None


def test_where_a_processor_does_the_work_they_spoil_it(monkeypatch):
    reason = window(monkeypatch, "cpu", processors=16, busy=7)
    assert reason is not None
    assert reason.startswith("foreign_process: ")
    assert reason.endswith(" of 16 processors")


def test_a_gpu_without_a_free_processor_waits_for_one(monkeypatch):
    reason = window(monkeypatch, "cuda", processors=8, busy=8)
    assert reason is not None
    assert reason.startswith("foreign_process: ")


def test_what_the_hypervisor_takes_is_missing_on_a_gpu_too(monkeypatch):
    reason = window(monkeypatch, "cuda", processors=16, busy=0, stolen=4)
    assert reason is not None
    assert reason.startswith("stolen: ")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_quiet_machine_is_ours(monkeypatch, device):
    assert window(monkeypatch, device, processors=16, busy=0) is None

"""The probe: rates of this very machine, against what it does outside the probe."""

import json
import time

import pytest
import torch

from scaling.errors import UsageError
from scaling.measure.machine import probe_machine
from scaling.predict.roofline import Machine

RATES = ("bandwidth_bytes_per_s", "kv_bandwidth_bytes_per_s", "flops_per_s", "kernels_per_s")


@pytest.fixture(scope="module")
def machine() -> Machine:
    return probe_machine("cpu", "float32", seconds=0.4)


def test_every_rate_is_plausible_for_a_computer(machine: Machine) -> None:
    """Bounds that only a wrong unit or a wrong count would leave: 0.5 GB/s–10 TB/s, 0.5 GFLOP/s–1 PFLOP/s."""
    assert 5e8 < machine.bandwidth_bytes_per_s < 1e13
    assert 5e8 < machine.kv_bandwidth_bytes_per_s < 1e13
    assert 5e8 < machine.flops_per_s < 1e15
    assert 1e-7 < machine.seconds_per_kernel < 2e-2


def test_each_rate_says_how_far_its_measurements_were_apart(machine: Machine) -> None:
    assert set(machine.spread) == set(RATES)
    assert all(spread >= 0 for spread in machine.spread.values())


def test_it_records_as_json(machine: Machine) -> None:
    assert Machine(**json.loads(json.dumps(machine.to_json()))) == machine


def test_a_matrix_product_takes_what_its_rate_says(machine: Machine) -> None:
    """Within a factor of five: the same machine may be shared between the two."""
    square = torch.ones(1024, 1024)
    best = min(_seconds(lambda: square @ square) for _ in range(5))
    assert 0.2 < best / (2 * 1024**3 / machine.flops_per_s) < 5


def test_the_probe_is_over_soon() -> None:
    assert _seconds(lambda: probe_machine("cpu", "float32", seconds=0.4)) < 10


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown dtype 'float33'; did you mean float32"):
        probe_machine("cpu", "float33")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reads_faster_than_a_hundred_gigabytes_a_second() -> None:
    machine = probe_machine("cuda", "bfloat16")
    assert 1e11 < machine.bandwidth_bytes_per_s < 2e13
    assert 1e12 < machine.flops_per_s < 5e15


def _seconds(run: object) -> float:
    assert callable(run)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start

"""What a row claims of the process and the GPUs that were watched, and what it leaves null with a reason."""

from __future__ import annotations

from dataclasses import replace

from scaling.measure.cells import RunConfig, cells_for
from scaling.measure.full import Measurement
from scaling.measure.gpu import GpuUse
from scaling.measure.occupancy import Occupancy
from scaling.measure.rows import Context, build_row
from scaling.measure.telemetry import Telemetry
from scaling.predict.shape import Shape, architecture
from scaling.results import Row

FOUND = Measurement(wall_seconds=1.0, elapsed_seconds=1.0, processed_tokens=9)
QUIET = GpuUse(2000.0, None, 1990.0, None, 1980.0, 2619.0, 61, 2**30, 0.0, 0.2)
CONTEXT = Context(Shape.from_config(architecture("tiny")), "test device", 1, "fp0")


def spin() -> None:
    sum(range(10**6))


def row(method="full", found=FOUND, *, gpu=None, devices=1, apart=False) -> Row:
    config = RunConfig("tiny", (1024,), ("longcot",), context_size=1024, state_size=512)
    [cell] = cells_for(config, method, (1024,), ("rollout",), weights="random", device="d")
    with Telemetry("cpu", apart=apart) as telemetry:
        spin()
    if gpu is not None:
        telemetry.gpu, telemetry.energy_joules, telemetry.energy_reason = gpu, gpu.energy_joules, None
    return build_row(cell, 0, 0, 0.0, replace(CONTEXT, devices=devices), telemetry, found)


def test_processor_time_and_memory_are_told_without_a_gpu():
    found = row()
    assert found.cpu_seconds is not None
    assert found.cpu_seconds > 0
    assert found.memory_valid
    assert found.peak_memory_bytes is not None
    assert found.peak_memory_bytes > 2**20
    assert (found.energy_joules, found.energy_reason) == (None, "no energy counter on a CPU")
    assert (found.sm_clock_mhz, found.memory_clock_mhz, found.max_temperature_celsius) == (None, None, None)


def test_a_gpu_adds_what_its_driver_said():
    found = row(gpu=QUIET)
    assert (found.energy_joules, found.energy_integrated_joules, found.energy_reason) == (2000.0, 1990.0, None)
    assert (found.sm_clock_mhz, found.memory_clock_mhz, found.max_temperature_celsius) == (1980.0, 2619.0, 61)
    assert (found.throttled_share, found.power_capped_share) == (0.0, 0.2)


def test_one_gpu_of_several_is_not_taken_for_all():
    found = row(gpu=QUIET, devices=4)
    assert (found.energy_joules, found.energy_reason) == (None, "1 of 4 GPUs were watched")
    assert (found.energy_integrated_joules, found.sm_clock_mhz) == (None, None)


def test_memory_of_a_model_in_other_processes_is_not_ours():
    found = row(apart=True)
    assert (found.peak_memory_bytes, found.memory_method) == (None, None)
    assert (found.memory_valid, found.memory_reason) == (False, "the model ran in other processes")


def test_a_profile_s_processor_time_is_that_of_its_visits():
    occupancy = Occupancy()
    occupancy.start()
    spin()
    occupancy.stop()
    found = row("profile", replace(FOUND, occupancy=occupancy))
    assert found.cpu_seconds == occupancy.cpu_seconds
    assert (found.memory_valid, found.memory_reason) == (False, "profiled")


def test_where_other_work_was_done_meanwhile_nobody_knows_whose_processor_time_it_was():
    assert row(found=replace(FOUND, disturbed=True)).cpu_seconds is None

"""What the driver is asked, and that whatever it refuses is null: NVML's functions played by hand, its constants and
structures the binding's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from scaling.measure import nvml
from scaling.measure.nvml import Device, Sample, bare, describe, slowdowns, uuid_hash

UUID = "8c7d6e5f-0000-4000-8000-000000000001"


def field_values(_: str, fields: list[int]) -> Any:
    """As the driver fills them: energy in millijoules, power in milliwatts."""
    values = (pynvml.c_nvmlFieldValue_t * len(fields))()
    for value, field in zip(values, fields, strict=True):
        value.fieldId, value.nvmlReturn = field, pynvml.NVML_SUCCESS
        if field == pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
            value.valueType, value.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, 5_000_000_123_000
        else:
            value.valueType, value.value.uiVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, 412_500
    return values


ANSWERS: dict[str, Callable[..., Any]] = {
    "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
    "nvmlDeviceGetHandleByIndex": lambda index: f"GPU-{UUID[:-1]}{index + 1}",
    "nvmlDeviceGetCount": lambda: 2,
    "nvmlDeviceGetUUID": lambda handle: handle,
    "nvmlDeviceGetName": lambda *_: "NVIDIA H100 80GB HBM3",
    "nvmlSystemGetDriverVersion": lambda: "580.1",
    "nvmlSystemGetCudaDriverVersion_v2": lambda: 12080,
    "nvmlDeviceGetFieldValues": field_values,
    "nvmlDeviceGetTotalEnergyConsumption": lambda *_: 7000,
    "nvmlDeviceGetClockInfo": lambda _, kind: {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind],
    "nvmlDeviceGetMaxClockInfo": lambda _, kind: {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind],
    "nvmlDeviceGetApplicationsClock": lambda *_: 1755,
    "nvmlDeviceGetTemperature": lambda *_: 61,
    "nvmlDeviceGetMemoryInfo": lambda *_: SimpleNamespace(used=3 * 2**30, total=80 * 2**30),
    "nvmlDeviceGetCurrentClocksEventReasons": lambda *_: pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "nvmlDeviceGetComputeRunningProcesses": lambda *_: [SimpleNamespace(pid=4242, usedGpuMemory=None)],
    "nvmlDeviceGetEccMode": lambda *_: [1, 1],
    "nvmlDeviceGetMigMode": lambda *_: [0, 0],
    "nvmlDeviceGetCudaComputeCapability": lambda *_: (9, 0),
    "nvmlDeviceGetEnforcedPowerLimit": lambda *_: 500_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": lambda *_: 700_000,
    "nvmlDeviceGetPersistenceMode": lambda *_: 1,
    "nvmlDeviceGetP2PStatus": lambda *_: pynvml.NVML_P2P_STATUS_OK,
    "nvmlDeviceGetTopologyCommonAncestor": lambda *_: pynvml.NVML_TOPOLOGY_SYSTEM,
}


def refuse(*_: Any) -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An H100's driver; setting a function of `pynvml` changes what it answers."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    for name, answer in ANSWERS.items():
        assert hasattr(pynvml, name), "the binding has no such function"
        monkeypatch.setattr(pynvml, name, answer)
    nvml._api.cache_clear()
    yield monkeypatch
    nvml._api.cache_clear()


@pytest.mark.usefixtures("driver")
def test_a_sample_is_in_joules_watts_and_megahertz() -> None:
    sample = Device(UUID).sample()
    assert sample == Sample(
        seconds=sample.seconds,
        energy_joules=pytest.approx(5_000_000_123),
        power_watts=412.5,
        sm_mhz=1980,
        memory_mhz=2619,
        temperature_celsius=61,
        memory_bytes=3 * 2**30,
        clock_events=0x40,
        pids=(4242,),
    )


QUERIES = {
    "nvmlDeviceGetClockInfo": ("sm_mhz", "memory_mhz"),
    "nvmlDeviceGetTemperature": ("temperature_celsius",),
    "nvmlDeviceGetMemoryInfo": ("memory_bytes",),
    "nvmlDeviceGetComputeRunningProcesses": ("pids",),
    "nvmlDeviceGetCurrentClocksEventReasons": ("clock_events",),
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_that_is_refused_is_null_and_the_others_are_answered(driver: pytest.MonkeyPatch, query: str) -> None:
    driver.setattr(pynvml, query, refuse)
    driver.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", refuse)
    sample = Device(UUID).sample()
    for name in ("energy_joules", "power_watts", *(name for names in QUERIES.values() for name in names)):
        assert (getattr(sample, name) is None) == (name in QUERIES[query])


def test_each_field_value_may_be_refused_by_itself(driver: pytest.MonkeyPatch) -> None:
    def without_power(_: str, fields: list[int]) -> Any:
        values = field_values("", fields)
        values[1].nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
        return values

    driver.setattr(pynvml, "nvmlDeviceGetFieldValues", without_power)
    sample = Device(UUID).sample()
    assert sample.power_watts is None
    assert sample.energy_joules == pytest.approx(5_000_000_123)


def test_without_field_values_the_counter_has_a_query_of_its_own(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(pynvml, "nvmlDeviceGetFieldValues", refuse)
    sample = Device(UUID).sample()
    assert (sample.energy_joules, sample.power_watts) == (7.0, None)


def test_an_older_driver_knows_clock_events_by_their_older_name(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", refuse)
    driver.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda *_: 0x04)
    assert Device(UUID).sample().clock_events == 0x04


def test_a_device_is_found_as_gpu_or_mig_instance(driver: pytest.MonkeyPatch) -> None:
    def only_mig(uuid: str) -> str:
        return uuid if uuid.startswith("MIG-") else str(refuse())

    assert Device(UUID).uuid == f"GPU-{UUID}"
    driver.setattr(pynvml, "nvmlDeviceGetHandleByUUID", only_mig)
    assert Device(f"GPU-{UUID}").uuid == f"MIG-{UUID}"


def test_the_workers_of_other_gpus_are_not_on_ours(driver: pytest.MonkeyPatch) -> None:
    """Each worker asks for its own GPU, and the driver lists who is on that one."""
    workers = {f"GPU-{UUID}": 4242, f"GPU-{UUID[:-1]}2": 4243}
    driver.setattr(
        pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [SimpleNamespace(pid=workers[handle])]
    )
    assert [Device(uuid).sample().pids for uuid in workers] == [(4242,), (4243,)]


def test_an_unknown_uuid_falls_back_to_the_index_and_keeps_that_ones_uuid(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(pynvml, "nvmlDeviceGetHandleByUUID", refuse)
    device = Device(UUID, 1)
    assert device.uuid is not None
    assert bare(device.uuid) != bare(UUID)  # which makes the window a `device_mismatch`


def test_the_bits_are_the_bindings() -> None:
    assert slowdowns(pynvml.nvmlClocksEventReasonHwSlowdown) == ["hardware slowdown"]
    assert slowdowns(pynvml.nvmlClocksEventReasonSwThermalSlowdown) == ["software thermal"]
    assert slowdowns(pynvml.nvmlClocksEventReasonHwThermalSlowdown) == ["hardware thermal"]
    assert slowdowns(pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown) == ["power brake"]
    assert slowdowns(pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle) == []
    assert pynvml.nvmlClocksEventReasonSwPowerCap == nvml.POWER_CAP


class TestDescribe:
    @pytest.mark.usefixtures("driver")
    def test_what_gpus_are_and_how_they_are_joined(self) -> None:
        (first, second), version = describe()
        assert version == "580.1"
        assert first.facts == {
            "name": "NVIDIA H100 80GB HBM3", "memory_gib": 80, "compute_capability": "9.0",
            "power_cap_watts": 500, "power_default_watts": 700, "max_sm_mhz": 1980, "max_memory_mhz": 2619,
            "application_sm_mhz": 1755, "application_memory_mhz": 1755, "ecc": True, "mig": False,
            "links": [None, "NVLink"],
        }  # fmt: skip
        assert second.facts["links"] == ["NVLink", None]
        assert first.state == {
            "persistence": True, "temperature_celsius": 61, "memory_used_gib": 3.0, "slowdowns": ["hardware thermal"],
            "pids": [4242],
        }  # fmt: skip
        assert nvml.cuda_version() == "12.8"

    def test_without_nvlink_the_pcie_tree_tells(self, driver: pytest.MonkeyPatch) -> None:
        driver.setattr(pynvml, "nvmlDeviceGetP2PStatus", lambda *_: pynvml.NVML_P2P_STATUS_NOT_SUPPORTED)
        assert describe()[0][0].facts["links"] == [None, "system"]

    def test_a_card_that_tells_only_its_name(self, driver: pytest.MonkeyPatch) -> None:
        kept = ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetCount", "nvmlDeviceGetName")
        for name in set(ANSWERS) - set(kept):
            driver.setattr(pynvml, name, refuse)
        driver.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", refuse)
        (gpu, _), version = describe()
        assert version is None
        assert {name for name, value in gpu.facts.items() if value is not None} == {"name", "links"}
        assert set(gpu.state.values()) == {None}
        assert gpu.uuid is None

    def test_no_driver_no_gpus(self, driver: pytest.MonkeyPatch) -> None:
        driver.setattr(pynvml, "nvmlInit", refuse)
        assert describe() == ([], None)
        with pytest.raises(pynvml.NVMLError):
            Device(UUID)


def test_a_uuid_hash_is_the_gpus_however_it_is_written_and_does_not_name_it() -> None:
    assert uuid_hash(f"GPU-{UUID}") == uuid_hash(UUID.upper())
    assert uuid_hash(UUID) not in UUID
    assert len(uuid_hash(UUID)) == 12

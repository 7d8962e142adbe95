"""What an NVIDIA GPU's driver says about it: a moment (`Sample`), and what it is (`describe`).

Every query is asked alone and may be refused: consumer cards, virtual GPUs and MIG instances each lack some. What is
refused is null, never an error. NVML is opened once and stays open, because opening wakes every GPU of the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

# Bits of the driver's clock event reasons. A software power cap is no slowdown: it is how a GPU keeps to its limit
# under full load, and the limit is in the fingerprint.
SLOWDOWNS = {0x08: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
POWER_CAP = 0x04

_FIELD_TYPES = (
    "dVal",
    "uiVal",
    "ulVal",
    "ullVal",
    "sllVal",
    "siVal",
    "usVal",
)  # of a field value's union, by valueType
_NEAR = {0: "same board", 10: "PCIe switch", 20: "PCIe switches", 30: "host bridge", 40: "NUMA node", 50: "system"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment of a GPU: `seconds` on the source's clock, and what the driver said, null where it did not.

    `energy_joules` counts since the driver was loaded. `clock_events` are NVML's clock event reasons. `pids` are the
    processes that compute on it.
    """

    seconds: float
    energy_joules: float | None = None
    power_watts: float | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_celsius: int | None = None
    memory_bytes: int | None = None
    clock_events: int | None = None
    pids: tuple[int, ...] | None = None


class Source(Protocol):
    """A GPU that can be sampled: the driver's, or a recorded one. `uuid` is null where it does not say."""

    uuid: str | None

    def sample(self) -> Sample: ...


class Device:
    """The GPU that torch calls by `uuid`, or where the driver knows none such, the one at `index`.

    Raises whatever NVML raises where there is no driver or no such GPU.
    """

    def __init__(self, uuid: str, index: int = 0) -> None:
        api = _api()
        self._handle = None
        for prefix in ("GPU-", "MIG-"):  # torch says neither
            with contextlib.suppress(Exception):
                self._handle = api.nvmlDeviceGetHandleByUUID(prefix + bare(uuid))
                break
        if self._handle is None:
            self._handle = api.nvmlDeviceGetHandleByIndex(index)
        self.uuid = _text(_ask("nvmlDeviceGetUUID", self._handle))

    def sample(self) -> Sample:
        api, handle = _api(), self._handle
        before = time.perf_counter()
        energy, power = _fields(handle, api.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, api.NVML_FI_DEV_POWER_INSTANT)
        if energy is None:
            energy = _ask("nvmlDeviceGetTotalEnergyConsumption", handle)
        seconds = (before + time.perf_counter()) / 2
        events = _ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if events is None:  # its name before driver 535
            events = _ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        memory = _ask("nvmlDeviceGetMemoryInfo", handle)
        processes = _ask("nvmlDeviceGetComputeRunningProcesses", handle)
        return Sample(
            seconds=seconds,
            energy_joules=None if energy is None else energy / 1000,
            power_watts=None if power is None else power / 1000,
            sm_mhz=_ask("nvmlDeviceGetClockInfo", handle, api.NVML_CLOCK_SM),
            memory_mhz=_ask("nvmlDeviceGetClockInfo", handle, api.NVML_CLOCK_MEM),
            temperature_celsius=_ask("nvmlDeviceGetTemperature", handle, api.NVML_TEMPERATURE_GPU),
            memory_bytes=None if memory is None else int(memory.used),
            clock_events=events,
            pids=None if processes is None else tuple(int(process.pid) for process in processes),
        )


@dataclass(frozen=True, slots=True)
class Description:
    """What a GPU is: `facts` decide how fast it is, `state` how it is just now; `uuid` tells it from its like."""

    uuid: str | None
    facts: dict[str, Any]
    state: dict[str, Any]


def describe() -> tuple[list[Description], str | None]:
    """Every GPU that the driver lists, whatever `CUDA_VISIBLE_DEVICES` says, and the driver's version; none without a
    driver. Watts, MHz, GiB, degrees Celsius."""
    try:
        api = _api()
        handles = [api.nvmlDeviceGetHandleByIndex(i) for i in range(api.nvmlDeviceGetCount())]
    except Exception:  # no library or no driver: NVML's errors are its own, and either means no GPU
        return [], None
    return [_describe(handle, handles) for handle in handles], _text(_ask("nvmlSystemGetDriverVersion"))


def cuda_version() -> str | None:
    """The newest CUDA that the driver can run, "12.8"; null without a driver."""
    number = _ask("nvmlSystemGetCudaDriverVersion_v2")
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def bare(uuid: str) -> str:
    """A UUID without the kind of device in front, in lower case: torch and NVML write it differently."""
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def _describe(handle: Any, handles: list[Any]) -> Description:
    api = _api()
    memory, ecc, mig = (
        _ask(name, handle) for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetEccMode", "nvmlDeviceGetMigMode")
    )
    capability = _ask("nvmlDeviceGetCudaComputeCapability", handle)
    sm, mem = api.NVML_CLOCK_SM, api.NVML_CLOCK_MEM
    facts = {
        "name": _text(_ask("nvmlDeviceGetName", handle)) or "unknown GPU",
        "memory_gib": None if memory is None else round(memory.total / 2**30),
        "compute_capability": None if capability is None else ".".join(map(str, capability)),
        "power_cap_watts": _watts(_ask("nvmlDeviceGetEnforcedPowerLimit", handle)),
        "power_default_watts": _watts(_ask("nvmlDeviceGetPowerManagementDefaultLimit", handle)),
        "max_sm_mhz": _ask("nvmlDeviceGetMaxClockInfo", handle, sm),
        "max_memory_mhz": _ask("nvmlDeviceGetMaxClockInfo", handle, mem),
        "application_sm_mhz": _ask("nvmlDeviceGetApplicationsClock", handle, sm),
        "application_memory_mhz": _ask("nvmlDeviceGetApplicationsClock", handle, mem),
        "ecc": None if ecc is None else bool(ecc[0]),
        "mig": None if mig is None else bool(mig[0]),
        "links": [None if other is handle else _link(handle, other) for other in handles],
    }
    now = Sample(0.0, clock_events=_ask("nvmlDeviceGetCurrentClocksEventReasons", handle))
    processes = _ask("nvmlDeviceGetComputeRunningProcesses", handle)
    state = {
        "persistence": None if (mode := _ask("nvmlDeviceGetPersistenceMode", handle)) is None else bool(mode),
        "temperature_celsius": _ask("nvmlDeviceGetTemperature", handle, api.NVML_TEMPERATURE_GPU),
        "memory_used_gib": None if memory is None else round(memory.used / 2**30, 1),
        "slowdowns": None if now.clock_events is None else slowdowns(now.clock_events),
        "pids": None if processes is None else [int(process.pid) for process in processes],
    }
    return Description(_text(_ask("nvmlDeviceGetUUID", handle)), facts, state)


def uuid_hash(uuid: str) -> str:
    """12 hex digits that tell a GPU from others without naming it."""
    return hashlib.sha256(bare(uuid).encode()).hexdigest()[:12]


def slowdowns(clock_events: int) -> list[str]:
    return [name for bit, name in SLOWDOWNS.items() if clock_events & bit]


def _link(one: Any, other: Any) -> str | None:
    """How two GPUs are joined: "NVLink", or what of the PCIe tree they share."""
    api = _api()
    if _ask("nvmlDeviceGetP2PStatus", one, other, api.NVML_P2P_CAPS_INDEX_NVLINK) == api.NVML_P2P_STATUS_OK:
        return "NVLink"
    level = _ask("nvmlDeviceGetTopologyCommonAncestor", one, other)
    return None if level is None else _NEAR.get(level, f"level {level}")


@cache
def _api() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _ask(query: str, *arguments: Any) -> Any:
    """What NVML answers, or null: it refuses by errors of its own, and an older binding lacks the function."""
    try:
        return getattr(_api(), query)(*arguments)
    except Exception:
        return None


def _fields(handle: Any, *fields: int) -> list[float | None]:
    """Field values by one query, so that they are of one moment; each may be refused by itself."""
    values = _ask("nvmlDeviceGetFieldValues", handle, list(fields))
    if values is None:
        return [None] * len(fields)
    return [
        getattr(v.value, _FIELD_TYPES[v.valueType]) if v.nvmlReturn == 0 and v.valueType < len(_FIELD_TYPES) else None
        for v in values
    ]


def _watts(milliwatts: int | None) -> int | None:
    return None if milliwatts is None else round(milliwatts / 1000)


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value

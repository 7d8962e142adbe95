"""What GPUs are sold with: memory, bandwidth, arithmetic, links and power, as their data sheets print them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scaling.errors import UsageError, unknown


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Rates are peaks that no program reaches.

    `memory_bytes`: what a process is offered in all, as torch reports it. Names count GiB, of which error correction
    and the driver keep some: 79.1 of the 80 of an H100, 139.8 of the 141 of an H200, 22.0 of the 24 of an L4.
    `flops_per_s`: by data type, dense: sheets print twice that for matrices of which half is zero. `float32` is that of
    torch's default, without TF32; 8- and 16-bit floating-point rates are those that sum in 32 bits. A type that the
    GPU cannot multiply is absent. `link_bytes_per_s`: one way, from a GPU to all peers of its node together.
    `gpus_per_node`: how many share that link. `watts`: of the board at its limit.
    """

    name: str
    title: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    link_bytes_per_s: float
    gpus_per_node: int
    watts: float
    source: str


def gpu(name: str) -> Gpu:
    """The GPU of that name, alias or driver's name, in any case; raises `UsageError` with near names."""
    names = _names()
    if _key(name) not in names:
        raise unknown("gpu", name, [known for known in names if len(known) <= 16])  # a driver's names are long
    return gpus()[names[_key(name)]]


@cache
def gpus() -> Mapping[str, Gpu]:
    """Every GPU of the catalogue by its name."""
    return MappingProxyType({name: _gpu(name, sheet) for name, sheet in _sheets().items()})


def here() -> Gpu:
    """The GPU of this machine, by the name that NVML gives; raises `UsageError` where there is no such one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            names = sorted({str(pynvml.nvmlDeviceGetName(handle)) for handle in handles})
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise UsageError(f"no NVIDIA GPU answers on this machine ({error}); name one, as in h100-sxm") from None
    if len(names) != 1:
        found = " and ".join(names) or "no GPU"
        raise UsageError(f"this machine has {found} where one kind is expected; name one, as in h100-sxm")
    return gpu(names[0])


def _gpu(name: str, sheet: Mapping[str, Any]) -> Gpu:
    return Gpu(
        name=name,
        title=sheet["title"],
        memory_bytes=round(sheet["memory_gib"] * 2**30),
        bandwidth_bytes_per_s=sheet["bandwidth_gb_per_s"] * 1e9,
        flops_per_s=MappingProxyType({dtype: tflops * 1e12 for dtype, tflops in sheet["tflops"].items()}),
        link_bytes_per_s=sheet["link_gb_per_s"] * 1e9,
        gpus_per_node=sheet["gpus_per_node"],
        watts=float(sheet["watts"]),
        source=sheet["source"],
    )


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower()).removeprefix("nvidia-")


@cache
def _names() -> dict[str, str]:
    return {_key(alias): name for name, sheet in _sheets().items() for alias in (name, *sheet["aliases"])}


@cache
def _sheets() -> dict[str, Any]:
    sheets: dict[str, Any] = json.loads(Path(__file__).with_name("hardware.json").read_text(encoding="utf-8"))
    return sheets

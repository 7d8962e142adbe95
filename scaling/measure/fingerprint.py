"""What a measurement ran on: device, machine, software, source."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "numpy", "vllm", "thinking-cost")


def fingerprint() -> dict[str, Any]:
    """Four parts, JSON-ready; null where the machine does not say.

    `hardware` and `software` decide how fast the same code runs. `source` is the commit of the package's checkout, if
    it runs from one, and `dirty` whether tracked files differ from it. `state` is how busy the machine was just now.
    """
    import torch

    gpus, driver = _gpus()
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
            "packages": {name: _version(name) for name in PACKAGES},
            "torch_threads": torch.get_num_threads(),
            "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "torch_cuda": torch.version.cuda,
            "gpu_driver": driver,
        },
        "source": _source(Path(__file__).resolve().parent),
        "state": {
            "memory_available_bytes": psutil.virtual_memory().available,
            "load_average": list(psutil.getloadavg()),
        },
    }


def fingerprint_id(found: dict[str, Any]) -> str:
    """12 hex digits over `hardware` and `software`: rows with the same id ran on machines that should be alike.

    The source is left out, so that two commits can be compared on one machine, and so is the state of the moment.
    """
    stable = json.dumps({part: found[part] for part in ("hardware", "software")}, sort_keys=True)
    return hashlib.sha256(stable.encode()).hexdigest()[:12]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    """Name and memory of each NVIDIA GPU, and the driver's version; none without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library or no driver: NVML's errors are its own, and either means no GPU
        return [], None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        gpus = [
            {
                "name": str(pynvml.nvmlDeviceGetName(handle)),
                "memory_gib": round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30),
            }
            for handle in handles
        ]
        return gpus, str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


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

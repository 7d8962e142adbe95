"""What the doctor finds, on machines described by hand and on this one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from scaling.measure import doctor
from scaling.measure.doctor import Finding, Surroundings, findings, look

H100 = {
    "name": "NVIDIA H100 80GB HBM3", "memory_gib": 80, "compute_capability": "9.0", "power_cap_watts": 700,
    "power_default_watts": 700, "max_sm_mhz": 1980, "max_memory_mhz": 2619, "application_sm_mhz": 1980,
    "application_memory_mhz": 2619, "ecc": True, "mig": False, "links": [None],
}  # fmt: skip
GOOD: dict[str, Any] = {
    "hardware": {"device": H100["name"], "cores": 32, "usable_processors": 64, "gpus": [H100]},
    "software": {"packages": {"torch": "2.13.0+cu128"}, "torch_cuda": "12.8", "torch_threads": 32},
    "source": {"commit": "abc", "dirty": False},
    "surroundings": {"driver_cuda": "12.9", "gpu_uuid_hashes": ["aa"]},
    "state": {
        "gpus": [{"persistence": True, "temperature_celsius": 40, "slowdowns": [], "pids": []}],
        "memory_available_bytes": 64 * 2**30,
    },
}
QUIET = Surroundings(True, 100 * 2**30, None, frozenset({"performance"}), {})


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good machine with one thing different; `gpu.…` and `state_of_gpu.…` are of its GPU."""
    found = copy.deepcopy(GOOD)
    part, _, name = path.partition(".")
    places = {"gpu": found["hardware"]["gpus"], "state_of_gpu": found["state"]["gpus"]}
    (places[part][0] if part in places else found[part])[name] = value
    return found


def test_nothing_is_wrong_with_a_good_machine() -> None:
    assert findings(GOOD, QUIET) == []


@pytest.mark.parametrize(
    ("path", "value", "severity", "code", "mend"),
    [
        ("software.torch_cuda", None, "error", "cpu_torch", "CUDA 12.9"),
        ("state_of_gpu.pids", [99], "error", "foreign_process", "CUDA_VISIBLE_DEVICES"),
        ("state_of_gpu.slowdowns", ["hardware thermal"], "error", "throttled", "cool"),
        ("gpu.power_cap_watts", 500, "warning", "power_cap", "sudo nvidia-smi -i 0 -pl 700"),
        ("state_of_gpu.persistence", False, "warning", "persistence", "sudo nvidia-smi -i 0 -pm 1"),
        ("gpu.mig", True, "warning", "mig", "-mig 0"),
        ("software.torch_threads", 65, "warning", "threads", "OMP_NUM_THREADS=64"),
        ("state.memory_available_bytes", 2**30, "warning", "memory", "what holds it"),
        ("source.dirty", True, "note", "dirty", "git commit"),
    ],
)
def test_each_fault_of_the_machine_is_found_with_how_to_mend_it(
    path: str, value: Any, severity: str, code: str, mend: str
) -> None:
    [finding] = findings(changed(path, value), QUIET)
    assert (finding.severity, finding.code) == (severity, code)
    assert mend in finding.mend


@pytest.mark.parametrize(
    ("difference", "severity", "code"),
    [
        ({"cuda_available": False}, "error", "no_cuda"),
        ({"busy": "foreign_process: 30% of 64 processors"}, "warning", "busy"),
        ({"busy": "stolen: 30% of 64 processors"}, "warning", "stolen"),
        ({"disk_free_bytes": 2**30}, "warning", "disk"),
        ({"governors": frozenset({"powersave", "performance"})}, "note", "governor"),
        ({"conflicts": {"torchvision": "does not import: no nms"}}, "error", "conflict"),
        ({"conflicts": {"vllm": "needs torch==2.11.0, but 2.13.0 is installed"}}, "warning", "conflict"),
    ],
)
def test_each_fault_around_it_is_found(difference: dict[str, Any], severity: str, code: str) -> None:
    [finding] = findings(GOOD, replace(QUIET, **difference))
    assert (finding.severity, finding.code) == (severity, code)


def test_a_gpu_without_its_driver_library_is_told_from_no_gpu() -> None:
    found = changed("hardware.gpus", [])
    found["state"]["gpus"] = []
    assert [f.code for f in findings(found, QUIET)] == ["no_nvml"]
    assert [f.code for f in findings(found, replace(QUIET, cuda_available=False))] == ["no_energy"]


@pytest.mark.parametrize(
    ("shown", "codes"),
    [({"aa"}, []), ({"bb"}, ["foreign_process"]), ({"aa", "bb"}, ["foreign_process"]), (set(), ["foreign_process"]),
     ({"no GPU's, as of an instance"}, ["foreign_process"])],
)  # fmt: skip
def test_gpus_that_a_run_is_not_shown_are_others_matter(shown: set[str], codes: list[str]) -> None:
    """Whoever follows the advice to take another GPU by CUDA_VISIBLE_DEVICES is told no more of the first."""
    found = copy.deepcopy(GOOD)
    found["hardware"]["gpus"].append(H100)
    found["surroundings"]["gpu_uuid_hashes"].append("bb")
    found["state"]["gpus"].append({**GOOD["state"]["gpus"][0], "pids": [99]})
    assert [f.code for f in findings(found, replace(QUIET, shown=frozenset(shown)))] == codes


def test_what_a_driver_does_not_tell_is_not_a_fault() -> None:
    found = copy.deepcopy(GOOD)
    found["hardware"]["gpus"] = [{key: None if key != "name" else value for key, value in H100.items()}]
    found["state"]["gpus"] = [dict.fromkeys(GOOD["state"]["gpus"][0])]
    assert findings(found, QUIET) == []


def test_the_worst_comes_first() -> None:
    found = changed("source.dirty", True)
    bad = replace(QUIET, cuda_available=False, disk_free_bytes=0)
    assert [f.severity for f in findings(found, bad)] == ["error", "warning", "note"]


def test_this_machine_can_be_looked_at(tmp_path: Path) -> None:
    found, around = look(tmp_path)
    assert around.disk_free_bytes > 0
    assert all(isinstance(finding, Finding) for finding in findings(found, around))


def test_requirements_that_are_not_met_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "transformers": "5.23.0"}
    asked = {"vllm": ["torch==2.13.0", "transformers<5.20", "numpy", 'torchvision==9; extra == "vision"']}

    def requires(package: str) -> list[str]:
        if package not in asked:
            raise doctor.metadata.PackageNotFoundError
        return asked[package]

    monkeypatch.setattr(
        doctor, "metadata",
        SimpleNamespace(
            requires=requires, version=versions.__getitem__,
            PackageNotFoundError=doctor.metadata.PackageNotFoundError,
        ),
    )  # fmt: skip
    assert dict(doctor._unmet()) == {"vllm": "needs transformers<5.20, but 5.23.0 is installed"}
    assert list(doctor._unmet_of([Requirement("torch>=2.14")])) == ["needs torch>=2.14, but 2.13.0+cpu is installed"]


def test_a_torchvision_that_does_not_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    assert dict(doctor._broken()) == {"torchvision": "does not import: operator torchvision::nms does not exist"}

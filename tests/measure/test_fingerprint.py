"""Fingerprints: what two measurements must share to be comparable."""

import copy
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from scaling.measure import fingerprint as module
from scaling.measure.fingerprint import fingerprint, fingerprint_id
from scaling.measure.nvml import Description


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return fingerprint()


def elsewhere(threads: int) -> dict[str, Any]:
    """The fingerprint that another process, with so many torch threads, takes."""
    code = (
        "import json, torch; from scaling.measure.fingerprint import fingerprint;"
        f"torch.set_num_threads({threads}); print(json.dumps(fingerprint()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken: dict[str, Any] = json.loads(done.stdout)
    return taken


def test_it_names_machine_and_software(found: dict[str, Any]) -> None:
    assert found["hardware"]["processors"] == psutil.cpu_count()
    assert found["hardware"]["cpu"]
    assert found["hardware"]["device"] in (found["hardware"]["cpu"], *(g["name"] for g in found["hardware"]["gpus"]))
    assert found["hardware"]["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.5)
    assert found["software"]["python"] == platform.python_version()
    assert found["software"]["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["software"]["torch_threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_two_processes_on_one_machine_agree_and_another_thread_count_does_not() -> None:
    one, again, three = elsewhere(1), elsewhere(1), elsewhere(3)
    assert fingerprint_id(one) == fingerprint_id(again)
    assert three["software"]["torch_threads"] == 3
    assert fingerprint_id(three) != fingerprint_id(one)


@pytest.mark.parametrize("path", [("state", "memory_available_bytes"), ("source", "commit"), ("source", "dirty")])
def test_the_moment_and_the_commit_are_not_the_machine(found: dict[str, Any], path: tuple[str, str]) -> None:
    changed = copy.deepcopy(found)
    changed[path[0]][path[1]] = "other"
    assert fingerprint_id(changed) == fingerprint_id(found)


def test_which_gpu_of_its_kind_and_which_container_are_not_the_machine_either(found: dict[str, Any]) -> None:
    changed = copy.deepcopy(found)
    changed["surroundings"] |= {"gpu_uuid_hashes": ["0123456789ab"], "container": "sha256:1", "driver_cuda": "12.8"}
    assert fingerprint_id(changed) == fingerprint_id(found)


def test_gpus_are_described_and_their_uuids_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [Description(f"GPU-{n}", {"name": "NVIDIA H100"}, {"persistence": True}) for n in range(2)]
    monkeypatch.setattr(module, "describe", lambda: (two, "580.1"))
    found = fingerprint()
    assert found["hardware"]["device"] == "NVIDIA H100"
    assert found["hardware"]["gpus"] == [{"name": "NVIDIA H100"}] * 2
    assert found["software"]["gpu_driver"] == "580.1"
    assert found["state"]["gpus"] == [{"persistence": True}] * 2
    hashes = found["surroundings"]["gpu_uuid_hashes"]
    assert len(set(hashes)) == 2
    assert "GPU-" not in json.dumps(found)


def test_a_power_cap_is_another_machine(found: dict[str, Any]) -> None:
    ids = set()
    for watts in (700, 500):
        capped = copy.deepcopy(found)
        capped["hardware"]["gpus"] = [{"name": "NVIDIA H100", "power_cap_watts": watts}]
        ids.add(fingerprint_id(capped))
    assert len(ids) == 2


def test_what_a_gpu_adds_leaves_the_id_of_a_machine_without_one(found: dict[str, Any]) -> None:
    """So that a run that was begun on it can go on."""
    if found["hardware"]["gpus"]:
        pytest.skip("this machine has one")
    assert set(found["hardware"]) == {
        "device", "cpu", "cores", "processors", "usable_processors", "memory_gib", "gpus"
    }  # fmt: skip
    assert set(found["software"]) == {
        "os", "kernel", "python", "implementation", "packages", "torch_threads", "torch_cpu_capability", "torch_cuda",
        "gpu_driver",
    }  # fmt: skip
    assert set(found["software"]["packages"]) == set(module.PACKAGES)


def test_a_configuration_has_one_hash_however_it_is_ordered() -> None:
    assert module.config_hash({"a": 1, "b": [2]}) == module.config_hash({"b": [2], "a": 1})
    assert module.config_hash({"a": 1}) != module.config_hash({"a": 2})


class TestContainer:
    ID = "3f" * 32

    @pytest.fixture(autouse=True)
    def _unnamed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("CONTAINER_DIGEST", "IMAGE_DIGEST"):
            monkeypatch.delenv(variable, raising=False)

    @pytest.mark.parametrize(
        ("file", "line"),
        [
            ("cgroup", "12:cpu:/docker/{id}"),
            ("cgroup", "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            ("cgroup", "0::/machine.slice/libpod-{id}.scope"),
            ("mountinfo", "600 583 8:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw"),
        ],
    )
    def test_it_is_found_where_the_kernel_shows_it(self, tmp_path: Path, file: str, line: str) -> None:
        (tmp_path / file).write_text("0::/\n" + line.format(id=self.ID) + "\n")
        assert module._container(tmp_path) == f"container {self.ID}"

    def test_outside_there_is_none(self, tmp_path: Path) -> None:
        assert module._container(tmp_path) is None
        (tmp_path / "cgroup").write_text("0::/user.slice/user-1000.slice/session-2.scope\n")
        assert module._container(tmp_path) is None

    def test_who_starts_it_may_name_the_image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IMAGE_DIGEST", "sha256:12ab")
        assert module._container(tmp_path) == "sha256:12ab"


@pytest.mark.parametrize("path", [("hardware", "device"), ("hardware", "memory_gib"), ("software", "kernel")])
def test_other_hardware_or_software_is_another_fingerprint(found: dict[str, Any], path: tuple[str, str]) -> None:
    changed = copy.deepcopy(found)
    changed[path[0]][path[1]] = "other"
    assert fingerprint_id(changed) != fingerprint_id(found)


def test_an_id_does_not_depend_on_the_order_of_keys(found: dict[str, Any]) -> None:
    reordered = {part: dict(reversed(values.items())) for part, values in reversed(found.items())}
    assert fingerprint_id(reordered) == fingerprint_id(found)
    assert len(fingerprint_id(found)) == 12


class TestSource:
    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """A repository that tracks the package `kept` and ignores nothing."""
        for name in ("kept", "installed"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("")
        for command in (
            ["init", "-q"],
            ["add", "kept"],
            ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"],
        ):
            subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
        return tmp_path

    def commit(self, checkout: Path) -> str:
        done = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def test_a_clean_checkout(self, checkout: Path) -> None:
        assert module._source(checkout / "kept") == {"commit": self.commit(checkout), "dirty": False}

    def test_a_changed_file_makes_it_dirty(self, checkout: Path) -> None:
        (checkout / "kept" / "__init__.py").write_text("changed = True")
        assert module._source(checkout / "kept") == {"commit": self.commit(checkout), "dirty": True}

    def test_an_installed_copy_inside_a_foreign_checkout_has_no_commit(self, checkout: Path) -> None:
        assert module._source(checkout / "installed") == {"commit": None, "dirty": None}

    def test_a_folder_outside_any_checkout_has_no_commit(self, tmp_path: Path) -> None:
        assert module._source(tmp_path) == {"commit": None, "dirty": None}

    def test_no_git_no_commit(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert shutil.which("git")
        monkeypatch.setenv("PATH", str(checkout))
        assert module._source(checkout / "kept") == {"commit": None, "dirty": None}

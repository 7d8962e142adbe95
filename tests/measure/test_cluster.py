"""A run on a real Ray of two workers on this machine: whole, also when a worker is killed in the middle."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from scaling.errors import ScalingError
from scaling.measure.cluster import launch_ray
from scaling.measure.run import configure

ray = pytest.importorskip("ray", reason="Ray is not installed here; `nox -s ray` installs and tests it")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two processors, so two tasks at once; the tests share it, as its start takes seconds."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def config(*lengths: int, **changes):
    small = {"model": "tiny", "context_size": 64, "head": 8, "prompt_tokens": 8, "method": "full", "repeats": 3}
    return configure({**small, "lengths": lengths, **changes})


def measuring() -> list[psutil.Process]:
    """The processes of Ray that have a task of ours."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::measure_unit"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_killed_worker_s_cell_is_measured_by_another_and_no_row_is_doubled(tmp_path):
    out = tmp_path / "run"
    saved, killed = [], []

    def kill_one_in_the_middle(progress):
        if not killed and progress.stored >= 2 and (now := measuring()):
            killed.append(now[-1].pid)
            now[-1].kill()
            saved.extend((part, part.stat().st_mtime_ns) for part in out.glob("*.parquet"))

    came = launch_ray(config(256, 512), out, observe=kill_one_in_the_middle)
    assert killed
    assert len(saved) >= 2
    assert all(part.stat().st_mtime_ns == written for part, written in saved)  # what was stored was left alone
    assert came.died == ()
    frame = came.store.frame()
    assert (len(frame), came.failed) == (came.total, 0)
    assert not frame.duplicated(["cell_id", "repeat"]).any()
    assert (frame["status"] == "ok").all()
    assert frame["fingerprint_id"].nunique() == 1


def test_profiles_and_training_phases_are_tasks_too_and_going_on_measures_what_is_missing(tmp_path):
    out = tmp_path / "run"
    phases = ("rollout", "update", "sync")
    came = launch_ray(config(48, 96, modes=("longcot",), method="profile", phases=phases, repeats=1), out)
    assert (len(came.store.done()), came.failed) == (came.total, 0)
    assert came.store.frame()["grid_id"].nunique() == 1
    [first, *kept] = sorted(out.glob("*.parquet"))
    first.unlink()
    written = {part: part.stat().st_mtime_ns for part in kept}
    again = launch_ray(None, out)
    assert len(again.store.done()) == again.total
    assert {part: part.stat().st_mtime_ns for part in kept} == written


def test_the_command_starts_a_ray_of_its_own_and_ends_it(tmp_path):
    options = ["--lengths", "48", "--mode", "longcot", "--context-size", "64", "--repeats", "1", "--launcher", "ray"]
    command = [sys.executable, "-m", "scaling", "run", *options, "--out", tmp_path / "run"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 rows, 0 failed" in done.stderr
    assert done.stdout.strip() == str(tmp_path / "run")


def test_what_no_task_can_begin_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ScalingError, match="is not empty; give a new directory"):
        launch_ray(config(48), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]

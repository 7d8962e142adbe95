"""A process for each GPU: the run is whole, a death costs its rows alone, and nobody is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from scaling.errors import ScalingError, StoreError, UsageError
from scaling.measure.cells import RunConfig
from scaling.measure.launch import device_groups, launch, launch_local, visible_devices
from scaling.measure.run import configure, resume
from scaling.results import Store

NO_GPUS = ["", ""]  # two workers that are shown none


def config(*lengths: int, **changes) -> RunConfig:
    small = {"model": "tiny", "context_size": 64, "head": 8, "prompt_tokens": 8, "method": "full", "repeats": 2}
    return configure({**small, "lengths": lengths, **changes})


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "scaling.measure.launch" in child.cmdline()]


@pytest.mark.parametrize(
    ("devices", "each", "groups"),
    [
        ([], 1, []),
        (["0"], 1, ["0"]),
        (["0", "1", "2"], 1, ["0", "1", "2"]),
        (["0", "1", "2", "3"], 2, ["0,1", "2,3"]),
        (["4", "GPU-5f", "7"], 2, ["4,GPU-5f"]),
        (["0"], 2, []),
    ],
)
def test_each_worker_is_shown_the_gpus_that_share_its_model(devices, each, groups):
    assert device_groups(devices, each) == groups


@pytest.mark.parametrize(("shown", "devices"), [(None, ["0", "1"]), ("3,GPU-5f", ["3", "GPU-5f"]), ("", [])])
def test_gpus_are_called_as_the_environment_calls_them(monkeypatch, shown, devices):
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(devices))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert visible_devices() == devices


def test_two_processes_fill_one_run_and_report_its_progress(tmp_path):
    seen, announced = [], []
    came = launch_local(
        NO_GPUS,
        config(48, 96),
        tmp_path / "run",
        observe=seen.append,
        announce=lambda _config, _device, planned: announced.append(len(planned)),
    )
    frame = came.store.frame()
    assert (len(frame), came.total, came.failed, came.died) == (8, 8, 0, ())
    assert (frame["status"] == "ok").all()
    assert announced == [4]
    assert all(progress.total == 8 for progress in seen)
    assert [p.stored for p in seen] == sorted(p.stored for p in seen)


def test_a_run_that_cannot_begin_says_why_once(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ScalingError, match=r"^.*is not empty; give a new directory"):
        launch_local(NO_GPUS, config(48), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_a_killed_worker_costs_its_rows_alone_and_resuming_measures_them(tmp_path):
    """The second worker has the shorter half, and dies before it can have stored it all."""
    killed = []

    def kill_one(_progress):
        if not killed:
            victim = wait_for(lambda: workers_of(psutil.Process()))[-1]
            killed.append(victim.pid)
            victim.kill()

    came = launch_local(NO_GPUS, config(48, 96), tmp_path / "run", observe=kill_one)
    [death] = came.died
    assert death.startswith("shard 2/2")
    assert "SIGKILL" in death
    saved = came.store.done()
    assert 0 < len(saved) < came.total
    again = resume(tmp_path / "run")
    assert saved < again.store.done()
    assert len(again.store.frame()) == again.total


DRIVER = """
import sys
from pathlib import Path
from scaling.measure.launch import launch_local
from scaling.measure.run import configure
given = {"model": "tiny", "lengths": (20000,), "method": "full", "repeats": 50}
try:
    launch_local(["", ""], configure(given), Path(sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_whatever_ends_the_launcher_ends_its_workers(tmp_path, how, code):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(out)], stderr=subprocess.DEVNULL)
    workers = wait_for(
        lambda: (found := workers_of(psutil.Process(process.pid))) and len(found) == 2 and found, seconds=100
    )
    process.send_signal(how)
    assert process.wait(60) == code
    wait_for(lambda: not any(worker.is_running() for worker in workers))
    Store.open(out)


def test_what_runs_no_model_here_needs_no_launcher(tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.measure.launch.visible_devices", lambda: ["0", "1"])
    monkeypatch.setattr("scaling.measure.launch.launch_local", lambda *_, **__: pytest.fail("started workers"))
    given = {"engine": "simulated", "gpu": "h100", "model": "qwen3-0.6b", "lengths": (1024,), "repeats": 1}
    for launcher in ("local", "ray"):
        assert launch(configure(given), tmp_path / launcher, launcher=launcher).failed == 0


def test_several_gpus_have_a_worker_each_and_go_on_as_many(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("scaling.measure.launch.visible_devices", lambda: ["0", "1", "2", "3"])
    monkeypatch.setattr("scaling.measure.launch.launch_local", lambda groups, *_, **__: asked.append(groups))
    launch(config(48), tmp_path / "run")
    assert asked == [["0", "1", "2", "3"]]


@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_a_run_that_is_there_is_not_taken_for_the_new_one(tmp_path, monkeypatch, launcher):
    monkeypatch.setattr("scaling.measure.launch.visible_devices", lambda: ["0", "1"])
    given = {"engine": "simulated", "gpu": "h100", "model": "qwen3-0.6b", "lengths": (1024,), "repeats": 1}
    launch(configure(given), tmp_path)
    with pytest.raises(StoreError, match="go on with it by --resume"):
        launch(config(48), tmp_path, launcher=launcher)


def test_an_unknown_launcher_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean ray"):
        launch(config(48), tmp_path / "run", launcher="rai")


def test_ray_that_is_missing_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"^--launcher ray needs Ray; pip install 'thinking-cost\[ray\]'$"):
        launch(config(48), tmp_path / "run", launcher="ray")
    assert not (tmp_path / "run").exists()

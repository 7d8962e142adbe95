"""A process measures when it has its turn, and its end is told from its failing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.gate.builds import Build, make
from scaling.gate.sessions import Benchmarks, Cells, CrashError, Session

TINY = {"model": "tiny", "modes": ("longcot",), "lengths": (8,), "method": "full", "prompt_tokens": 8}

pytestmark = pytest.mark.usefixtures("lean_pytest")


@pytest.fixture
def here(tmp_path: Path) -> Build:
    return make(sys.prefix, tmp_path)


def benchmarks(folder: Path, *bodies: str) -> Benchmarks:
    """A file of benchmarks that time these statements."""
    tests = (f"def test_{n}(benchmark):\n    benchmark.pedantic(lambda: {body})\n" for n, body in enumerate(bodies))
    (folder / "test_some.py").write_text("import os, time\n\n\n" + "\n\n".join(tests))
    return Benchmarks([str(folder / "test_some.py"), "-p", "no:cacheprovider"])


def test_each_benchmark_waits_for_its_turn(here: Build, tmp_path: Path) -> None:
    work = benchmarks(tmp_path, *(f"open({str(tmp_path / name)!r}, 'w').close()" for name in ("one", "two")))
    with Session(here, work, tmp_path / "out", turns=1) as session:
        session.wait(60)
        time.sleep(0.2)
        assert not (tmp_path / "one").exists()
        session.turn(60)
        assert (tmp_path / "one").exists()
        assert not (tmp_path / "two").exists()
        session.turn(60)
        assert session.over
    seconds = work.seconds(tmp_path / "out")
    assert [key.rpartition("::")[2] for key in seconds] == ["test_0", "test_1"]
    assert all(len(found) == 1 and found[0] > 0 for found in seconds.values())


def test_cells_are_measured_a_row_a_turn_after_a_repeat_that_warms_up(here: Build, tmp_path: Path) -> None:
    work = Cells(TINY)
    with Session(here, work, tmp_path / "out", turns=2) as session:
        session.wait(120)
        stored = list((tmp_path / "out" / "run").glob("*.parquet"))
        assert len(stored) == 1
        session.turn(60)
        assert not session.over
        session.turn(60)
        assert session.over
    (seconds,) = work.seconds(tmp_path / "out").values()
    assert len(seconds) == 2
    (cell,) = work.side(tmp_path / "out").measured.values()
    assert (cell.label, cell.counters["decode_tokens"]) == ("LongCoT at 8 tokens, rollout", 2 * 7)


def test_programs_that_a_benchmark_calls_are_those_of_its_build(
    here: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    found = tmp_path / "found"
    work = benchmarks(tmp_path, f"open({str(found)!r}, 'w').write(__import__('shutil').which('python'))")
    with Session(here, work, tmp_path / "out", turns=1) as session:
        session.wait(60)
        session.turn(60)
    assert found.read_text() == str(here.python)


def test_a_cell_of_which_one_repeat_failed_has_no_seconds(make_run: Callable[..., Path]) -> None:
    failed = {"status": "oom", "reason": "no room", "device_seconds_per_trace": None}
    repeats = [{"repeat": n, "device_seconds_per_trace": n + 1.0} for n in range(3)]
    cells = [{"cell_id": cell, **repeat} for repeat in repeats for cell in ("fine", "lost")]
    run = make_run(*cells[:-1], {**cells[-1], **failed})
    assert Cells({}).seconds(run.parent) == {"fine": [2.0, 3.0]}


def test_a_transfer_of_weights_has_no_traces_and_counts_by_its_own_seconds(make_run: Callable[..., Path]) -> None:
    sync = {"cell_id": "sync", "phase": "sync", "device_seconds_per_trace": None}
    run = make_run(*({**sync, "repeat": n, "wall_seconds": 2.0 + n} for n in range(3)))
    assert Cells({}).seconds(run.parent) == {"sync": [3.0, 4.0]}


def test_a_wheel_is_not_timed_where_its_benchmarks_import_the_sources_beside_them(project: Any, tmp_path: Path) -> None:
    """A `conftest.py` makes pytest put the folder that it lies in before what is installed."""
    (project.folder / "conftest.py").touch()
    project.commit("return 1")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "--wheel-dir", tmp_path / "wheels", "."], check=True)
    (tmp_path / "a").mkdir()
    build = make(str(next((tmp_path / "wheels").glob("*.whl"))), tmp_path / "a")
    refused = pytest.raises(CrashError, match=r"quick is imported from .*project/quick/__init__.py, not from the build")
    with Session(build, Benchmarks(["benchmarks"]), tmp_path / "one", turns=1) as session, refused:
        session.wait(60)
    importlib = Benchmarks(["benchmarks", "--import-mode=importlib"])
    with Session(build, importlib, tmp_path / "two", turns=1) as session:
        session.wait(60)
        assert not session.over


def test_a_crash_says_what_the_process_said_last(here: Build, tmp_path: Path) -> None:
    with Session(here, Cells({**TINY, "model": "no-such-model"}), tmp_path / "out", turns=1) as session:
        with pytest.raises(CrashError, match=r"crashed \(exit code 1\): .*no-such-model") as caught:
            session.wait(60)
        assert caught.value.build is here


def test_a_failing_benchmark_is_a_crash_with_its_error(here: Build, tmp_path: Path) -> None:
    with Session(here, benchmarks(tmp_path, "1 / 0"), tmp_path / "out", turns=1) as session:
        session.wait(60)
        with pytest.raises(CrashError, match="ZeroDivisionError"):
            session.turn(60)


def test_a_process_that_is_killed_says_so(here: Build, tmp_path: Path) -> None:
    with Session(here, benchmarks(tmp_path, "os.kill(os.getpid(), 9)"), tmp_path / "out", turns=1) as session:
        session.wait(60)
        with pytest.raises(CrashError, match="ended by signal 9"):
            session.turn(60)


def test_a_process_that_ends_before_its_own_processes_has_ended(here: Build, tmp_path: Path) -> None:
    with Session(here, benchmarks(tmp_path, "os.fork() or time.sleep(600)"), tmp_path / "out", turns=1) as session:
        session.wait(60)
        session.turn(10)
        assert session.over


def test_a_process_that_hangs_is_ended(here: Build, tmp_path: Path) -> None:
    with Session(here, benchmarks(tmp_path, "time.sleep(600)"), tmp_path / "out", turns=1) as session:
        session.wait(60)
        with pytest.raises(CrashError, match="hung: no sign of life for 1 s"):
            session.turn(1)
    assert session._process.returncode == -9


def test_a_process_whose_gate_is_gone_ends_by_itself(here: Build, tmp_path: Path) -> None:
    session = Session(here, benchmarks(tmp_path, "None"), tmp_path / "out", turns=1)
    session.wait(60)
    os.close(session._give)
    assert session._process.wait(30) != 0
    os.close(session._heard)

"""A process measures when it has its turn, and its end is told from its failing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from scaling.gate.builds import Build, make
from scaling.gate.sessions import Benchmarks, Cells, CrashError, Session

TINY = {"model": "tiny", "modes": ("longcot",), "lengths": (8,), "method": "full", "prompt_tokens": 8}


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


def test_a_process_that_hangs_is_ended(here: Build, tmp_path: Path) -> None:
    with Session(here, benchmarks(tmp_path, "time.sleep(600)"), tmp_path / "out", turns=1) as session:
        session.wait(60)
        with pytest.raises(CrashError, match="hung: no sign of life for 1 s"):
            session.turn(1)
    assert session._process.returncode == -9


def test_a_process_whose_gate_is_gone_ends_by_itself(here: Build, tmp_path: Path) -> None:
    session = Session(here, benchmarks(tmp_path, "None"), tmp_path / "out", turns=1)
    session.wait(60)
    import os

    os.close(session._give)
    assert session._process.wait(30) != 0
    os.close(session._heard)

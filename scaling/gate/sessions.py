"""A process of one build that measures in turns, so that two of them share a machine without sharing a moment."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.errors import ScalingError
from scaling.gate.builds import Build, clean_environment
from scaling.gate.side import Side, read_side
from scaling.results import Store

DRIVERS = Path(__file__).parent / "drivers"
THREADS = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
"""One unless it is said: threads that wait for each other wait for every other process of a busy machine."""

BENCHMARKS = "benchmarks.json"
RUN = "run"


class CrashError(ScalingError):
    """A process of `build` that ended as it should not, or not at all."""

    def __init__(self, build: Build, message: str) -> None:
        super().__init__(message)
        self.build = build


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of `scaling run`, a repeat a turn: the options, as `RunConfig` has them, that differ from its defaults."""

    options: Mapping[str, Any]

    module = "scaling"

    def command(self, out: Path, turns: int) -> list[str]:
        """`turns` repeats of each cell, and one before them that warms up."""
        options = json.dumps({**self.options, "repeats": turns + 1})
        return [str(DRIVERS / "scaling_cells.py"), str(out / RUN), options]

    def side(self, out: Path) -> Side:
        return read_side(out / RUN)

    def seconds(self, out: Path) -> dict[str, list[float]]:
        """Of each cell, the device-seconds a trace of each turn, of a `sync` the seconds; of turns on a busy machine
        too, as both sides have them. A cell of which a repeat failed has none."""
        rows = Store.open(out / RUN).frame().sort_values("repeat")
        failed = rows[rows["status"] != "ok"]["cell_id"]
        measured = rows[(rows["repeat"] > 0) & ~rows["cell_id"].isin(failed)]
        took = measured["device_seconds_per_trace"].fillna(measured["wall_seconds"])
        cells = took.groupby(measured["cell_id"], sort=False)
        return {str(cell): [float(s) for s in seconds] for cell, seconds in cells}


@dataclass(frozen=True, slots=True)
class Benchmarks:
    """The benchmarks that pytest finds by these arguments, each a turn."""

    arguments: Sequence[str]

    module = "pytest_benchmark"

    def command(self, out: Path, turns: int) -> list[str]:
        return ["-m", "pytest", "-p", "scaling_turns", *self.arguments, f"--benchmark-json={out / BENCHMARKS}"]

    def side(self, out: Path) -> Side:
        path = out / BENCHMARKS
        return read_side(path) if path.exists() else Side(BENCHMARKS, "benchmarks", {}, None, {})  # where none was run

    def seconds(self, out: Path) -> dict[str, list[float]]:
        """Of each benchmark, the median of its rounds, one value; none where a quartile is too short for the clock."""
        measured = self.side(out).measured
        return {key: [found.seconds[1]] if len(found.seconds) == 3 else [] for key, found in measured.items()}


Work = Cells | Benchmarks


class Session:
    """One process of a build. It loads at once, then measures a turn whenever it is given one, until it is `over`.

    Use it as a context: leaving ends the process.
    """

    def __init__(self, build: Build, work: Work, out: Path, turns: int) -> None:
        out.mkdir(parents=True)
        self.build, self.out, self.over = build, out, False
        give, self._give = os.pipe()
        self._heard, tell = os.pipe()
        ours = {"PYTHONPATH": str(DRIVERS), "SCALING_TURNS": f"{give},{tell}"}
        ours["PATH"] = f"{build.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # its own programs
        if build.own is not None:
            ours["SCALING_OWN"] = str(build.own)
        with (out / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [build.python, "-P", *work.command(out, turns)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(give, tell),
                cwd=build.sources,
                start_new_session=True,  # so that its own processes end with it
                env=clean_environment() | THREADS | ours,
            )
        os.close(give)
        os.close(tell)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._give)
        os.close(self._heard)

    def turn(self, seconds: float) -> float:
        """Gives a turn and returns how many seconds it took; raises `CrashError` if it takes longer than `seconds`."""
        started = time.perf_counter()
        with suppress(BrokenPipeError):  # it has ended: waiting tells how
            os.write(self._give, b"\n")
        self.wait(seconds)
        return time.perf_counter() - started

    def wait(self, seconds: float) -> None:
        """Waits until the process asks for a turn, or has ended well, and is `over`; else raises `CrashError`."""
        until, ended = time.monotonic() + seconds, False
        while not (ready := select.select([self._heard], [], [], min(1.0, seconds))[0]) and not ended:
            ended = self._process.poll() is not None  # a process of its own may hold the pipe
            if not ended and time.monotonic() >= until:
                raise CrashError(self.build, f"{self.build.described} hung: no sign of life for {seconds:.0f} s")
        if ready and os.read(self._heard, 1):
            return
        self.over = True
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise CrashError(self.build, f"{self.build.described} hung at its end for {seconds:.0f} s") from error
        if code:
            raise CrashError(self.build, f"{self.build.described} {_end(code)}: {self._last_words()}")

    def _last_words(self) -> str:
        lines = (self.out / "output").read_text(errors="replace").splitlines()
        told = [line.strip() for line in lines if line.strip()]
        failed = [line for line in told if line.startswith(("E  ", "FAILED", "ERROR"))]
        return (failed or told[-1:] or ["it said nothing"])[0]


def _end(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"crashed (exit code {code})"

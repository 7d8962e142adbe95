"""Takes turns with another process: says on one pipe that a turn is over, waits on another for the next.

A pytest plugin too (`-p scaling_turns`), under which every test is a turn.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

NO_CODE = {"tests", "test", "benchmarks", "conftest"}
"""What some wheels hold by mistake, and pytest imports from where it finds it."""

_go, _over = (int(pipe) for pipe in os.environ["SCALING_TURNS"].split(","))


def hand_over() -> None:
    """Ends a turn; returns when the next begins. The process ends where nobody is left to give one."""
    try:
        os.write(_over, b"\n")
        again = os.read(_go, 1)
    except OSError:
        again = b""
    if not again:
        sys.exit("nobody gives turns any more")


def pytest_runtest_setup() -> None:
    hand_over()


def pytest_collection_finish() -> None:
    """Refuses what would time other code than the build's own: pytest puts the folders of tests before what is
    installed, and a project's sources may lie in one."""
    import pytest

    if "SCALING_OWN" not in os.environ:
        return
    own = Path(os.environ["SCALING_OWN"]).resolve()
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    files = [file for found in distributions(path=sorted(places)) for file in found.files or ()]
    modules = [file for file in files if len(file.parts) == 1 or (file.match("*/__init__.*") and len(file.parts) == 2)]
    for name in {file.parts[0].partition(".")[0] for file in modules} - NO_CODE:
        place = getattr(sys.modules.get(name), "__file__", None)
        if place and own not in Path(place).resolve().parents:
            raise pytest.UsageError(
                f"{name} is imported from {place}, not from the build; --import-mode=importlib helps"
            )

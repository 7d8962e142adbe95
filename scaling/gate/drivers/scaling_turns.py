"""Takes turns with another process: says on one pipe that a turn is over, waits on another for the next.

A pytest plugin too (`-p scaling_turns`), under which every test is a turn.
"""

from __future__ import annotations

import os
import sys

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

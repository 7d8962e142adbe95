"""Measures the cells of a run, a row a turn, after a first repeat that warms up: `cells.py OUT OPTIONS`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import scaling_turns

import scaling

if TYPE_CHECKING:
    from scaling.measure.sweep import Progress

out, told = sys.argv[1], json.loads(sys.argv[2])
options: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
stored = 0


def observe(progress: Progress) -> None:
    """Hands over when a row is stored, but during the first repeat and after the last row."""
    global stored  # noqa: PLW0603
    if progress.stored > stored:
        stored = progress.stored
        if progress.total // options["repeats"] <= stored < progress.total:
            scaling_turns.hand_over()


scaling.run(out=out, observe=observe, **options)

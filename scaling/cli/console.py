"""What the commands share for talking: progress and remarks on stderr, JSON alone on stdout, one exit code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling.results import SCHEMA_VERSION

FINISHED_WITH_FAILURES = 4
"""The exit code of a command that did its work, though a part of it failed."""

SPACES = "\xa0\u2009\u202f"
"""Printed as they are, beside the space: those between numbers and units."""

console = Console(stderr=True, highlight=False)
"""For progress bars and tables that accompany the work; plain where stderr is no terminal or NO_COLOR is set."""


def visible(text: str) -> str:
    """The text with what would steer a terminal (control and format characters, line ends) as escapes."""
    return "".join(c if c.isprintable() or c in SPACES else c.encode("unicode_escape").decode() for c in text)


def say(message: str) -> None:
    """One plain line on stderr, never wrapped, whatever brackets it holds."""
    console.print(visible(message), markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """One line on stderr about something that did not stop the work."""
    console.print(f"scaling: warning: {visible(message)}", style="yellow", markup=False, soft_wrap=True)


def print_json(obj: Mapping[str, Any]) -> None:
    """Prints the object on stdout as JSON, `schema_version` first.

    Dataclasses, paths and NumPy values may be in it; a NaN or infinity is a `ValueError`: JSON has none, send None.
    """
    print(json.dumps({"schema_version": SCHEMA_VERSION, **obj}, indent=2, allow_nan=False, default=_plain))


def print_json_list(rows: Iterable[Mapping[str, Any]]) -> None:
    """The same for a list of objects, each with its `schema_version`."""
    listed = [{"schema_version": SCHEMA_VERSION, **row} for row in rows]
    print(json.dumps(listed, indent=2, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")

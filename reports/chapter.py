"""A chapter of a report: what it found in sentences, then sections of figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.drawing import Drawing
from reports.tables import Table


@dataclass(frozen=True, slots=True)
class Section:
    """One heading with what stands below it."""

    anchor: str
    title: str
    text: list[str]
    drawings: list[Drawing]
    tables: list[Table]


@dataclass(frozen=True, slots=True)
class Chapter:
    """`sentences` for people, and `numbers` that say the same to programs. Anchors and names are the report's own."""

    title: str
    sentences: list[str]
    numbers: Mapping[str, Any]
    sections: list[Section]

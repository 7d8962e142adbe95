"""A run in parts that writers measure apart: which cells belong together, whose they are, how far all have come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaling.errors import UsageError
from scaling.measure.cells import RunConfig
from scaling.measure.plan import PlannedCell
from scaling.measure.run import Outcome, Part, check_same, execute, located, missing, planned_cells, prepare, resume
from scaling.measure.sweep import Progress
from scaling.results import Store
from scaling.results.store import MANIFEST

POLL_SECONDS = 0.3  # between two looks at what writers have stored

Announce = Callable[[RunConfig, str, list[PlannedCell]], None]
"""Told, as soon as they are known: the configuration, the device, and the cells that this writer sees to."""


def units(planned: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
    """What only one writer can measure, the longest first: a cell with all its repeats.

    The profiled rollouts are one unit: they integrate the same grid, which is as much work for one of them.
    """
    profiled = [p for p in planned if _on_grid(p)]
    alone = [[p] for p in planned if not _on_grid(p)]
    return sorted([*alone, *([profiled] if profiled else [])], key=lambda unit: (-_seconds(unit), unit[0].cell.id))


def shares(planned: Sequence[PlannedCell], count: int) -> list[list[PlannedCell]]:
    """The cells in `count` shares of about equal expected seconds: each unit, the longest first, to the least loaded.

    The same for every writer that reads the same plan.
    """
    found: list[list[PlannedCell]] = [[] for _ in range(count)]
    for unit in units(planned):
        min(found, key=lambda share: (_seconds(share), len(share))).extend(unit)
    return found


def _on_grid(planned: PlannedCell) -> bool:
    return planned.cell.phase == "rollout" and planned.cell.method == "profile"


def _seconds(unit: Sequence[PlannedCell]) -> float:
    return sum(p.weight for p in unit)


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a run that the `index`-th of `count` writers measures, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"shard {text!r} is not one of several; give i/n with i from 1 to n, as in 2/8")
        return cls(int(match[1]), int(match[2]))

    def __call__(self, planned: list[PlannedCell]) -> list[PlannedCell]:
        return shares(planned, self.count)[self.index - 1]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def join(
    config: RunConfig | None,
    out: Path,
    part: Part,
    *,
    observe: Callable[[Progress], None] = lambda _: None,
    announce: Announce = lambda *_: None,
    command: str | None = None,
) -> Outcome:
    """Measures `part` of the run in `out`, which it begins if it comes first; without a `config` it only joins.

    Raises `StoreError` where the run there measures something else, or began on another kind of machine.
    """
    if config is not None and not (out / MANIFEST).exists():
        prepared = prepare(config)
        announce(prepared.config, prepared.device, part(prepared.planned))
        return execute(prepared, out, part=part, shared=True, observe=observe, command=command)
    store = Store.open(out)
    if config is not None:
        config = located(config)[0]
        check_same(store, config)
        announce(config, store.manifest["device"], part(planned_cells(store)))
    return resume(out, part=part, observe=observe)


class Tally:
    """How far several writers together have come, by the rows that they have stored."""

    def __init__(self, store: Store, writers: int) -> None:
        self.store, self.writers, self.planned = store, writers, planned_cells(store)
        self.expected = {p.cell.id: p.weight for p in self.planned}
        self.total = len(self.planned) * int(store.manifest["config"]["repeats"])
        self.started = time.perf_counter()
        self.foreseen = self._seconds(missing(store, self.planned))

    def _seconds(self, rows: set[tuple[str, int]]) -> float:
        return sum(self.expected[cell] for cell, _ in rows)

    def progress(self) -> Progress:
        lacking = missing(self.store, self.planned)
        left = self._seconds(lacking)
        passed = (time.perf_counter() - self.started) * self.writers
        speed = passed / (self.foreseen - left) if left < self.foreseen else 1.0
        stored = self.total - len(lacking)
        return Progress(stored, self.total, f"{self.writers} workers", None, left * speed / self.writers)

"""Decides, before anything is measured, which cells a run has, by which method, and how long each should take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaling.engines.base import Limits
from scaling.measure import profile
from scaling.measure.cells import SIMULATED, Cell, RunConfig, cells_for
from scaling.predict.roofline import Machine, Precision, Roofline
from scaling.predict.shape import DTYPE_BYTES, Shape
from scaling.results import Phase

AUTO_FULL_SECONDS = 270.0
"""What `auto` lets a run's full rollouts take in all, before it profiles the whole curve as well."""


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell and the seconds that one repeat of it should take, None where that cannot be known."""

    cell: Cell
    seconds: float | None

    @property
    def weight(self) -> float:
        """What shares and progress go by: expected seconds, or tokens where a server's speed cannot be foreseen."""
        return self.seconds or float(self.cell.traces * self.cell.thinking_tokens)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlannedCell:
        seconds = data["expected_seconds"]
        return cls(Cell.from_json(data), None if seconds is None else float(seconds))


def plan(
    config: RunConfig,
    shape: Shape,
    machine: Machine,
    *,
    weights: str,
    device: str,
    training: Machine | None = None,
) -> list[PlannedCell]:
    """The cells of a run on a `machine`, of which `training` is what it is in training phases if not the same.

    `auto` measures rollouts in full, from the shortest length up, as far as they should take `AUTO_FULL_SECONDS` in
    all; if lengths are left, the rollout of every length is profiled too, so that one curve reaches the longest with
    one method. Training phases have no such short cut for LongCoT: `auto` measures them where rollouts are full, and
    everywhere where no rollout is asked for. Simulated rollouts cost no time to speak of: `auto` takes all in full.
    """

    def cells(method: Any, lengths: tuple[int, ...], phases: tuple[Phase, ...]) -> list[PlannedCell]:
        made = cells_for(config, method, lengths, phases, weights=weights, device=device)
        trained = training or machine
        return [
            PlannedCell(cell, expected_seconds(cell, shape, machine if cell.phase == "rollout" else trained))
            for cell in made
        ]

    if config.method == "profile":
        return _share_visits(cells("profile", config.lengths, config.phases), shape, machine)
    if config.method == "full" or config.engine == SIMULATED or "rollout" not in config.phases:
        return cells("full", config.lengths, config.phases)
    reached: tuple[int, ...] = ()
    left = AUTO_FULL_SECONDS
    for length in config.lengths:
        left -= config.repeats * sum(p.seconds or 0.0 for p in cells("full", (length,), ("rollout",)))
        if left < 0:
            break
        reached += (length,)
    planned = cells("full", reached, config.phases)
    if reached != config.lengths:
        planned += _share_visits(cells("profile", config.lengths, ("rollout",)), shape, machine)
    return planned


def expected_seconds(cell: Cell, shape: Shape, machine: Machine) -> float:
    """Roofline seconds of measuring one repeat of the cell in full."""
    if cell.phase == "sync":
        return 2 * shape.parameters * DTYPE_BYTES[cell.weight_dtype] / machine.bandwidth_bytes_per_s
    roofline = Roofline(shape, machine, Precision(cell.weight_dtype, cell.activation_dtype, cell.kv_dtype))
    if cell.phase == "rollout":
        waves = Counter(profile.rows_of(cell, Limits(10**18, cell.concurrency, 10**18)))
        return sum(times * float(roofline.rollout(cell.segments, rows).total) for rows, times in waves.items())
    a_trace = roofline.update(cell.segments) if cell.phase == "update" else roofline.logprob(cell.segments)
    return cell.traces * float(a_trace.total)


def _share_visits(planned: list[PlannedCell], shape: Shape, machine: Machine) -> list[PlannedCell]:
    """Gives each profiled rollout its part of the time that the visits of their common grid should take."""
    rollouts = [p for p in planned if p.cell.phase == "rollout"]
    if not rollouts:
        return planned
    limits = Limits(10**18, rollouts[0].cell.concurrency, 10**18)
    roofline = Roofline(shape, machine, Precision.of(rollouts[0].cell.weight_dtype))
    total = 0.0
    for point in profile.points_for([p.cell for p in rollouts], limits):
        if point.kind == "prefill":
            total += profile.VISITS / 2 * point.rows * float(roofline.prefill(point.tokens).total)
        else:
            once = float(roofline.decode(point.rows, point.rows * point.tokens).total)
            total += profile.VISITS * (profile.WARM_UP_STEPS + profile.STEPS) * once
    return [PlannedCell(p.cell, total / len(rollouts)) if p.cell.phase == "rollout" else p for p in planned]

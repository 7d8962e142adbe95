"""Runs all cells of a run, environments interleaved, and stores each repeat as soon as it exists."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from scaling.errors import MemoryLimitError, ran_out_of_memory
from scaling.measure import profile
from scaling.measure.cells import OPENAI, SIMULATED, Cell
from scaling.measure.full import Measurement, measure_full
from scaling.measure.plan import PlannedCell
from scaling.measure.rows import Context, build_row
from scaling.measure.served import seen_from_here
from scaling.measure.subject import Subject
from scaling.measure.telemetry import Occupancy, Telemetry
from scaling.results import Status, Store

OBSERVE_SECONDS = 0.2  # between two progress reports of one cell


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: repeats of cells stored and in all, what is measured now, the tokens it samples a second, and
    the seconds left at the speed seen so far, None where no speed is known yet."""

    stored: int
    total: int
    now: str
    tokens_per_second: float | None
    seconds_left: float | None


class Sweep:
    """One run's measuring loop over its `planned` cells; repeats that the store already has are skipped."""

    def __init__(
        self,
        subject: Subject,
        planned: Sequence[PlannedCell],
        store: Store,
        *,
        repeats: int,
        seed: int,
        device_name: str,
        fingerprint_id: str,
        observe: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.subject, self.store, self.seed, self.observe = subject, store, seed, observe
        self.context = Context(subject.shape, device_name, subject.devices, fingerprint_id)
        self.timed = all(p.seconds is not None for p in planned)
        self.expected = {p.cell.id: p.weight for p in planned}
        done = store.done()
        self.pending = [[p.cell for p in planned if (p.cell.id, r) not in done] for r in range(repeats)]
        self.total = repeats * len(planned)
        self.stored = self.total - sum(map(len, self.pending))
        self.left = sum(self.expected[cell.id] for cells in self.pending for cell in cells)
        self.measured = self.foreseen = 0.0  # seconds of what is done, as they were and as they were expected

    def run(self) -> None:
        """Measures what is missing. Raises only what ends a run: a store that cannot be written, an interrupt."""
        if self.stored == self.total:
            return
        self.subject.warm_up(self.seed)
        for repeat, cells in enumerate(self.pending):
            full = [c for c in cells if c.phase == "rollout" and c.method == "full"]
            profiled = [c for c in cells if c.phase == "rollout" and c.method == "profile"]
            visits = Visits(self.subject, profiled, seed=self.seed + repeat)
            self._rollouts(_interleaved(full, self.seed + repeat), visits, repeat)
            self._profiles(profiled, visits, repeat)
            training = [c for c in cells if c.phase != "rollout"]
            if training:
                # its KV memory is the trainer's meanwhile, as where both share a device
                if shared := any(cell.phase != "sync" for cell in training):
                    self.subject.engine.sleep()
                for cell in _interleaved(training, self.seed + repeat):
                    self._attempt(cell, repeat, self.subject.train)
                if shared:
                    self.subject.engine.wake()

    def _rollouts(self, cells: Sequence[Cell], visits: Visits, repeat: int) -> None:
        """Full measurements, the grid's visits spread evenly between their steps."""
        expected = sum(self.expected[cell.id] for cell in cells)
        begun = 0.0
        for cell in cells:
            interlude = Interlude(self, visits, cell, begun / expected, self.expected[cell.id] / expected)
            self._attempt(cell, repeat, interlude.measure)
            begun += self.expected[cell.id]

    def _profiles(self, cells: Sequence[Cell], visits: Visits, repeat: int) -> None:
        """The visits that are left, the grid on disk, then the rows integrated from it."""
        if not cells:
            return
        while visits.share < 1:
            visits.one()
            self.report(f"grid of {len(visits.points)} points", cells, visits.share)
        grid_id = profile.grid_id(visits.grid, f"{self.context.fingerprint_id}/{cells[0].id}/{repeat}")
        self.store.save_grid(grid_id, visits.grid.to_json())
        for cell in cells:
            self._attempt(cell, repeat, partial(visits.measurement, grid_id=grid_id))

    def _attempt(self, cell: Cell, repeat: int, measure: Callable[[Cell, int], Measurement]) -> None:
        """Stores the row of `measure(cell, seed)`, or the row that says how it failed."""
        seed = self.seed + repeat
        started, clock = time.time(), time.perf_counter()
        outcome: Measurement | tuple[Status, str]
        subject = self.subject
        with Telemetry(subject.torch_device, gpus=subject.devices, apart=subject.apart) as telemetry:
            try:
                outcome = measure(cell, seed)
            except Exception as error:
                outcome = _failure(error)
        row = build_row(cell, repeat, seed, started, self.context, telemetry, outcome)
        self.store.append(row)
        self.stored += 1
        self.left -= self.expected[cell.id]
        if cell.method == "full":
            self.measured += time.perf_counter() - clock
            self.foreseen += self.expected[cell.id]
        self.report(label(cell), (), 1.0, row.tokens_per_second)

    def report(self, now: str, cells: Sequence[Cell], share: float, rate: float | None = None) -> None:
        """Tells the observer that `share` of these cells is done, at `rate` tokens a second."""
        speed = self.measured / self.foreseen if self.foreseen else 1.0 if self.timed else None
        left = max(self.left - share * sum(self.expected[cell.id] for cell in cells), 0.0)
        self.observe(Progress(self.stored, self.total, now, rate, None if speed is None else left * speed))


class Interlude:
    """What happens between the steps of a full measurement: visits when they are due, and progress.

    The cell is `part` of the repeat's expected seconds, from `begun` on (both 0 to 1).
    """

    def __init__(self, sweep: Sweep, visits: Visits, cell: Cell, begun: float, part: float) -> None:
        self.sweep, self.visits, self.cell, self.begun, self.part = sweep, visits, cell, begun, part
        self.started = self.reported = time.perf_counter()
        self.aside = 0.0
        self.visited = False

    def measure(self, cell: Cell, seed: int) -> Measurement:
        """Measures the cell, itself in between."""
        engine = self.sweep.subject.engine
        before = engine.stats()
        found = measure_full(engine, cell, seed, interlude=self)
        if cell.engine == OPENAI:
            found = seen_from_here(found, self.sweep.subject.served, before, engine.stats())
        if cell.engine == SIMULATED:  # its seconds are not ours
            found = replace(found, elapsed_seconds=time.perf_counter() - self.started - self.aside)
        return replace(found, disturbed=self.visited)

    def __call__(self, done: float) -> None:
        entered = time.perf_counter()
        due = min(self.begun + self.part * done, 1.0)  # the sum may round to more than all
        if self.visits.share < due and self.sweep.subject.beside:
            self.visits.one()
            self.visited = True
        if entered - self.reported > OBSERVE_SECONDS:
            self.reported = entered
            tokens = done * self.cell.traces * self.cell.thinking_tokens
            rate = tokens / max(entered - self.started - self.aside, 1e-9)
            self.sweep.report(label(self.cell), [self.cell], done, rate)
        self.aside += time.perf_counter() - entered


class Visits:
    """The visits of one repeat to the grid that some profiled cells need."""

    def __init__(self, subject: Subject, cells: Sequence[Cell], *, seed: int) -> None:
        self.subject, self.limits = subject, subject.profile_limits
        fitting = [cell for cell in cells if cell.peak_context <= self.limits.kv_tokens]
        self.points = profile.points_for(fitting, self.limits)
        self.order = profile.shuffled_visits(self.points, seed)
        self.grid = profile.Grid()
        self.occupancy = Occupancy(subject.torch_device, subject.devices)
        self.done = self.tokens = 0
        self.seconds = 0.0

    @property
    def share(self) -> float:
        return self.done / len(self.order) if self.order else 1.0

    def one(self) -> None:
        """Makes the next visit; a point that does not fit in memory stays unvisited."""
        point = self.order[self.done]
        self.done += 1
        self.occupancy.start()
        started = time.perf_counter()
        try:
            seconds, tokens = profile.visit(self.subject.profilable, point)
        except MemoryLimitError:
            return
        finally:
            self.occupancy.stop()
        self.grid.visits.setdefault(point, []).append(seconds)
        self.seconds += time.perf_counter() - started
        self.tokens += tokens

    def measurement(self, cell: Cell, seed: int, *, grid_id: str) -> Measurement:
        """The cell's rollout, integrated over the grid; its tokens are those its schedule stands for."""
        prefill, decode = profile.cell_seconds(self.grid.mean(), cell, self.limits)
        rows, segments = profile.rows_of(cell, self.limits), cell.segments
        return Measurement(
            wall_seconds=prefill + decode,
            elapsed_seconds=self.seconds,
            processed_tokens=self.tokens,
            actual_thinking_tokens=float(cell.thinking_tokens),
            chunks=cell.traces * len(segments),
            prefill_computed_tokens=cell.traces * sum(s.prefill for s in segments),
            prefill_cached_tokens=cell.traces * sum(s.reused for s in segments),
            decode_tokens=cell.traces * sum(s.steps for s in segments),
            concurrency_mean=cell.traces / len(rows),
            concurrency_peak=max(rows),
            preemptions=0,
            prefill_seconds=prefill,
            decode_seconds=decode,
            peak_kv_tokens=max(rows) * max(s.prompt + s.steps for s in segments),
            occupancy=self.occupancy,
            grid_id=grid_id,
        )


def _interleaved(cells: Sequence[Cell], seed: int) -> list[Cell]:
    """Lengths in random order, at each length the environments next to each other and in random order: drift hits
    both."""
    generator = random.Random(seed)
    order = generator.sample(list(cells), len(cells))
    first = {length: at for at, length in reversed(list(enumerate(c.thinking_tokens for c in order)))}
    return sorted(order, key=lambda cell: first[cell.thinking_tokens])


def label(cell: Cell) -> str:
    return f"{cell.environment} {cell.phase} {cell.thinking_tokens:,} tokens ({cell.method})"


def _failure(error: Exception) -> tuple[Status, str]:
    """What a failed row says; memory that ran out is told from every other fault."""
    text = " ".join(str(error).split()) or type(error).__name__
    return ("oom", text) if ran_out_of_memory(error) else ("error", f"{type(error).__name__}: {text}")

"""Measures a rollout by running it: traces sampled to the end at a fixed length."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from scaling.engines.base import Engine
from scaling.measure.cells import Cell
from scaling.measure.telemetry import Occupancy
from scaling.rollout import Sampling, rollout


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one repeat of one cell took; totals over its traces, seconds and tokens.

    `processed_tokens` went through the model for this measurement; `elapsed_seconds` is the measuring's own time.
    `disturbed`: other work was done in between, so the process's memory and energy are not this measurement's alone.
    `occupancy`: who used the machine, where that was watched apart. Of a server: `retried` requests were sent again,
    and `drifted_tokens` came back from text as others.
    """

    wall_seconds: float
    elapsed_seconds: float
    processed_tokens: int
    actual_thinking_tokens: float | None = None
    failed_traces: int = 0
    chunks: int | None = None
    prefill_computed_tokens: int | None = None
    prefill_cached_tokens: int | None = None
    decode_tokens: int | None = None
    concurrency_mean: float | None = None
    concurrency_peak: int | None = None
    waiting_peak: int | None = None
    preemptions: int | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    peak_kv_tokens: int | None = None
    disturbed: bool = False
    occupancy: Occupancy | None = None
    retried: int = 0
    drifted_tokens: int | None = None
    failure: str | None = None
    grid_id: str | None = None


def random_queries(count: int, tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Distinct prompts of random tokens, so that no cache can share what they hold."""
    generator = random.Random(seed)
    return [[generator.randrange(vocabulary) for _ in range(tokens)] for _ in range(count)]


def measure_full(
    engine: Engine, cell: Cell, seed: int, *, interlude: Callable[[float], None] | None = None
) -> Measurement:
    """Samples the cell's traces, end-of-sequence ignored, and returns what it took.

    `interlude(done)` is called after every engine step with the share of tokens sampled so far; the seconds that it
    takes on the engine's clock are not the rollout's.
    """
    environment = cell.rebuild_environment()
    lengths = cell.response_lengths
    queries = random_queries(cell.traces, cell.prompt_tokens, engine.vocabulary, seed)
    before = engine.stats(new_peaks=True)
    expected = cell.traces * sum(segment.steps for segment in cell.segments)
    aside = 0.0

    def on_step() -> None:
        nonlocal aside
        if interlude is not None:
            done = engine.stats().decode_tokens - before.decode_tokens
            entered = engine.now()
            interlude(done / max(expected, 1))
            aside += engine.now() - entered

    start = engine.now()
    traces = rollout(
        engine,
        environment,
        queries,
        sampling=Sampling(seed=seed),
        lengths=[lengths] * cell.traces,
        concurrency=cell.concurrency,
        on_step=on_step,
    )
    wall = engine.now() - start - aside
    after = engine.stats()
    steps = after.decode_steps - before.decode_steps
    decoded = after.decode_tokens - before.decode_tokens
    prefilled = after.prefill_tokens - before.prefill_tokens
    failed = [trace for trace in traces if trace.error is not None]
    return Measurement(
        wall_seconds=wall,
        elapsed_seconds=wall,
        processed_tokens=prefilled + decoded,
        actual_thinking_tokens=sum(trace.thinking_tokens for trace in traces) / len(traces),
        failed_traces=len(failed),
        chunks=sum(len(trace.chunks) for trace in traces),
        prefill_computed_tokens=prefilled,
        prefill_cached_tokens=sum(trace.cached for trace in traces),
        decode_tokens=decoded,
        concurrency_mean=decoded / steps if steps else float(min(cell.concurrency, cell.traces)),
        concurrency_peak=after.peak_running,
        waiting_peak=after.peak_waiting,
        preemptions=after.preemptions - before.preemptions,
        prefill_seconds=after.prefill_seconds - before.prefill_seconds,
        decode_seconds=after.decode_seconds - before.decode_seconds,
        peak_kv_tokens=after.peak_kv_tokens,
        failure=f"{len(failed)} of {len(traces)} traces failed: {failed[0].error}" if failed else None,
    )

"""Turns what a measurement found into a row, or into a row that says why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaling.measure.cells import OPENAI, SIMULATED, Cell
from scaling.measure.full import Measurement
from scaling.measure.served import SERVED
from scaling.measure.telemetry import Telemetry
from scaling.predict.shape import FlopsConvention, Shape
from scaling.results import PROFILED_MEANWHILE, SCHEMA_VERSION, Row, Status
from scaling.thinking.base import token_ids

FLOPS_CONVENTION: FlopsConvention = "causal"

APART = "the model ran in other processes"
"""Why there is no memory where only its own process could tell."""


@dataclass(frozen=True, slots=True)
class Context:
    """What all rows of a run share."""

    shape: Shape
    device_name: str
    devices: int
    fingerprint_id: str


def build_row(
    cell: Cell,
    repeat: int,
    seed: int,
    started_unix: float,
    context: Context,
    telemetry: Telemetry,
    outcome: Measurement | tuple[Status, str],
) -> Row:
    """The row of a repeat: with metrics if `outcome` is a measurement, with nulls and a reason if it is a failure."""
    found: Measurement | None = None
    status: Status = "ok"
    reason: str | None = None
    if not isinstance(outcome, Measurement):
        status, reason = outcome
    elif outcome.failure:
        status, reason = "error", outcome.failure
    else:
        found = outcome
    valid, invalid = (False, "failed") if found is None else (telemetry.seconds_valid, telemetry.seconds_reason)
    if found and found.occupancy:
        valid, invalid = found.occupancy.verdict()
    # what the process used as a whole is the cell's only if it did nothing else meanwhile
    whole = found is not None and cell.method == "full" and not found.disturbed and cell.engine != SIMULATED
    why_not_whole = "failed" if found is None else "profiled" if cell.method == "profile" else PROFILED_MEANWHILE
    if found and cell.engine == SIMULATED:  # this machine only did the arithmetic: nobody disturbs a virtual clock
        valid, invalid, why_not_whole = True, None, SIMULATED
    if found and cell.engine == OPENAI:  # how busy this machine was says nothing of the server's
        whole, why_not_whole = False, SERVED
        valid, invalid = (False, f"retried: {found.retried} requests") if found.retried else (True, None)
    gpu = telemetry.gpu if whole else None
    energy, why_no_energy = telemetry.energy_joules, telemetry.energy_reason
    if gpu and telemetry.gpus < context.devices:
        gpu, energy, why_no_energy = None, None, f"{telemetry.gpus} of {context.devices} GPUs were watched"
    memory = telemetry.peak_memory_bytes if whole else None
    why_no_memory = why_not_whole if not whole else APART if memory is None else None
    window = None if found is None or found.disturbed else found.occupancy or telemetry
    parameters: dict[str, Any] = dict(cell.parameters)
    environment = cell.rebuild_environment()
    kv_bytes = context.shape.kv_bytes_per_token(cell.kv_dtype)
    thought = found.actual_thinking_tokens * cell.traces if found and found.actual_thinking_tokens else None
    is_sync = cell.phase == "sync"
    return Row(
        schema_version=SCHEMA_VERSION,
        cell_id=cell.id,
        repeat=repeat,
        method=cell.method,
        phase=cell.phase,
        status=status,
        reason=reason,
        model=cell.model,
        engine=cell.engine,
        device=context.device_name,
        devices=context.devices,
        tensor_parallel=cell.tensor_parallel,
        data_parallel=cell.data_parallel,
        weight_dtype=cell.weight_dtype,
        activation_dtype=cell.activation_dtype,
        kv_dtype=cell.kv_dtype,
        environment=cell.environment,
        context_size=parameters.get("context_size"),
        state_size=parameters.get("state_size"),
        head=parameters.get("head"),
        iterations=parameters.get("iterations"),
        carryover=parameters.get("carryover"),
        prompt_tokens=cell.prompt_tokens,
        thinking_budget=environment.budget,
        mean_thinking_tokens=cell.thinking_tokens,
        traces=cell.traces,
        concurrency_limit=cell.concurrency,
        actual_thinking_tokens=found.actual_thinking_tokens if found else None,
        failed_traces=found.failed_traces if found else None,
        chunks=found.chunks if found else None,
        prefill_computed_tokens=found.prefill_computed_tokens if found else None,
        prefill_cached_tokens=found.prefill_cached_tokens if found else None,
        decode_tokens=found.decode_tokens if found else None,
        processed_tokens=found.processed_tokens if found else None,
        concurrency_mean=found.concurrency_mean if found else None,
        concurrency_peak=found.concurrency_peak if found else None,
        preemptions=found.preemptions if found else None,
        wall_seconds=found.wall_seconds if found else None,
        device_seconds_per_trace=(
            found.wall_seconds * context.devices / cell.traces if found and not is_sync else None
        ),
        prefill_seconds=found.prefill_seconds if found else None,
        decode_seconds=found.decode_seconds if found else None,
        elapsed_seconds=found.elapsed_seconds if found else None,
        tokens_per_second=thought / found.wall_seconds if found and thought else None,
        flops=_flops(cell, context.shape) if found else None,
        flops_convention=FLOPS_CONVENTION,
        kv_bytes_per_token=kv_bytes,
        peak_kv_bytes=found.peak_kv_tokens * kv_bytes if found and found.peak_kv_tokens is not None else None,
        peak_memory_bytes=memory,
        memory_method=None if memory is None else telemetry.memory_method,
        energy_joules=energy if whole else None,
        energy_reason=why_no_energy if whole else why_not_whole,
        seconds_valid=valid,
        seconds_reason=invalid,
        memory_valid=memory is not None,
        memory_reason=why_no_memory,
        grid_id=found.grid_id if found else None,
        started_unix=started_unix,
        fingerprint_id=context.fingerprint_id,
        seed=seed,
        energy_integrated_joules=gpu.integrated_joules if gpu else None,
        sm_clock_mhz=gpu.sm_mhz if gpu else None,
        throttled_share=gpu.throttled_share if gpu else None,
        power_capped_share=gpu.power_capped_share if gpu else None,
        drifted_tokens=found.drifted_tokens if found else None,
        cpu_seconds=window.cpu_seconds if window else None,
        memory_clock_mhz=gpu.memory_mhz if gpu else None,
        max_temperature_celsius=gpu.max_temperature_celsius if gpu else None,
        summary_size=parameters.get("summary_size"),
        extensions=parameters.get("extensions"),
        cue_tokens=len(token_ids(parameters["cue"])) if "cue" in parameters else None,
        waiting_peak=found.waiting_peak if found else None,
    )


def _flops(cell: Cell, shape: Shape) -> float | None:
    """Analytic FLOPs of all the cell's traces in its phase; None for weight transfer, which has none to speak of."""
    count = {"rollout": shape.rollout_flops, "logprob": shape.logprob_flops, "update": shape.update_flops}
    return cell.traces * count[cell.phase](cell.segments, FLOPS_CONVENTION) if cell.phase in count else None

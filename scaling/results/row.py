"""One measurement as a row: its columns, their Arrow types, and which rows' seconds are worth using."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = "1.0"
"""Of rows and of every JSON we write: a new minor adds nullable columns or keys; a newer major is refused."""

PROFILED_MEANWHILE = "profiled meanwhile"
"""The `memory_reason` of a full measurement between whose steps a profile was measured."""

ALLOCATED = "torch.cuda.max_memory_allocated"
"""The `memory_method` that counts allocations: the same work has the same peak, which no resident set has."""

Status = Literal["ok", "oom", "timeout", "error"]
Method = Literal["full", "profile"]
Phase = Literal["rollout", "logprob", "update", "sync"]


@dataclass(frozen=True, slots=True)
class Row:
    """One repeat of one cell. Units are in the names; a failed cell has null metrics, never zeros.

    `thinking_budget`, `mean_thinking_tokens`, `actual_thinking_tokens` are never mixed: what may be thought, what the
    cell asked its traces to think on average, what they did think on average. All other token counts, FLOPs, bytes and
    seconds are totals over the row's `traces`, unless the name says `per_trace`. `device_seconds_per_trace` is
    wall seconds × devices ÷ traces.
    """

    schema_version: str
    cell_id: str
    repeat: int
    method: Method
    phase: Phase
    status: Status
    reason: str | None
    # configuration
    model: str
    engine: str
    device: str
    devices: int
    tensor_parallel: int
    data_parallel: int
    weight_dtype: str
    activation_dtype: str
    kv_dtype: str
    environment: str
    context_size: int | None
    state_size: int | None
    head: int | None
    iterations: int | None
    carryover: str | None
    prompt_tokens: int
    thinking_budget: int
    mean_thinking_tokens: int
    traces: int
    concurrency_limit: int
    # what happened
    actual_thinking_tokens: float | None
    failed_traces: int | None
    chunks: int | None
    prefill_computed_tokens: int | None
    prefill_cached_tokens: int | None
    decode_tokens: int | None
    processed_tokens: int | None  # tokens really put through the model, also by a profile's visits
    concurrency_mean: float | None
    concurrency_peak: int | None
    preemptions: int | None
    wall_seconds: float | None  # of the phase: measured (full) or integrated (profile)
    device_seconds_per_trace: float | None
    prefill_seconds: float | None
    decode_seconds: float | None
    elapsed_seconds: float | None  # of measuring: equals wall_seconds where method is full and not simulated
    tokens_per_second: float | None  # thinking tokens of all traces ÷ wall_seconds
    flops: float | None
    flops_convention: str
    kv_bytes_per_token: float
    peak_kv_bytes: float | None
    peak_memory_bytes: float | None
    memory_method: str | None
    energy_joules: float | None
    energy_reason: str | None
    seconds_valid: bool
    seconds_reason: str | None
    memory_valid: bool
    memory_reason: str | None
    grid_id: str | None
    started_unix: float
    fingerprint_id: str
    seed: int
    # of the GPU over the window, where its driver says
    energy_integrated_joules: float | None = None  # from instantaneous power; energy_joules is the driver's counter
    sm_clock_mhz: float | None = None  # mean
    throttled_share: float | None = None  # of the window, under a thermal, hardware or power-brake slowdown
    power_capped_share: float | None = None  # of the window, at the power limit
    drifted_tokens: int | None = None  # of a server of text: tokens that came back from it as others
    cpu_seconds: float | None = None  # of processors, by us and our children, while it was measured
    memory_clock_mhz: float | None = None  # mean
    max_temperature_celsius: int | None = None
    # of environments that came later
    summary_size: int | None = None
    extensions: int | None = None
    cue_tokens: int | None = None
    waiting_peak: int | None = None  # requests that waited for room in vLLM, at most


@cache
def row_schema() -> pa.Schema:
    """The Arrow schema of a part: `Row`'s fields in order, nullable where they may be None."""
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    fields = []
    for name, hint in get_type_hints(Row).items():
        options = get_args(hint) if get_origin(hint) is not Literal else (str,)
        kind = next((option for option in options if option is not NoneType), hint)
        fields.append(pa.field(name, types[kind], nullable=NoneType in options))
    return pa.schema(fields)


def timed(rows: pd.DataFrame) -> pd.DataFrame:
    """Finished rows whose seconds are worth using: of each cell the valid ones, or all of a cell that has no valid one.

    A busy machine spoils seconds, but does not make a run worthless: who reads them says how many are not valid.
    """
    found = rows[(rows["status"] == "ok") & rows["device_seconds_per_trace"].notna()]
    valid = found["seconds_valid"].fillna(False).astype(bool)
    return found[valid | ~valid.groupby(found["cell_id"]).transform("any")]

"""Rows as a run leaves them, computed from the environments' schedules under a simple machine model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields

import pandas as pd
import pytest

from scaling.results import Row
from scaling.thinking import Delethink, LongCoT

LENGTHS = tuple(n << 10 for n in (1, 2, 3, 4, 6, 8))
LADDER = (*LENGTHS, *(n << 10 for n in (16, 32, 64, 96)))
STEP, KEY, PREFILL = 1.6e-3, 4.4e-7, 9e-6  # seconds a step, a key read, a prompt token


def _row(environment: LongCoT | Delethink, tokens: int, repeat: int, phase: str, method: str, **changed: object) -> Row:
    noise = random.Random(f"{environment} {tokens} {repeat} {phase} {method}").gauss(1, 0.01)
    segments = environment.schedule(64, environment.expected_lengths(64, tokens))
    traces = 2
    if phase == "rollout":
        decode = sum(s.steps * STEP + KEY * (s.steps * s.prompt + s.steps * (s.steps + 1) / 2) for s in segments)
        prefill = PREFILL * sum(s.prefill for s in segments)
    else:
        decode, prefill = 0.0, sum(4e-5 * (s.prompt + s.decode) + 4e-9 * (s.prompt + s.decode) ** 2 for s in segments)
        prefill *= {"update": 3.0, "logprob": 1.0}[phase]
    wall = traces * (decode + prefill) * noise
    processed = traces * sum(s.prefill + s.steps for s in segments)
    full = method == "full"
    parameters = environment.parameters()
    values: dict[str, object] = {
        "schema_version": "1.0", "cell_id": f"{environment.name}{tokens}{phase}{method}", "repeat": repeat,
        "method": method, "phase": phase, "status": "ok", "reason": None,
        "model": "tiny", "engine": "local", "device": "a two-core CPU", "devices": 1, "tensor_parallel": 1,
        "data_parallel": 1, "weight_dtype": "float32", "activation_dtype": "float32", "kv_dtype": "float32",
        "environment": environment.name, "context_size": parameters.get("context_size"),
        "state_size": parameters.get("state_size"), "head": parameters.get("head"),
        "iterations": parameters.get("iterations"), "carryover": parameters.get("carryover"),
        "prompt_tokens": 64, "thinking_budget": environment.budget, "mean_thinking_tokens": tokens,
        "traces": traces, "concurrency_limit": 2,
        "actual_thinking_tokens": float(tokens), "failed_traces": 0, "chunks": traces * len(segments),
        "prefill_computed_tokens": traces * sum(s.prefill for s in segments), "prefill_cached_tokens": 0,
        "decode_tokens": traces * tokens, "processed_tokens": processed if full else 2000, "concurrency_mean": 2.0,
        "concurrency_peak": 2, "preemptions": 0, "wall_seconds": wall, "device_seconds_per_trace": wall / traces,
        "prefill_seconds": traces * prefill, "decode_seconds": traces * decode,
        "elapsed_seconds": wall if full else 3.0, "tokens_per_second": traces * tokens / wall,
        "flops": 1e9 * tokens, "flops_convention": "causal", "kv_bytes_per_token": 4096.0,
        "peak_kv_bytes": 4096.0 * traces * max(s.prompt + s.decode for s in segments),
        "peak_memory_bytes": 3e8 + 4096.0 * tokens if full else None,
        "memory_method": "peak resident set" if full else None,
        "energy_joules": None, "energy_reason": "no energy counter on this machine",
        "seconds_valid": True, "seconds_reason": None,
        "memory_valid": full, "memory_reason": None if full else "profile",
        "grid_id": None if full else f"grid{repeat}", "started_unix": 1.7e9, "fingerprint_id": "abc", "seed": 0,
    }  # fmt: skip
    return Row(**(values | changed))  # type: ignore[arg-type]


_METRICS = (
    "actual_thinking_tokens", "failed_traces", "chunks", "prefill_computed_tokens", "prefill_cached_tokens",
    "decode_tokens", "processed_tokens", "concurrency_mean", "concurrency_peak", "preemptions", "wall_seconds",
    "device_seconds_per_trace", "prefill_seconds", "decode_seconds", "elapsed_seconds", "tokens_per_second", "flops",
    "peak_kv_bytes", "peak_memory_bytes", "memory_method",
)  # fmt: skip

_DTYPES = {  # as a store reads them back
    field.name: {"int | None": "Int64", "float | None": "float64", "float": "float64"}[str(field.type)]
    for field in fields(Row)
    if str(field.type) in {"int | None", "float | None", "float"}
}

Rows = Callable[..., pd.DataFrame]


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Makes the frame of a run: both environments, `lengths` × `repeats`; `failed`: all of this status and reason."""

    def make(
        lengths: Iterable[int] = LENGTHS,
        phases: Iterable[str] = ("rollout",),
        methods: Iterable[str] = ("full",),
        repeats: int = 3,
        sizes: Iterable[tuple[int, int]] = ((1024, 512),),
        failed: tuple[str, str] | None = None,
        **changed: object,
    ) -> pd.DataFrame:
        if failed:
            changed |= dict.fromkeys(_METRICS) | {"status": failed[0], "reason": failed[1], "seconds_valid": False}
        found = []
        for tokens in lengths:
            for repeat in range(repeats):
                environments = [LongCoT(tokens), *(Delethink.for_length(tokens, c, m, 100) for c, m in sizes)]
                found += [
                    asdict(_row(environment, tokens, repeat, phase, method, **changed))
                    for environment in environments
                    for phase in phases
                    for method in methods
                ]
        return pd.DataFrame(found).astype(_DTYPES).assign(run="first")

    return make

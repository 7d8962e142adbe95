"""What an arm of a study cost: the window in which it was sampled, and the row of the results' schema."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from scaling.engines.base import Engine
from scaling.measure.cells import OPENAI, Cell
from scaling.measure.full import Measurement
from scaling.measure.rows import FLOPS_CONVENTION, Context, build_row
from scaling.measure.served import seen_from_here
from scaling.measure.subject import torch_device
from scaling.measure.telemetry import Telemetry
from scaling.models import Source
from scaling.predict.shape import Shape
from scaling.results import Row, Store
from scaling.thinking import Environment, rebuilt

RESUMED = "resumed: its traces were not sampled in one go"
ELSEWHERE = "sampled on another machine, or with other versions or threads, than its run began with"
OTHERWISE = "sampled with another concurrency than its run began with"


class Tally:
    """What is counted of an arm's traces as they are written or read back; texts and tokens are not kept.

    `keys`: (task label, problem id, sample) of each. `sizes`: tokens of its query and of its responses. `reason`: why
    the first of the failed ones failed; `unjudged_reason`: why the verifier gave up on the first that it gave up on.
    """

    def __init__(self) -> None:
        self.keys: set[tuple[str, str, int]] = set()
        self.sizes: list[tuple[int, list[int]]] = []
        self.right = self.failed = self.unjudged = 0
        self.reason: str | None = None
        self.unjudged_reason: str | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        self.keys.add((record["task_label"], record["problem"]["id"], record["sample"]))
        self.sizes.append((len(record["query"]), [len(chunk["response"]) for chunk in record["chunks"]]))
        self.right += record["score"] == 1
        if record["error"] is not None:
            self.failed += 1
            self.reason = self.reason or record["error"]
        if record["verdict_error"] is not None:
            self.unjudged += 1
            self.unjudged_reason = self.unjudged_reason or record["verdict_error"]


class Watched:
    """`with Watched(engine, gpus) as watched: …`: what the engine did in the block, on its own clock, on so many GPUs.

    `cached`: prompt tokens that it took from a prefix cache, as who reads its completions says.
    """

    def __init__(self, engine: Engine, gpus: int = 1) -> None:
        self.engine, self.gpus, self.cached = engine, gpus, 0

    def __enter__(self) -> Self:
        apart = bool(getattr(self.engine, "apart", False))  # only vLLM runs a model in other processes
        self.telemetry = Telemetry(torch_device(), gpus=self.gpus, apart=apart).__enter__()
        self.started_unix = time.time()
        self.before = self.engine.stats(new_peaks=True)
        self._start = self.engine.now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.seconds = self.engine.now() - self._start
            self.after = self.engine.stats()
        finally:
            self.telemetry.__exit__(kind, error, trace)

    def measurement(self, tally: Tally) -> Measurement:
        before, after = self.before, self.after
        prefilled, decoded = after.prefill_tokens - before.prefill_tokens, after.decode_tokens - before.decode_tokens
        steps = after.decode_steps - before.decode_steps
        everything = tally.failed == len(tally.keys)
        found = Measurement(
            wall_seconds=self.seconds,
            elapsed_seconds=self.seconds,
            processed_tokens=prefilled + decoded,
            actual_thinking_tokens=_thought(tally),
            failed_traces=tally.failed,
            chunks=sum(len(lengths) for _, lengths in tally.sizes),
            prefill_computed_tokens=prefilled,
            prefill_cached_tokens=self.cached,
            decode_tokens=decoded,
            concurrency_mean=decoded / steps if steps else None,
            concurrency_peak=after.peak_running,
            waiting_peak=after.peak_waiting,
            preemptions=after.preemptions - before.preemptions,
            prefill_seconds=after.prefill_seconds - before.prefill_seconds,
            decode_seconds=after.decode_seconds - before.decode_seconds,
            peak_kv_tokens=after.peak_kv_tokens,
            failure=f"all {tally.failed} traces failed: {tally.reason}" if everything else None,
        )
        if self.engine.name != OPENAI:
            return found
        served: Any = self.engine
        return seen_from_here(found, served.record(), before, after)


def cost_row(
    manifest: Mapping[str, Any],
    environment: Environment,
    source: Source,
    seed: int,
    tally: Tally,
    watched: Watched | str,
) -> Row:
    """The row of an arm whose traces are all there; the same traces make the same cell.

    Its seconds are those in which the engine worked on its traces, to the end of the last one. Where `watched` is not
    a window but the reason why there is none, they are null. They are marked as not valid where some traces failed.
    """
    engine, shape = manifest["engine"], Shape.from_config(source.config)
    traces, devices = len(tally.keys), int(engine["devices"])
    cell = Cell(
        model=source.name,
        weights=source.digest or source.weights,
        engine=engine["name"],
        device=manifest["device_kind"],
        weight_dtype=engine["dtype"],
        activation_dtype=engine["dtype"],
        kv_dtype=engine["dtype"],
        environment=environment.name,
        parameters=tuple(environment.parameters().items()),
        prompt_tokens=round(sum(query for query, _ in tally.sizes) / traces),
        thinking_tokens=max(1, round(_thought(tally))),
        phase="rollout",
        concurrency=min(engine["concurrency"], traces),
        traces=traces,
        method="full",
        tensor_parallel=int(engine["tensor_parallel"]),
    )
    context = Context(shape, manifest["device"], devices, manifest["fingerprint_id"])
    segments = [segment for size in tally.sizes for segment in environment.schedule(*size)]
    flops = shape.rollout_flops(segments, FLOPS_CONVENTION)
    if isinstance(watched, str):
        with Telemetry("cpu") as nothing:
            pass
        unseen = build_row(cell, 0, seed, time.time(), context, nothing, ("error", watched))
        return replace(
            unseen,
            status="ok",
            reason=None,
            actual_thinking_tokens=_thought(tally),
            failed_traces=tally.failed,
            chunks=len(segments),
            flops=flops,
            energy_reason=watched,
            seconds_reason=watched,
            memory_reason=watched,
        )
    row = build_row(cell, 0, seed, watched.started_unix, context, watched.telemetry, watched.measurement(tally))
    if row.status != "ok":
        return row
    if tally.failed:
        row = replace(row, seconds_valid=False, seconds_reason=f"{tally.failed} of {traces} traces failed")
    return replace(row, flops=flops)


def _thought(tally: Tally) -> float:
    """Mean thinking tokens of a trace."""
    return sum(sum(lengths) for _, lengths in tally.sizes) / len(tally.sizes)


TOLD_BY = ("context_size", "state_size", "head", "carryover", "iterations", "summary_size", "extensions")
"""Columns of a row by which it is told, with its thinking budget, to which arm of a model it belongs."""


def measured(store: Store) -> list[dict[str, Any]]:
    """What sampling each arm of a study's run took, from its row: a record an arm that has one, in order.

    An arm whose failed traces were asked again has several: the last whose seconds are to be trusted, else the last.
    `device_seconds_per_trace` and what is reckoned from it are null where the arm was not sampled in one go, or all its
    traces failed; `reason` says why, or why the seconds are not to be trusted.
    """
    rows = store.frame().astype(object).where(store.frame().notna(), None).to_dict("records")
    found = []
    for arm in store.manifest["arms"]:
        known = {"model": arm["model"]["name"], "environment": arm["environment"]}
        known |= {name: arm["environment_parameters"].get(name) for name in TOLD_BY}
        known["thinking_budget"] = rebuilt(arm["environment"], arm["environment_parameters"]).budget
        mine = [row for row in rows if all(row[name] == value for name, value in known.items())]
        if not mine:
            continue
        row = max(mine, key=lambda row: (_trusted(row), row["started_unix"]))
        names = ("traces", "device_seconds_per_trace", "tokens_per_second", "concurrency_mean", "device")
        reason = None if _trusted(row) else row["reason"] or row["seconds_reason"]
        found.append({"arm": arm["label"], **{name: row[name] for name in names}, "reason": reason})
    return found


def _trusted(row: Mapping[Any, Any]) -> bool:
    return bool(row["status"] == "ok" and row["seconds_valid"])

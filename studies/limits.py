"""How close does the engine come to what the machine can do? Decode beside a copy of memory, the rest beside a product.

A decode step has to read every weight and the keys and values of all rows, so memory bounds it; a prefill and an
update compute, so the rate of a matrix product bounds them. Both ceilings are measured between the points, round by
round, for a machine drifts.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaling.decoder import Decoder
from scaling.engines.kv import PAGE_TOKENS, pages_of
from scaling.engines.local import LocalEngine
from scaling.errors import ScalingError, UsageError, first_line, ran_out_of_memory
from scaling.lengths import parse_lengths
from scaling.linear import linear
from scaling.measure.fingerprint import fingerprint
from scaling.measure.machine import seconds_each
from scaling.measure.subject import MEMORY_SHARE, device_kind, free_memory_bytes, torch_device
from scaling.models import resolve
from scaling.packing import Batch, Sample
from scaling.predict.shape import DTYPE_BYTES, Shape
from scaling.thinking.base import Segment
from scaling.update import backward

SCHEMA_VERSION = "1.0"
COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}  # far more than any cache
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrix product
CEILING_SECONDS = 0.3
WARM_UP_STEPS, STEPS = 2, 6
KINDS = ("decode", "prefill", "update")


@dataclass(frozen=True, slots=True)
class Point:
    """One decode step of `rows` at context `tokens`, the prefill of one prompt, or the update on one sequence."""

    kind: str
    tokens: int
    rows: int = 1


class Bench:
    """A model of random weights on a device, and what is timed on it."""

    def __init__(self, model: str, dtype: str, seed: int = 0) -> None:
        """Raises `UsageError` for an unknown model or dtype."""
        self.device, self.dtype = torch_device(), getattr(torch, dtype)
        self.name = dtype
        self.model = Decoder.from_config(
            resolve(model, weights=False).config, dtype=self.dtype, device=self.device, seed=seed
        )
        self.shape = self.model.shape
        self.token_bytes = self.shape.kv_bytes_per_token(dtype)
        # `measure` has KV memory of its own; nothing is ever sampled from the engine's
        self.engine = LocalEngine(
            self.model, kv_bytes=PAGE_TOKENS * self.token_bytes, max_sequences=1, max_length=PAGE_TOKENS
        )
        kind, self.generator = torch.device(self.device).type, random.Random(seed)
        self.source = torch.randn(COPY_BYTES[kind] // 4, device=self.device)
        self.target = torch.empty_like(self.source)
        self.square = torch.randn(SIDE[kind], SIDE[kind], device=self.device, dtype=self.dtype)

    def copy(self) -> float:
        """Bytes a second of a copy, those that are read and those that are written."""
        return 2 * self.source.nbytes / self._each(lambda: self.target.copy_(self.source))

    def product(self) -> float:
        """FLOPs a second of a square matrix product of random numbers, by the kernel that the model's products take."""
        return 2 * len(self.square) ** 3 / self._each(lambda: linear(self.square, self.square))

    def seconds(self, point: Point) -> float:
        """Of the point once, synchronised. Raises `MemoryLimitError` or torch's error where it does not fit."""
        if point.kind == "decode":
            first = max(point.tokens - STEPS // 2, 1)
            return self.engine.measure([first] * point.rows, warm_up=WARM_UP_STEPS, steps=STEPS)
        if point.kind == "prefill":
            return self.engine.measure([], [point.tokens] * point.rows)
        tokens = tuple(self.generator.choices(range(self.shape.vocabulary), k=point.tokens + 1))
        likely = (-math.log(self.shape.vocabulary),) * point.tokens
        batch = Batch.of([Sample(tokens[:1], tokens[1:], 1.0, likely, 0, point.tokens)]).to(self.device)
        try:
            return seconds_each(lambda: backward(self.model, batch, traces=1), 0.0, self.device)  # once
        finally:
            self.model.zero_grad(set_to_none=True)

    def _each(self, run: Callable[[], object]) -> float:
        run()  # first-use costs
        return seconds_each(run, CEILING_SECONDS, self.device)


def work(shape: Shape, dtype: str, point: Point) -> float:
    """The least that a point has to do: bytes of a decode step, FLOPs of the others (causal).

    Bytes: the weights once, but of an embedding that is not the head nothing, and the keys and values of every row's
    context. FLOPs of an update: 3 times the forward's, so that what is computed again in the backward pass does not
    count as progress: model FLOPs, as in MFU.
    """
    if point.kind == "prefill":
        return point.rows * shape.forward_flops(point.tokens, logits=1)
    if point.kind == "update":
        return shape.update_flops([Segment(0, 1, point.tokens)], recompute=False)
    looked_up = 0.0 if shape.tied else shape.head_parameters * shape.bytes_of(dtype, "head")
    return shape.weight_bytes(dtype) - looked_up + point.rows * shape.kv_bytes(point.tokens, dtype)


def points(lengths: Sequence[int], token_bytes: int, memory: int, most_rows: int) -> list[Point]:
    """Each kind at each length; decode with as many rows as `memory` bytes of KV hold, at most `most_rows`, and one.

    A sequence that does not fit at all is asked for all the same: its row says so.
    """
    found = []
    for tokens in lengths:
        page_bytes = pages_of(tokens + WARM_UP_STEPS + STEPS) * PAGE_TOKENS * token_bytes
        rows = max(1, min(most_rows, memory // page_bytes))
        found += [Point("decode", tokens, n) for n in sorted({1, rows})]
        found += [Point("prefill", tokens), Point("update", tokens)]
    return found


def run(bench: Bench, asked: Sequence[Point], rounds: int, seed: int = 0) -> dict[str, Any]:
    """Every point once a round, in random order, the ceilings before each round and after it: the record.

    A share is a point's rate over its ceiling's mean around that round. A point that did not fit has an `error`, and
    is not tried again.
    """
    found: dict[Point, dict[str, Any]] = {point: {"seconds": [], "share": []} for point in asked}
    ceilings: dict[str, list[float]] = {"copy": [], "product": []}
    dice = random.Random(seed)

    def look() -> None:
        ceilings["copy"].append(bench.copy())
        ceilings["product"].append(bench.product())

    look()
    for number in range(1, rounds + 1):
        due = [point for point in asked if "error" not in found[point]]
        taken = {}
        for done, point in enumerate(dice.sample(due, len(due)), 1):
            try:
                taken[point] = bench.seconds(point)
            except (RuntimeError, ScalingError) as error:
                if not ran_out_of_memory(error):
                    raise
                found[point] = {"error": f"out of memory: {first_line(error)}"}
            said = f"{taken[point]:.3g} s" if point in taken else found[point]["error"]
            where = f"round {number}/{rounds}, {done}/{len(due)}"
            print(f"{where}: {point.kind} {point.tokens} × {point.rows}: {said}", file=sys.stderr)
        look()
        for point, seconds in taken.items():
            around = statistics.fmean(ceilings["copy" if point.kind == "decode" else "product"][-2:])
            found[point]["seconds"].append(seconds)
            found[point]["share"].append(work(bench.shape, bench.name, point) / seconds / around)
    return {
        "schema_version": SCHEMA_VERSION,
        "device": device_kind(),
        "dtype": bench.name,
        "rounds": rounds,
        "ceilings": {"copy_bytes_per_s": ceilings["copy"], "product_flops_per_s": ceilings["product"]},
        "points": [
            {
                "kind": point.kind,
                "tokens": point.tokens,
                "rows": point.rows,
                "unit": "bytes" if point.kind == "decode" else "FLOPs",
                "work": work(bench.shape, bench.name, point),
                **found[point],
            }
            for point in asked
        ],
        "machine": fingerprint(),
    }


def page(record: dict[str, Any]) -> str:
    """The record as Markdown: the ceilings, then a line a point, medians with their ranges."""

    def shown(values: Sequence[float], scale: float = 1.0, form: str = ".3g") -> str:
        low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
        return f"{middle:{form}} ({low:{form}}–{high:{form}})"

    ceilings, gpu = record["ceilings"], "" if record["device"] == "cpu" else f" with {record['device']}"
    rounds = f"{record['rounds']} round{'' if record['rounds'] == 1 else 's'}"
    lines = [
        f"{record['model']}, {record['dtype']}, random weights, on {record['machine']['hardware']['cpu']}{gpu}; "
        f"{rounds}, medians (smallest–largest). Ceilings, between the rounds: copy "
        f"{shown(ceilings['copy_bytes_per_s'], 1e-9)} GB/s, bytes read and written; product of two matrices "
        f"{shown(ceilings['product_flops_per_s'], 1e-12)} TFLOP/s.",
        "",
        "| | tokens | rows | seconds | has to do | rate | share of the ceiling |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for point in record["points"]:
        cells = [point["kind"], f"{point['tokens']:,}", f"{point['rows']}"]
        if "error" in point:
            lines.append(f"| {' | '.join([*cells, point['error'], '–', '–', '–'])} |")
            continue
        scale, unit = (1e-9, "GB") if point["unit"] == "bytes" else (1e-12, "TFLOP")
        rates = [point["work"] / seconds for seconds in point["seconds"]]
        cells += [
            shown(point["seconds"]),
            f"{scale * point['work']:.3g} {unit}",
            f"{scale * statistics.median(rates):.3g} {unit}/s",
            shown(point["share"], 100, ".0f") + " %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.limits", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a built-in architecture, or a config.json (default: tiny)")
    parser.add_argument("--dtype", default="bfloat16" if torch_device() == "cuda" else "float32", choices=DTYPE_BYTES)
    parser.add_argument("--lengths", default="1k,4k,16k", help="context, prompt and sequence tokens, as in 8k..96k")
    parser.add_argument("--kv-memory", type=float, help=f"GiB of KV (default: {MEMORY_SHARE:.0%} of what is free)")
    parser.add_argument("--rows", type=int, default=64, help="most of a decode step (default: 64)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="the numbers as JSON here, and the table beside them as Markdown")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.rows < 1 or (given.kv_memory is not None and given.kv_memory <= 0):
        parser.error("rounds, rows and KV memory have to be positive")
    try:
        lengths, bench = parse_lengths(given.lengths), Bench(given.model, given.dtype)
    except UsageError as error:
        parser.error(first_line(error))
    memory = int(2**30 * given.kv_memory) if given.kv_memory else int(MEMORY_SHARE * free_memory_bytes())
    asked = points(lengths, bench.token_bytes, memory, given.rows)
    record = {"model": given.model, **run(bench, asked, given.rounds)}
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(page(record))
    print(page(record), end="")


if __name__ == "__main__":
    main()

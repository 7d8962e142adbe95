"""Sides made by hand, runs of rows made by hand, and a real file of pytest-benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.gate.side import Measured, Side
from scaling.results import Row, Store

BENCHMARKS = """
import pytest

@pytest.mark.parametrize("size", [10, 20])
def test_sum(benchmark, size):
    benchmark.extra_info.update(tokens=size, note="text", passed=True, share=0.5)
    assert benchmark(sum, range(size)) >= 0
"""

CELL = Measured(
    key="aa",
    label="Delethink C=1k m=512 at 2k tokens, rollout",
    status="ok",
    reason=None,
    counters={"chunks": 12, "decode_tokens": 8180, "prefill_computed_tokens": 5664, "flops_causal": 50_000_000_000},
    memory_bytes=1e9,
    seconds=(0.99, 1.0, 1.01),
)


@pytest.fixture
def side() -> Callable[..., Side]:
    """`side(cell, …, name=…)`: a side of these cells, by default of the one that `cell` makes."""

    def make(*cells: Measured, **changes: Any) -> Side:
        given = {each.key: each for each in cells or (CELL,)}
        return replace(Side("main", "run", {"model": "tiny", "lengths": [2048]}, "fp0", given), **changes)

    return make


@pytest.fixture
def cell() -> Callable[..., Measured]:
    """A cell with these fields changed; `counters` are changed one by one, None takes one away."""

    def make(*, counters: dict[str, float | None] | None = None, **changes: Any) -> Measured:
        merged = {**CELL.counters, **(counters or {})}
        return replace(CELL, counters={k: v for k, v in merged.items() if v is not None}, **changes)

    return make


@pytest.fixture
def make_run(tmp_path: Path, make_row: Callable[..., Row]) -> Callable[..., Path]:
    """`make_run({column: value, …}, …, name=…, config=…)`: a run with a row for each dictionary, changed so."""

    def make(*rows: dict[str, Any], name: str = "run", config: dict[str, Any] | None = None) -> Path:
        made = [make_row(**row) for row in rows]
        manifest = {
            "config": {"model": "/models/here", "lengths": [2048], "base_url": "http://host", **(config or {})},
            "cells": [{"cell_id": key, "device": "cpu"} for key in dict.fromkeys(row.cell_id for row in made)]
            or [{"cell_id": "0123abcd", "device": "cpu"}],
            "model": {"name": "here", "weights": "checkpoint", "digest": "sha256:0"},
            "fingerprint_id": "fp0",
        }
        store = Store.create(tmp_path / name, manifest)
        for row in made:
            store.append(row)
        return store.path

    return make


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pytest-benchmark writes of two small benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "test_sums.py").write_text(BENCHMARKS)
    command = ["-m", "pytest", "test_sums.py", "-q", "--benchmark-json", "before.json", "--benchmark-max-time", "0.01"]
    subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
    return folder / "before.json"


@pytest.fixture
def rewritten(tmp_path: Path, benchmarks: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The file of pytest-benchmark again, as `change` leaves its data."""

    def write(change: Callable[[dict[str, Any]], None]) -> Path:
        data = json.loads(benchmarks.read_text())
        change(data)
        path = tmp_path / "after.json"
        path.write_text(json.dumps(data))
        return path

    return write

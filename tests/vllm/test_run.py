"""`scaling run --engine vllm`: the same cells and columns as with the embedded engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.results import Store

pytest.importorskip("vllm", reason="vLLM is not installed here; `nox -s vllm` installs and tests it")

SHORT = ["--lengths", "256,512,1k", "--context-size", "256", "--repeats", "1"]


def measured(out: Path, *options: str) -> Store:
    """A run in a process of its own, as vLLM's memory is given back at its end alone."""
    command = [
        sys.executable,
        "-m",
        "scaling",
        "run",
        "--engine",
        "vllm",
        *SHORT,
        *options,
        "--out",
        str(out),
        "--json",
    ]
    ran = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["failed"] == 0
    return Store.open(out)


@pytest.mark.parametrize("method", ["full", "profile"])
def test_a_run_has_rows_of_both_environments_and_of_weight_transfer(tmp_path: Path, method: str) -> None:
    rows = measured(tmp_path / "run", "--method", method, "--phase", "rollout", "--phase", "sync").frame()
    rollouts = rows[rows["phase"] == "rollout"]
    assert len(rollouts) == 6
    assert set(rollouts["environment"]) == {"longcot", "delethink"}
    assert (rollouts["prefill_cached_tokens"] == 0).all()
    assert (rollouts["preemptions"] == 0).all()
    assert (rollouts["wall_seconds"] > 0).all()
    assert (rows[rows["phase"] == "sync"]["wall_seconds"] > 0).all()
    assert (rows["cpu_seconds"] > 0).all()


def test_a_prefix_cache_is_used_only_when_asked_for_and_is_counted(tmp_path: Path) -> None:
    rows = measured(
        tmp_path / "run",
        *("--mode", "delethink", "--method", "full", "--prefix-caching", "--prompt-tokens", "256"),
    ).frame()
    several = rows[rows["chunks"] > rows["traces"]]
    assert (several["prefill_cached_tokens"] > 0).all()  # the query, which every chunk begins with
    computed, cached = several["prefill_computed_tokens"], several["prefill_cached_tokens"]
    assert (computed + cached == several["processed_tokens"] - several["decode_tokens"] + cached).all()

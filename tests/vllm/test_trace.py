"""vLLM asked real questions: it is opened as every engine is, answers as the embedded one, and ends where it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.decoder import Decoder
from scaling.errors import UsageError
from scaling.measure.sampler import EngineChoice, open_engine
from scaling.models import read_json
from scaling.rollout import Sampling, Trace, rollout
from scaling.thinking import Delethink, Environment, LongCoT

pytest.importorskip("vllm", reason="vLLM is not installed here; `nox -s vllm` installs and tests it")

POSITIONS = 64
QUERIES = [[0, *range(5 + i, 20 + i)] for i in range(4)]
ENVIRONMENTS: list[Environment] = [LongCoT(90), Delethink(40, 20, 3, 4)]


@pytest.fixture(scope="module")
def model(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model as vLLM's attention on CPUs takes it, sure of its tokens, and trained on few positions."""
    path = tmp_path_factory.mktemp("vllm") / "asked"
    shutil.copytree(chat_model, path)
    config = {**read_json(path / "config.json"), "hidden_size": 128, "head_dim": 32, "num_attention_heads": 4}
    decoder = Decoder.from_config({**config, "max_position_embeddings": POSITIONS}, seed=0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    decoder.save(path)
    return path


def asked(name: str, model: Path) -> tuple[list[Trace], list[str], tuple[int, ...]]:
    """Greedy traces in both environments, the remarks, and what ends a response."""
    remarks: list[str] = []
    choice = EngineChoice(name, "float32", concurrency=len(QUERIES))
    engine = open_engine(choice, choice.source(str(model)), ENVIRONMENTS, 16, remark=remarks.append)
    try:
        traces = [t for e in ENVIRONMENTS for t in rollout(engine, e, QUERIES, sampling=Sampling(0.0))]
    finally:
        engine.close()
    return traces, remarks, engine.eos


def test_vllm_thinks_what_the_local_engine_thinks_beyond_the_trained_positions_too(model: Path) -> None:
    local, remarks, ends = asked("local", model)
    theirs, said, theirs_end = asked("vllm", model)
    assert [trace.chunks for trace in theirs] == [trace.chunks for trace in local]
    assert {chunk.finish for trace in local for chunk in trace.chunks} == {"stop", "length"}
    assert theirs_end == ends == (1,)
    assert max(len(c.prompt) + len(c.response) for t in local for c in t.chunks) > POSITIONS
    assert said == remarks == [f"contexts may reach 106 tokens; asked was trained on at most {POSITIONS}"]


def test_positions_that_a_table_ends_are_not_gone_beyond(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "yarn"
    shutil.copytree(model, path)
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    config = {**read_json(path / "config.json"), "rope_parameters": yarn}
    (path / "config.json").write_text(json.dumps(config))
    choice = EngineChoice("vllm")
    with pytest.raises(UsageError, match="vLLM ends yarn at its 64 positions, and 106 are wanted"):
        open_engine(choice, choice.source(str(path)), ENVIRONMENTS, 16)


def test_the_command_prints_what_vllm_thought_and_nothing_else(model: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

    def traced(engine: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "scaling", "trace", "--engine", engine, "--model", str(model)]
        options = ["--task", "chain_sum:max_terms=2", "--problems", "2", "--temperature", "0", "--json"]
        sizes = ["--context-size", "24", "--state-size", "12", "--head", "4", "--dtype", "float32"]
        ran = subprocess.run(
            [*command, *options, *sizes],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert ran.returncode == 0, ran.stderr
        assert "was trained on at most 64" in ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    def thoughts(printed: dict[str, Any]) -> list[Any]:
        ordered = sorted(printed["traces"], key=lambda trace: (trace["environment"], trace["index"]))
        return [[chunk["response"] for chunk in trace["chunks"]] for trace in ordered]

    theirs, ours = traced("vllm"), traced("local")
    assert thoughts(theirs) == thoughts(ours)
    assert len(theirs["traces"]) == 4

"""One way to open an engine for questions: what is chosen goes together, and every engine ends and remarks alike."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.engines.local import LocalEngine
from scaling.errors import UsageError
from scaling.measure.sampler import EngineChoice, longest_context, open_engine
from scaling.rollout import rollout
from scaling.thinking import Delethink, LongCoT

ENVIRONMENTS = [LongCoT(24), Delethink(16, 8, 2, 2)]


@pytest.fixture
def described(chat_model: Path, tmp_path: Path) -> Path:
    """What a server's user has of the model: config and tokenizer, no weights."""
    return Path(shutil.copytree(chat_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))


def test_the_longest_context_is_that_of_the_environment_that_needs_most() -> None:
    assert longest_context(ENVIRONMENTS, 10) == 10 + 24
    assert longest_context(ENVIRONMENTS[1:], 10) == 10 + 2 + 16


def test_the_local_engine_holds_all_traces_at_once_and_ends_as_the_checkpoint_does(chat_model: Path) -> None:
    choice = EngineChoice(concurrency=3)
    engine = open_engine(choice, choice.source(str(chat_model)), ENVIRONMENTS, 10)
    assert isinstance(engine, LocalEngine)
    assert engine.eos == (1,)
    limits = engine.limits()
    assert (limits.max_sequences, limits.max_length) == (3, 34)
    assert limits.kv_tokens >= 3 * 34
    assert engine.model.head.dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    traces = rollout(engine, ENVIRONMENTS[0], [[5] * 10] * 4)
    assert all(trace.error is None for trace in traces)
    engine.close()


def test_arithmetic_is_of_the_type_that_was_chosen(chat_model: Path) -> None:
    choice = EngineChoice(dtype="bfloat16")
    engine = open_engine(choice, choice.source(str(chat_model)), ENVIRONMENTS, 10)
    assert isinstance(engine, LocalEngine)
    assert engine.model.head.dtype == torch.bfloat16
    engine.close()


def test_contexts_beyond_the_trained_positions_are_remarked_whatever_runs_the_model(
    chat_model: Path, described: Path, completions_server: Any
) -> None:
    remarks: list[str] = []
    choice, long = EngineChoice(concurrency=1), [LongCoT(600)]
    open_engine(choice, choice.source(str(chat_model)), long, 10, remark=remarks.append).close()
    with completions_server.CompletionsServer() as server:
        choice = EngineChoice("openai", base_url=server.url)
        open_engine(choice, choice.source(str(described)), long, 10, remark=remarks.append).close()
    assert remarks == [
        "contexts may reach 610 tokens; bytes was trained on at most 512",
        "contexts may reach 610 tokens; model was trained on at most 512",
    ]


def test_a_server_that_speaks_text_is_remarked(described: Path, completions_server: Any) -> None:
    remarks: list[str] = []
    for tokens in (True, False):
        with completions_server.CompletionsServer(tokens=tokens) as server:
            choice = EngineChoice("openai", base_url=server.url)
            open_engine(choice, choice.source(str(described)), ENVIRONMENTS, 10, remark=remarks.append).close()
    [remark] = remarks
    assert remark.startswith("the server speaks text")


def test_a_server_answers_by_the_same_door_and_no_weights_are_needed(described: Path, completions_server: Any) -> None:
    with completions_server.CompletionsServer() as server:
        choice = EngineChoice("openai", concurrency=2, base_url=server.url)
        source = choice.source(str(described))
        assert source.weights == "served"
        engine = open_engine(choice, source, ENVIRONMENTS, 10)
        traces = rollout(engine, ENVIRONMENTS[1], [[5] * 10] * 3)
        engine.close()
    assert [trace.error for trace in traces] == [None] * 3


def test_a_server_that_takes_no_contexts_so_long_is_said_before_it_is_asked_anything(
    described: Path, completions_server: Any
) -> None:
    with completions_server.CompletionsServer(max_length=20) as server:
        choice = EngineChoice("openai", base_url=server.url)
        with pytest.raises(UsageError, match=r"contexts may reach 34 tokens, and .* is served up to 20"):
            open_engine(choice, choice.source(str(described)), ENVIRONMENTS, 10)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here: tests/vllm opens it")
def test_vllm_that_is_not_installed_is_one_line(chat_model: Path) -> None:
    choice = EngineChoice("vllm")
    with pytest.raises(UsageError, match="engine vllm needs vLLM; install it: pip install vllm"):
        open_engine(choice, choice.source(str(chat_model)), ENVIRONMENTS, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "vlm"}, "unknown engine 'vlm'; did you mean vllm"),
        ({"name": "openai"}, "--engine openai and --base-url go together"),
        ({"base_url": "http://127.0.0.1:8000/v1"}, "--engine openai and --base-url go together"),
        ({"served_model": "m"}, "--engine openai and --base-url go together"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"name": "openai", "base_url": "http://h/v1", "dtype": "float32"}, "a server decides itself"),
        ({"concurrency": 0}, "concurrency 0 is not positive"),
        ({"tensor_parallel": 2}, "goes with --engine vllm alone"),
        ({"deadline": 60.0}, "--deadline and --key-variable are a server's"),
        ({"name": "vllm", "key_variable": "MY_KEY"}, "they go with --engine openai"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineChoice(**fields)


def test_an_architecture_without_a_tokenizer_answers_no_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_HOME", str(tmp_path))
    choice = EngineChoice("openai", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UsageError, match="need the tokenizer of 'qwen3-30b-a3b'"):
        choice.source("qwen3-30b-a3b")

"""The openai engine against a real server: vLLM on loopback, serving a checkpoint that the embedded engine runs too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch

from scaling.decoder import Decoder
from scaling.engines.base import Completion, Engine, Request
from scaling.engines.local import LocalEngine
from scaling.engines.openai import OpenAIEngine
from scaling.rollout import rollout
from scaling.thinking import Delethink

pytest.importorskip("httpx", reason="httpx is not installed here; it comes with the extra `openai`")
pytest.importorskip("vllm", reason="vLLM is not installed here; `nox -s vllm` installs and tests it")

KEY = "sk-of-the-loopback"
STARTING_SECONDS = 240
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "eos_token_id": 1,
}
OPTIONS = (
    "--host 127.0.0.1 --dtype float32 --max-model-len 512 --max-num-seqs 8 --enforce-eager --skip-tokenizer-init "
    "--no-enable-prefix-caching --enable-prompt-tokens-details --logprobs-mode processed_logprobs"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose next tokens are far from even, so that greedy ones are no near ties."""
    path = tmp_path_factory.mktemp("served") / "model"
    model = Decoder.from_config(CONFIG, dtype=torch.float32, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.save(path)
    return path


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server, ended afterwards."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_API_KEY": KEY,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--port", str(port), *OPTIONS.split()], stdout=file, stderr=file, env=environment
        )
    try:
        until = time.monotonic() + STARTING_SECONDS
        while not _answers(port):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def served(url: str) -> Iterator[OpenAIEngine]:
    engine = OpenAIEngine(url, vocabulary=512, key=KEY, logprobs=True, max_sequences=8)
    yield engine
    engine.close()


def run(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """All requests at once, to the end, in order."""
    ids = [engine.submit(request) for request in requests]
    done: dict[int, Completion] = {}
    while len(done) < len(ids):
        done.update({completion.id: completion for completion in engine.step()})
    return [done[id] for id in ids]


def requests(temperature: float) -> list[Request]:
    prompts = [torch.randint(3, 512, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 40, 130)]
    return [Request(p, 48, temperature=temperature, ignore_eos=True, seed=i) for i, p in enumerate(prompts)]


def logits_of(model: Decoder, request: Request, tokens: Sequence[int]) -> torch.Tensor:
    """The model's own logits before each response token."""
    sequence = torch.tensor([*request.prompt, *tokens])
    with torch.no_grad():
        return model.logits(model.hidden(sequence, [len(sequence)]))[len(request.prompt) - 1 : -1].float()


def test_what_vllm_understands_is_found_out(served: OpenAIEngine) -> None:
    assert served.dialect.token_prompts
    assert served.dialect.extras
    assert served.dialect.response_ids == "token_ids"
    assert served.dialect.logprobs == "processed"
    assert served.dialect.tells_cached
    assert served.served["server"] == "vllm"
    assert served.limits().max_length == 512


def test_greedy_tokens_are_those_of_the_embedded_engine_until_a_near_tie(
    served: OpenAIEngine, checkpoint: Path
) -> None:
    model = Decoder.load(checkpoint, dtype=torch.float32)
    ours = run(LocalEngine(model, kv_bytes=16 << 20), requests(0.0))
    for request, theirs, mine in zip(requests(0.0), run(served, requests(0.0)), ours, strict=True):
        top = logits_of(model, request, mine.tokens).topk(2).values
        near_ties = (top[:, 0] - top[:, 1] < 1e-3).nonzero()
        certain = int(near_ties[0]) if len(near_ties) else 48
        assert certain >= 10
        assert list(theirs.tokens[:certain]) == list(mine.tokens[:certain])
        assert (len(theirs.tokens), theirs.computed, theirs.cached) == (48, len(request.prompt), 0)


def test_logprobs_are_those_of_the_sampling_distribution(served: OpenAIEngine, checkpoint: Path) -> None:
    model = Decoder.load(checkpoint, dtype=torch.float32)
    for request, completion in zip(requests(0.6), run(served, requests(0.6)), strict=True):
        expected = torch.log_softmax(logits_of(model, request, completion.tokens) / 0.6, -1)
        chosen = expected.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        assert torch.allclose(chosen, torch.tensor(completion.logprobs), atol=2e-3)


def test_a_request_samples_the_same_again(served: OpenAIEngine) -> None:
    first, again = (run(served, requests(1.0)) for _ in range(2))
    assert [c.tokens for c in first] == [c.tokens for c in again]


def test_delethink_through_the_server_has_the_lengths_that_it_was_given(served: OpenAIEngine) -> None:
    environment = Delethink(context_size=32, state_size=16, iterations=3, head=4)
    lengths = [32, 16, 16]
    traces = rollout(served, environment, [[5 + i] * 8 for i in range(12)], lengths=[lengths] * 12, concurrency=8)
    assert [trace.error for trace in traces] == [None] * 12
    assert [trace.response_lengths for trace in traces] == [lengths] * 12
    assert served.stats().prefill_tokens == 12 * sum(s.prefill for s in environment.schedule(8, lengths))
    assert served.stats().retries == 0

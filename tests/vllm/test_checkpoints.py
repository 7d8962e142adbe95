"""vLLM on what a training wrote, unchanged: it says what the local engine says, with the same probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scaling.decoder import Decoder
from scaling.engines.base import Completion, Request
from scaling.engines.local import LocalEngine
from scaling.tasks.walk import CONFIG, WalkTokenizer
from trainer.loop import Trainer
from trainer.metrics import read
from trainer.recipes import recipe

vllm = pytest.importorskip("vllm", reason="vLLM has an environment of its own: nox -s vllm")

SHAPE = {**CONFIG, "hidden_size": 128, "head_dim": 32}
"""The walk's model with heads that vLLM's attention on CPUs takes: it refuses the walk's own, which have 16."""

TEXTS = ("A02p:", "H1fz:", "C00q:", "D0ax:")
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint after a warm start and a step of RL that moved the weights."""
    folder = tmp_path_factory.mktemp("vllm")
    Decoder.from_config(SHAPE, seed=0).save(folder / "model")
    sizes = ["task=walk:0-2", "problems=16", "queries=8", "group=8", "steps=1", "warm_steps=90", "warm_examples=16"]
    trainer = Trainer.start(
        recipe("walk-delethink-cpu").override([*sizes, f"model={folder / 'model'}"]), folder / "run"
    )
    try:
        saved = trainer.train()
    finally:
        trainer.close()
    assert read(folder / "run")[0]["clip_fraction"]  # an update was made
    return saved


def greedy(policy: Decoder, prompts: list[list[int]]) -> list[Completion]:
    engine = LocalEngine(policy, max_sequences=len(prompts), max_length=128, eos=(WalkTokenizer.eos,))
    for prompt in prompts:
        engine.submit(Request(prompt, NEW_TOKENS, temperature=0.0))
    found: list[Completion] = []
    while len(found) < len(prompts):
        found += engine.step()
    engine.close()
    return sorted(found, key=lambda completion: completion.id)


def logprobs(policy: Decoder, prompt: list[int], response: list[int]) -> list[float]:
    """Of each response token at temperature 1: engines call greedy ones certain."""
    ids = torch.tensor([*prompt, *response])
    with torch.no_grad():
        each = policy.logits(policy.hidden(ids, [len(ids)]))[len(prompt) - 1 : -1].log_softmax(-1)
    return [float(row[id]) for row, id in zip(each, response, strict=True)]


def test_vllm_says_what_the_local_engine_says(trained: Path) -> None:
    llm = vllm.LLM(str(trained), dtype="float32", max_model_len=128, kv_cache_memory_bytes=1 << 26, enforce_eager=True)
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, logprobs=0)
    theirs = llm.generate(list(TEXTS), sampling, use_tqdm=False)
    policy = Decoder.load(trained)
    prompts = [[WalkTokenizer.bos, *WalkTokenizer().encode(text)] for text in TEXTS]
    for prompt, one, other in zip(prompts, greedy(policy, prompts), theirs, strict=True):
        assert other.prompt_token_ids == prompt
        (said,) = other.outputs
        assert list(said.token_ids) == list(one.tokens)
        assert said.finish_reason == one.finish
        stated = [each[id].logprob for each, id in zip(said.logprobs, said.token_ids, strict=True)]
        assert stated == pytest.approx(logprobs(policy, prompt, list(one.tokens)), abs=1e-4)

"""What samples the policy: its own parameters, a copy of sharded ones, or vLLM, which gets them after each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from scaling.decoder import Decoder
from scaling.engines.base import Engine
from scaling.engines.local import LocalEngine
from scaling.engines.vllm import VLLMEngine, check_vllm
from scaling.errors import UsageError
from scaling.measure.vllm import kv_bytes
from trainer.checkpoint import newest
from trainer.ranks import Ranks, whole_weights
from trainer.recipe import Recipe

TRAINING_BYTES = 12
"""Of each parameter, beside the parameter: its gradient and AdamW's two moments in float32."""


def check(recipe: Recipe, policy: Decoder, ranks: Ranks) -> None:
    """Raises `UsageError` where the recipe's engine cannot be had: said before anything is written."""
    if recipe.engine == "vllm":
        check_vllm(policy.shape.head_dim)
        if ranks.world > 1:
            raise UsageError("engine=vllm samples in one process, and torchrun started several; give engine=local")


def open_engine(recipe: Recipe, policy: Decoder, ranks: Ranks, run: Path, longest: int, eos: Sequence[int]) -> Engine:
    """An engine for prompts and responses of up to `longest` tokens; it has no policy to sample before `hand_over`.

    `run`: where a checkpoint has the policy's `config.json`.
    """
    share = -(-recipe.queries * recipe.group // ranks.world)
    sequences = recipe.concurrency if recipe.advantage == "vineppo" else min(recipe.concurrency, share)
    if recipe.engine == "vllm":
        return VLLMEngine(
            newest(run),
            dtype=recipe.dtype,
            max_sequences=sequences,
            max_length=longest,
            kv_bytes=kv_bytes(
                policy.shape, recipe.dtype, sequences, longest, kept=TRAINING_BYTES * policy.shape.parameters
            ),
            eos=eos,
            dummy=True,
            sleeps=True,
        )
    model = policy
    if ranks.group is not None:
        model = Decoder.from_config(policy.config, dtype=getattr(torch, recipe.dtype), device=ranks.device)
    return LocalEngine(model, max_sequences=sequences, max_length=longest, eos=eos)


def hand_over(policy: Decoder, engine: Engine, version: int) -> None:
    """Gives the engine the weights, unless it samples the policy's own; all ranks together."""
    own = isinstance(engine, LocalEngine) and engine.model is policy
    engine.load_weights(() if own else whole_weights(policy), version)

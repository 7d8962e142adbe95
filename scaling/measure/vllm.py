"""What a run measures on where vLLM runs the model, in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from scaling.engines.vllm import VLLMEngine
from scaling.errors import MemoryLimitError
from scaling.measure.cells import Cell, RunConfig
from scaling.measure.full import Measurement
from scaling.measure.phases import Trained, measure_phase
from scaling.measure.profile import STEPS, WARM_UP_STEPS
from scaling.measure.subject import MEMORY_SHARE, WARM_UP_TOKENS, Subject, free_memory_bytes, torch_device
from scaling.models import Source
from scaling.predict.shape import Shape

BLOCK_TOKENS = 128
"""No block of vLLM's KV memory is larger, so a sequence's last one wastes at most so many tokens."""


def build_vllm(config: RunConfig, source: Source, cells: Sequence[Cell]) -> Subject:
    """vLLM on the checkpoint, or on an architecture whose weights it makes up, with KV memory for these cells.

    It has one KV memory for rollouts and single steps, `kv_memory` bytes or a share of what is free, and takes of it
    what the cells need.
    """
    shape = Shape.from_config(source.config)
    longest = max([16 + WARM_UP_TOKENS, *(cell.peak_context for cell in cells if cell.phase == "rollout")])
    longest += WARM_UP_STEPS + STEPS
    kv = kv_bytes(
        shape, config.dtype, config.concurrency, longest, devices=config.tensor_parallel, most=config.kv_memory
    )
    engine = VLLMEngine(
        source.path or _architecture(source),
        dtype=config.dtype,
        max_sequences=config.concurrency,
        max_length=longest,
        kv_bytes=kv,
        dummy=source.path is None,
        prefix_caching=config.prefix_caching,
        tensor_parallel=config.tensor_parallel,
        seed=config.seed,
    )

    @cache
    def trained() -> Trained:
        import torch

        from scaling.decoder import Decoder

        model = Decoder.from_config(source.config, dtype=getattr(torch, config.dtype), seed=config.seed)
        return Trained(model, engine, torch_device())

    def train(cell: Cell, seed: int) -> Measurement:
        return measure_phase(trained(), cell, seed)

    return Subject(
        shape,
        torch_device(),
        engine,
        engine,
        engine.limits(),
        train,
        beside=False,
        devices=config.tensor_parallel,
        apart=engine.apart,
        attention=engine.attention,
    )


def kv_bytes(
    shape: Shape, dtype: str, sequences: int, longest: int, *, devices: int = 1, most: int | None = None, kept: int = 0
) -> int:
    """Bytes of KV memory, on each device, for `sequences` contexts of `longest` tokens at once.

    Over all devices at most `most`, or a share of what is free beside the weights, which vLLM has yet to load, and
    `kept` bytes for others. More devices than KV heads each hold a whole one, several the same. Raises
    `MemoryLimitError` where those do not fit.
    """
    copies = devices / min(devices, shape.kv_shards)
    wanted = int(copies * sequences * (longest // BLOCK_TOKENS + 2) * BLOCK_TOKENS * shape.kv_bytes_per_token(dtype))
    taken, free = shape.weight_bytes(dtype) + kept, devices * free_memory_bytes()
    if taken >= free:
        raise MemoryLimitError(f"{taken} bytes are needed for weights and training alone, and {free} are free")
    return min(wanted, most or int(MEMORY_SHARE * (free - taken))) // devices


def _architecture(source: Source) -> Path:
    """A directory with nothing but the config, which is all that vLLM needs to make up weights."""
    path = Path(mkdtemp(prefix="scaling-architecture-"))
    (path / "config.json").write_text(json.dumps(source.config))
    return path

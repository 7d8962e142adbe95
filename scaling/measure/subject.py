"""What a run measures on: one model, on one device, behind one engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scaling.engines.base import Engine, Limits, Profilable
from scaling.measure.cells import OPENAI, SIMULATED, Cell, RunConfig
from scaling.measure.full import Measurement
from scaling.measure.phases import Trained, measure_phase
from scaling.models import Source
from scaling.predict.shape import Shape
from scaling.rollout import Sampling, rollout
from scaling.thinking import LongCoT

WARM_UP_TOKENS = 64
MEMORY_SHARE = 0.7  # of the free memory that KV may take unless the user says how much


@dataclass(slots=True)
class Subject:
    """What all cells of a run share.

    `profile_limits` is what the profile method integrates under: the sequences in flight, and the KV tokens that
    the memory budget stands for, whether or not the engine has allocated them. `train` measures a training phase, from
    a cell and a seed. `beside`: single steps can be timed while requests run, between the steps of a rollout. `devices`
    run the model together, in other processes than ours where it is `apart`. `attention`: the kernels that the engine
    attends by, null where it does not say. `served`: which server runs it, and how it was talked to."""

    shape: Shape
    torch_device: str
    engine: Engine
    profilable: Profilable
    profile_limits: Limits
    train: Callable[[Cell, int], Measurement]
    beside: bool = True
    devices: int = 1
    apart: bool = False
    attention: list[str] | None = None
    served: dict[str, Any] | None = None

    def warm_up(self, seed: int) -> None:
        """First-use costs (threads, allocators, kernels) are paid before anything is measured."""
        if self.engine.name == SIMULATED:
            return  # has none
        count = self.engine.limits().max_sequences
        queries = [[(seed + i) % self.shape.vocabulary] * 16 for i in range(count)]
        lengths = [[WARM_UP_TOKENS]] * count
        rollout(self.engine, LongCoT(WARM_UP_TOKENS), queries, sampling=Sampling(seed=seed), lengths=lengths)
        if self.engine.name == OPENAI:
            return  # its single steps are never timed
        self.profilable.measure([16 + WARM_UP_TOKENS] * count, [16] * count)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def torch_device() -> str:
    return "cuda" if has_gpu() else "cpu"


def device_kind() -> str:
    """The GPU's name, or `cpu`: what a cell's configuration says. Which CPU it was, rows and fingerprint say."""
    import torch

    return torch.cuda.get_device_name() if has_gpu() else "cpu"


def free_memory_bytes() -> int:
    """Bytes that the device could still give."""
    import psutil
    import torch

    return torch.cuda.mem_get_info()[0] if has_gpu() else psutil.virtual_memory().available


def build_subject(config: RunConfig, source: Source, cells: Sequence[Cell]) -> Subject:
    """Loads or makes the model, and an engine for the longest full rollout among `cells`.

    Full rollouts and profiles have one KV budget: `kv_memory` bytes, or a share of what is free. The engine allocates
    what the full ones need of it."""
    import torch

    from scaling.decoder import Decoder
    from scaling.engines.kv import PAGE_TOKENS, pages_of
    from scaling.engines.local import LocalEngine

    device, dtype = torch_device(), getattr(torch, config.dtype)
    if source.path is None:
        model = Decoder.from_config(source.config, dtype=dtype, device=device, seed=config.seed)
    else:
        model = Decoder.load(source.path, dtype=dtype, device=device)
    shape = model.shape
    per_token = shape.kv_bytes_per_token(config.dtype)
    budget = config.kv_memory or int(MEMORY_SHARE * free_memory_bytes())
    full = [cell.peak_context for cell in cells if cell.phase == "rollout" and cell.method == "full"]
    longest = max([16 + WARM_UP_TOKENS, *full])
    wanted = config.concurrency * pages_of(longest) * PAGE_TOKENS * per_token
    engine = LocalEngine(model, kv_bytes=min(wanted, budget), max_sequences=config.concurrency, max_length=longest)
    limits = Limits(budget // per_token, config.concurrency, max(config.lengths) + config.prompt_tokens)
    train = partial(measure_phase, Trained(model, engine, device))
    return Subject(shape, device, engine, engine, limits, train, attention=["torch"])

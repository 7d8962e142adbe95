"""Where and how a job runs: the kind of GPU, how many, and what each does when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from scaling.errors import UsageError, unknown
from scaling.lengths import MAX_TOKENS
from scaling.predict.distribution import Distribution
from scaling.predict.job import Job, positive, shown
from scaling.predict.rollouts import MAX_THINKING_TOKENS
from scaling.predict.roofline import Machine, Precision
from scaling.predict.shape import STORED_BYTES

Placement = Literal["colocated", "split", "asynchronous"]
"""`colocated`: all GPUs generate, then all train. `split`: some generate, the others train, in turn. `asynchronous`:
the same, at the same time: rollouts go on while the last batch trains, and never wait for the longest trace."""

Admission = Literal["paged", "reserved"]
"""`paged`: as many traces at once as fit at their mean context. `reserved`: as fit at the longest there may be."""

BFLOAT16 = Precision.of("bfloat16")

BUDGET_RATIO = 3
"""Budget ÷ mean length unless the job says: the paper's 24K budget at a mean of 8K."""

MOST_GPUS = 1 << 14
MOST_SEQUENCES = 1_000_000
MOST_PASSES = 1000
MOST_MONEY = 1e12
"""For a GPU-hour, in whatever currency."""


@dataclass(frozen=True, slots=True)
class Device:
    """The kind of GPU a job runs on: what one holds, draws at most, and sustains in generation and in training."""

    name: str
    memory_bytes: float
    watts: float | None
    serving: Machine
    training: Machine


@dataclass(frozen=True, slots=True)
class Setup:
    """The GPUs and what they do. `tensor_parallel`: None for the size of the shortest rollouts. `price`: of a GPU-hour.

    `memory_fraction` of a GPU's memory is used. `prefix_caching`: the engine keeps the constant query and head of a
    trace's prompts. `recompute`: activations are computed again in the backward pass.
    """

    device: Device
    gpus: int = 8
    tensor_parallel: int | None = None
    placement: Placement = "colocated"
    admission: Admission = "paged"
    max_sequences: int = 256
    memory_fraction: float = 0.9
    precision: Precision = BFLOAT16
    prefix_caching: bool = False
    recompute: bool = True
    price: float | None = None

    def __post_init__(self) -> None:
        positive("gpus", self.gpus, MOST_GPUS)
        positive("max sequences", self.max_sequences, MOST_SEQUENCES)
        if self.placement not in get_args(Placement):
            raise unknown("placement", self.placement, get_args(Placement))
        if self.admission not in get_args(Admission):
            raise unknown("admission", self.admission, get_args(Admission))
        if not 0 < self.memory_fraction <= 1:
            raise UsageError(
                f"memory fraction {shown(self.memory_fraction)} is not above 0 and at most 1; engines use 0.9"
            )
        for dtype in (self.precision.weights, self.precision.activations, self.precision.kv):
            if dtype not in STORED_BYTES:
                raise unknown("dtype", dtype, STORED_BYTES)
        if self.price is not None and not 0 <= self.price <= MOST_MONEY:
            raise UsageError(f"price {shown(self.price)} is no amount of money for a GPU-hour; give one such as 2.50")
        if self.tensor_parallel is not None:
            positive("tensor parallel", self.tensor_parallel, MOST_GPUS)
            if self.gpus % self.tensor_parallel:
                raise UsageError(
                    f"{self.gpus} GPUs do not divide into replicas of {self.tensor_parallel}; tensor parallel must "
                    "divide the number of GPUs"
                )
        if self.placement != "colocated" and self.gpus < 2:
            raise UsageError(f"placement {self.placement!r} needs at least 2 GPUs; on 1 GPU only 'colocated' works")
        if self.placement != "colocated" and self.tensor_parallel == self.gpus:
            raise UsageError(
                f"replicas of {self.gpus} GPUs leave none of {self.gpus} to train with placement {self.placement!r}; "
                "tensor parallel must be below the number of GPUs"
            )

    @property
    def usable_bytes(self) -> float:
        """Of one GPU's memory."""
        return self.memory_fraction * self.device.memory_bytes


@dataclass(frozen=True, slots=True)
class Work:
    """A job and how long its traces think. `passes`: over the data of a step (`ppo_epochs`). `budget`: most thinking
    tokens of a trace; None for three times the mean, but not past the positions that the model was trained for."""

    job: Job
    distribution: Distribution
    prompt_tokens: int = 128
    passes: int = 1
    budget: int | None = None

    def __post_init__(self) -> None:
        positive("prompt tokens", self.prompt_tokens, MAX_TOKENS)
        positive("passes", self.passes, MOST_PASSES)
        if self.budget is not None:
            positive("budget", self.budget, MAX_THINKING_TOKENS)

    def budget_for(self, mean: float, max_positions: int) -> int:
        if self.budget is not None:
            if mean > self.budget:
                raise UsageError(f"a mean of {mean:g} thinking tokens is above the budget of {self.budget}")
            return self.budget
        return max(math.ceil(mean), min(round(BUDGET_RATIO * mean), max_positions - self.prompt_tokens))

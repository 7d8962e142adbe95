"""A job on a published GPU, as the tests of the planner vary it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scaling.predict.distribution import parse
from scaling.predict.efficiency import device
from scaling.predict.hardware import gpu
from scaling.predict.job import Job
from scaling.predict.plan import Plan, plan
from scaling.predict.roofline import Precision
from scaling.predict.setup import Setup, Work
from scaling.predict.shape import Shape, architecture
from scaling.thinking import for_budget

MakePlan = Callable[..., Plan]


def made_plan(
    mode: str = "longcot",
    tokens: float = 8192,
    *,
    model: str = "r1-distill-qwen-1.5b",
    on: str = "h100",
    lengths: str = "lognormal:0.7",
    budget: int | None = None,
    job: Job | None = None,
    prompt_tokens: int = 128,
    passes: int = 1,
    context_size: int = 8192,
    state_size: int = 4096,
    head: int = 100,
    **setup: Any,
) -> Plan:
    """The plan of the paper's job, but for what is given; `setup` are fields of `Setup`."""
    gpus = setup.get("gpus", 8)
    precision = setup.setdefault("precision", Precision.of("bfloat16"))
    return plan(
        Shape.from_config(architecture(model)),
        Setup(device(gpu(on), precision.activations, gpus), **setup),
        Work(job or Job(), parse(lengths), prompt_tokens, passes, budget),
        lambda budget: for_budget(
            mode, budget, context_size=context_size, state_size=state_size, head=head, carryover="algorithm1"
        ),
        tokens,
    )


@pytest.fixture
def make_plan() -> MakePlan:
    return made_plan


@pytest.fixture
def make_setup() -> Callable[..., Setup]:
    def make(on: str = "h100", **fields: Any) -> Setup:
        return replace(Setup(device(gpu(on), "bfloat16", 8)), **fields)

    return make

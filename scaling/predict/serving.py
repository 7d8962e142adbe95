"""What traces cost where nothing is trained: the time of their rollouts on GPUs that serve a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.predict import memory
from scaling.predict.capacity import replica_sizes
from scaling.predict.distribution import Distribution
from scaling.predict.phases import Costs
from scaling.predict.rollouts import Schedule, mean_context
from scaling.predict.setup import Setup
from scaling.predict.shape import Shape
from scaling.thinking import Environment

RECKONED = 1024
"""Traces that stand for any larger number of them."""


@dataclass(frozen=True, slots=True)
class Served:
    """`gpu_hours` of all traces; `tensor_parallel` GPUs a replica, with `concurrency` traces at once on average."""

    gpu_hours: float
    tensor_parallel: int
    concurrency: float


def serve(
    shape: Shape,
    setup: Setup,
    environment: Environment,
    prompt_tokens: int,
    distribution: Distribution,
    mean: float,
    traces: int,
) -> Served:
    """What it takes to sample `traces` that think `mean` tokens on average, analytic: the replica of fewest GPU-hours.

    Raises `UsageError` where the model or one trace's keys and values do not fit the GPUs.
    """
    reckoned = min(traces, RECKONED)
    lengths = distribution.quantiles(mean, environment.budget, reckoned)
    schedule = Schedule.of(environment, prompt_tokens, int(lengths.max()))
    context, held = schedule.longest_context(int(lengths.max())), mean_context(schedule, lengths)
    costs = Costs(shape, setup, schedule, lengths)
    found = []
    for ranks in replica_sizes(shape, setup, context):
        room = memory.serving(shape, setup, ranks).kv / memory.kv_bytes(shape, held, setup.precision, ranks) * held
        phase, concurrency = costs.rollout(ranks, 1, setup.max_sequences, room)
        found.append(Served(phase.total * ranks * traces / reckoned / 3600, ranks, concurrency))
    return min(found, key=lambda served: served.gpu_hours)


def processed_tokens(environment: Environment, prompt_tokens: int, thinking_tokens: int) -> int:
    """Tokens that one trace of this length encodes and samples."""
    lengths = environment.expected_lengths(prompt_tokens, thinking_tokens)
    segments = environment.schedule(prompt_tokens, lengths)
    return int(np.sum([s.prompt - s.reused + s.decode for s in segments]))

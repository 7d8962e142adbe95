"""What a reinforcement learning job costs in a thinking environment, before anything is rented or measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from scaling.predict import memory
from scaling.predict.job import HOURS_PER_MONTH
from scaling.predict.phases import Costs, Phase
from scaling.predict.rollouts import Schedule, mean_context
from scaling.predict.setup import Setup, Work
from scaling.predict.shape import Shape
from scaling.thinking.base import Environment


@dataclass(frozen=True, slots=True)
class Plan:
    """One environment at one mean length. Everything is analytic: nothing of it was measured.

    Seconds are of one step, FLOPs of all its traces; bytes are of one GPU, `concurrency` of one replica.
    `truncated_share`: of traces that reach the budget. `chunks`: of a trace, on average. `longest_context`: tokens
    that one sequence can come to.
    """

    shape: Shape
    setup: Setup
    work: Work
    environment: Environment
    thinking_tokens: float
    budget: int
    truncated_share: float
    chunks: float
    longest_context: int
    tensor_parallel: int
    rollout_gpus: int
    training_gpus: int
    phases: dict[str, Phase]
    step_seconds: float
    tokens_per_second_per_gpu: float
    concurrency: float
    concurrency_limit: int
    kv_bytes: float
    peak_memory_bytes: float
    rollout_flops: float
    update_flops: float

    @property
    def data_parallel(self) -> int:
        """Replicas that generate."""
        return self.rollout_gpus // self.tensor_parallel

    def gpu_hours(self, phase: str) -> float:
        """Of the whole job, on the GPUs that work in this phase."""
        gpus = {"rollout": self.rollout_gpus, "sync": self.setup.gpus}.get(phase, self.training_gpus)
        return self.phases[phase].total * gpus * self.work.job.steps / 3600

    @property
    def total_gpu_hours(self) -> float:
        """Of all GPUs for the whole job, those that wait included."""
        return self.step_seconds * self.setup.gpus * self.work.job.steps / 3600

    @property
    def gpu_months(self) -> float:
        return self.total_gpu_hours / HOURS_PER_MONTH

    @property
    def energy_kwh(self) -> float | None:
        """At full board power: an upper bound for the GPUs; hosts and cooling are left out."""
        watts = self.setup.device.watts
        return None if watts is None else self.total_gpu_hours * watts / 1000

    @property
    def cost(self) -> float | None:
        """In the currency of the price."""
        return None if self.setup.price is None else self.total_gpu_hours * self.setup.price


def plan(
    shape: Shape, setup: Setup, work: Work, environment_for: Callable[[int], Environment], thinking_tokens: float
) -> Plan:
    """The plan of a job whose traces think `thinking_tokens` on average, in the environment of a given budget.

    Where GPUs are split between generation and training, the division is the one of the shortest step. Raises
    `UsageError` where the model, one trace's keys and values, or the training states do not fit, and says what would.
    """
    budget = work.budget_for(thinking_tokens, shape.max_positions)
    environment = environment_for(budget)
    lengths = work.distribution.quantiles(thinking_tokens, budget, work.job.traces_per_step)
    longest = int(lengths.max())
    cached = work.prompt_tokens + int(environment.parameters().get("head", 0)) if setup.prefix_caching else 0
    schedule = Schedule.of(environment, work.prompt_tokens, longest, cached)
    context = schedule.longest_context(longest)
    context_mean = mean_context(schedule, lengths)
    ranks = memory.ranks(shape, setup, context)
    setup = replace(setup, tensor_parallel=ranks)
    memory.check_training(shape, setup, context)
    costs = Costs(shape, setup, schedule, lengths)
    colocated = setup.placement == "colocated"

    def divided(generating: int, training: int) -> Plan:
        free = memory.serving(shape, setup, ranks, training if colocated else None)
        admitted = context if setup.admission == "reserved" else context_mean
        fits = int(free.kv // memory.kv_bytes(shape, admitted, setup.precision, ranks))
        limit = max(min(setup.max_sequences, fits), 1)
        rollout, concurrency = costs.rollout(generating // ranks, limit)
        phases = {
            "rollout": rollout,
            "logprob": costs.logprob(training),
            "update": costs.update(training, work.passes),
            "sync": costs.sync(),
        }
        trained = phases["logprob"].total + phases["update"].total
        both = max(rollout.total, trained) if setup.placement == "asynchronous" else rollout.total + trained
        held = concurrency * memory.kv_bytes(shape, context_mean, setup.precision, ranks)
        backward = memory.training(shape, training, context, setup.recompute)
        return Plan(
            shape=shape,
            setup=setup,
            work=work,
            environment=environment,
            thinking_tokens=float(lengths.mean()),
            budget=budget,
            truncated_share=float(np.mean(lengths >= budget)),
            chunks=costs.chunks,
            longest_context=context,
            tensor_parallel=ranks,
            rollout_gpus=generating,
            training_gpus=training,
            phases=phases,
            step_seconds=both + phases["sync"].total,
            tokens_per_second_per_gpu=float(lengths.sum()) / rollout.total / generating,
            concurrency=concurrency,
            concurrency_limit=limit,
            kv_bytes=held,
            peak_memory_bytes=max(free.weights + free.reserved + held, backward),
            rollout_flops=costs.rollout_flops,
            update_flops=costs.update_flops * work.passes,
        )

    if colocated:
        return divided(setup.gpus, setup.gpus)
    options = [divided(n, setup.gpus - n) for n in _divisions(setup, ranks, divided(ranks, setup.gpus - ranks))]
    return min(options, key=lambda found: found.step_seconds)


def _divisions(setup: Setup, ranks: int, smallest: Plan) -> list[int]:
    """Numbers of generating GPUs worth trying: all of a small cluster, else those around the balance of the work."""
    possible = range(ranks, setup.gpus, ranks)
    if len(possible) <= 8:
        return list(possible)
    rollout = smallest.phases["rollout"].total * ranks
    trained = (smallest.phases["logprob"].total + smallest.phases["update"].total) * smallest.training_gpus
    if setup.placement == "split":  # least of a/n + b/(N−n), not least of their maximum
        rollout, trained = rollout**0.5, trained**0.5
    balance = round(setup.gpus * rollout / (rollout + trained) / ranks)
    near = {balance + offset for offset in (-3, -2, -1, 0, 1, 2, 3)}
    return [n * ranks for n in sorted(near) if n * ranks in possible] or [possible[-1]]

"""What a reinforcement learning job costs in a thinking environment, before anything is rented or measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from scaling.errors import UsageError
from scaling.predict import memory
from scaling.predict.capacity import replica_sizes, training_layout
from scaling.predict.job import HOURS_PER_MONTH
from scaling.predict.phases import REPLICAS, Costs, Phase
from scaling.predict.rollouts import Schedule, mean_context
from scaling.predict.setup import Setup, Work
from scaling.predict.shape import Shape
from scaling.thinking.base import Environment

FEW_REPLICAS = 4
"""So many stand for all where only sizes and divisions are compared."""

PHASES = ("rollout", "logprob", "update", "sync")


@dataclass(frozen=True, slots=True)
class Plan:
    """One environment at one mean length. Everything is analytic: nothing of it was measured.

    Seconds are of one step, FLOPs of all its traces; bytes are of one GPU, `concurrency` of one replica.
    `fitting_traces`: what a replica's memory holds at their mean (paged) or longest (reserved) context.
    `truncated_share`: of traces that reach the budget. `longest_context`: tokens that one sequence can come to.
    `sequence_parallel`: GPUs that a training sequence is split over. `costs`: what its figures were reckoned from.
    """

    shape: Shape
    setup: Setup
    work: Work
    environment: Environment
    thinking_tokens: float
    budget: int
    truncated_share: float
    longest_context: int
    tensor_parallel: int
    sequence_parallel: int
    rollout_gpus: int
    training_gpus: int
    phases: dict[str, Phase]
    step_seconds: float
    tokens_per_second_per_gpu: float
    concurrency: float
    fitting_traces: int
    kv_bytes: float
    peak_memory_bytes: float
    costs: Costs

    @property
    def chunks(self) -> float:
        """Of a trace, on average."""
        return self.costs.chunks

    @property
    def rollout_flops(self) -> float:
        return self.costs.rollout_flops

    @property
    def update_flops(self) -> float:
        return self.costs.update_flops * self.work.passes

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
    def kv_bytes_per_token(self) -> int:
        """That stay for good, over all ranks; layers with a window hold more for a while."""
        return self.shape.kv_bytes_per_token(self.setup.precision.kv)

    @property
    def energy_kwh(self) -> float | None:
        """At full board power: an upper bound for the GPUs; hosts and cooling are left out."""
        watts = self.setup.device.watts
        return None if watts is None else self.total_gpu_hours * watts / 1000

    @property
    def cost(self) -> float | None:
        """In the currency of the price."""
        return None if self.setup.price is None else self.total_gpu_hours * self.setup.price

    def to_json(self) -> dict[str, Any]:
        """Flat, units in the names; seconds are of one step, hours of the job."""
        setup, work = self.setup, self.work
        rows: dict[str, Any] = {
            "status": "ok",
            "method": "analytic",
            "environment": self.environment.name,
            "environment_parameters": self.environment.parameters(),
            "thinking_tokens": self.thinking_tokens,
            "budget_tokens": self.budget,
            "length_distribution": work.distribution.text,
            "truncated_share": self.truncated_share,
            "chunks": self.chunks,
            "longest_context": self.longest_context,
        }
        for phase in PHASES:
            rows[f"{phase}_seconds"] = self.phases[phase].total
        for phase in PHASES:
            rows[f"{phase}_gpu_hours"] = self.gpu_hours(phase)
        return rows | {
            "step_seconds": self.step_seconds,
            "total_gpu_hours": self.total_gpu_hours,
            "gpu_months": self.gpu_months,
            "tokens_per_second_per_gpu": self.tokens_per_second_per_gpu,
            "concurrency": self.concurrency,
            "fitting_traces": self.fitting_traces,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes_per_gpu": self.kv_bytes,
            "peak_memory_bytes_per_gpu": self.peak_memory_bytes,
            "parameters": self.shape.parameters,
            "active_parameters": self.shape.active_parameters,
            "bound": self.phases["rollout"].bound,
            "bounds": {phase: self.phases[phase].bound for phase in PHASES},
            "seconds_by_bound": {phase: self.phases[phase].by_bound for phase in PHASES},
            "rollout_flops_per_step": self.rollout_flops,
            "update_flops_per_step": self.update_flops,
            "energy_kwh": self.energy_kwh,
            "cost": self.cost,
            "gpu": setup.device.name,
            "gpus": setup.gpus,
            "tensor_parallel": self.tensor_parallel,
            "data_parallel": self.data_parallel,
            "sequence_parallel": self.sequence_parallel,
            "rollout_gpus": self.rollout_gpus,
            "training_gpus": self.training_gpus,
            "placement": setup.placement,
            "admission": setup.admission,
            "weight_dtype": setup.precision.weights,
            "activation_dtype": setup.precision.activations,
            "kv_dtype": setup.precision.kv,
            "recompute": setup.recompute,
            "steps": work.job.steps,
            "prompts": work.job.prompts,
            "samples": work.job.samples,
            "prompt_tokens": work.prompt_tokens,
            "passes": work.passes,
        }


def plan(
    shape: Shape, setup: Setup, work: Work, environment_for: Callable[[int], Environment], thinking_tokens: float
) -> Plan:
    """The plan of a job whose traces think `thinking_tokens` on average, in the environment of a given budget.

    Where nothing else is asked for, replicas have the tensor parallel size, and GPUs are divided between generation and
    training, for the shortest step. Raises `UsageError` where the model, one trace's keys and values, or the training
    states do not fit, and says what would.
    """
    budget = work.budget_for(thinking_tokens, shape.max_positions)
    environment = environment_for(budget)
    lengths = work.distribution.quantiles(thinking_tokens, budget, work.job.traces_per_step)
    longest = int(lengths.max())
    cached = work.prompt_tokens + int(environment.parameters().get("head", 0)) if setup.prefix_caching else 0
    schedule = Schedule.of(environment, work.prompt_tokens, longest, cached)
    context = schedule.longest_context(longest)
    context_mean = mean_context(schedule, lengths)
    admitted = context if setup.admission == "reserved" else context_mean
    costs = Costs(shape, setup, schedule, lengths)

    @cache
    def generated(ranks: int, gpus: int, reckoned: int = REPLICAS) -> tuple[Phase, float]:
        limit, kv_tokens = _limit(shape, setup, ranks, admitted), math.inf
        if setup.admission == "paged" and setup.placement != "asynchronous":
            limit, kv_tokens = setup.max_sequences, _kv_tokens(shape, setup, ranks, context_mean)
        return costs.rollout(ranks, gpus // ranks, limit, kv_tokens, reckoned)

    colocated = setup.placement == "colocated"

    @cache
    def trained(gpus: int) -> tuple[int, int, Phase, Phase]:
        split, batch = training_layout(shape, setup, gpus, context)
        return split, batch, costs.logprob(gpus, split, batch), costs.update(gpus, split, batch) * work.passes

    def together(generation: float, training: float) -> float:
        return max(generation, training) if setup.placement == "asynchronous" else generation + training

    def seconds(ranks: int, generating: int) -> float:
        """Of a step but for the weights' transfer, on so many generating GPUs; infinite where training does not fit."""
        try:
            _, _, logprob, update = trained(setup.gpus if colocated else setup.gpus - generating)
        except UsageError:
            return math.inf
        return together(generated(ranks, generating, FEW_REPLICAS)[0].total, logprob.total + update.total)

    def divided(ranks: int) -> int:
        """Generating GPUs, in replicas of `ranks`, of the shortest step: fewer generate longer, more train longer."""
        if colocated:
            return setup.gpus
        low, high = 1, (setup.gpus - 1) // ranks
        while low < high:
            middle = (low + high) // 2
            if seconds(ranks, middle * ranks) <= seconds(ranks, (middle + 1) * ranks):
                high = middle
            else:
                low = middle + 1
        return low * ranks

    sizes = replica_sizes(shape, setup, context)
    ranks, generating = sizes[0], divided(sizes[0])
    for larger in sizes[1:]:
        part = divided(larger)
        if seconds(larger, part) >= seconds(ranks, generating):
            break  # what ranks exchange only grows from here
        ranks, generating = larger, part
    training = setup.gpus if colocated else setup.gpus - generating
    split, batch, logprob, update = trained(training)
    rollout, concurrency = generated(ranks, generating)
    sync = costs.sync(ranks, training)
    free = memory.serving(shape, setup, ranks)
    held = concurrency * memory.kv_bytes(shape, context_mean, setup.precision, ranks)
    return Plan(
        shape=shape,
        setup=setup,
        work=work,
        environment=environment,
        thinking_tokens=float(lengths.mean()),
        budget=budget,
        truncated_share=float(np.mean(lengths >= budget)),
        longest_context=context,
        tensor_parallel=ranks,
        sequence_parallel=split,
        rollout_gpus=generating,
        training_gpus=training,
        phases={"rollout": rollout, "logprob": logprob, "update": update, "sync": sync},
        step_seconds=together(rollout.total, logprob.total + update.total) + sync.total,
        tokens_per_second_per_gpu=float(lengths.sum()) / rollout.total / generating,
        concurrency=concurrency,
        fitting_traces=_limit(shape, setup, ranks, admitted),
        kv_bytes=held,
        peak_memory_bytes=max(
            free.weights + free.reserved + held, memory.training(shape, training, batch, setup.recompute)
        ),
        costs=costs,
    )


def _kv_tokens(shape: Shape, setup: Setup, ranks: int, context: float) -> float:
    """Tokens of all contexts that a replica's memory holds, where each has about so many."""
    return memory.serving(shape, setup, ranks).kv / memory.kv_bytes(shape, context, setup.precision, ranks) * context


def _limit(shape: Shape, setup: Setup, ranks: int, context: float) -> int:
    """Traces at once on a replica, each with so many tokens in its context."""
    fits = memory.serving(shape, setup, ranks).kv // memory.kv_bytes(shape, context, setup.precision, ranks)
    return max(min(setup.max_sequences, int(fits)), 1)

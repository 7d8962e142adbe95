"""The phases of one step, each in seconds by what rules them: rollouts, log-probabilities, update, weight transfer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from scaling.predict.memory import training_states
from scaling.predict.rollouts import Ints, Schedule, steady, synchronous
from scaling.predict.roofline import Machine, Roofline, Seconds
from scaling.predict.setup import Setup
from scaling.predict.shape import DTYPE_BYTES, Shape

REPLICAS = 8
"""At most so many are reckoned one by one."""

OPTIMIZER_BYTES_A_PARAMETER = 28
"""Adam reads weight, gradient and two moments, and writes all but the gradient, in float32."""

HOST_BYTES_PER_S = 25e9
"""Between a GPU and its host's memory, one way: PCIe 4.0 × 16 in practice."""

HOST_SECONDS_A_TRACE = 2.5e-3
"""Rewards, advantages, batches and their transfers between phases. Six published steps of verl leave 1.3 to 6.7 ms a
trace beside generation, log-probabilities and update (docs/planning-accuracy.md)."""

_HALF = DTYPE_BYTES["bfloat16"]

_COUNTER = Machine(math.inf, math.inf, 1.0, 0.0)
"""One FLOP a second and every byte at once: its seconds are FLOPs."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Wall seconds of one phase of one step, by what rules them.

    `tail`: those in which rows and GPUs wait for the last ones.
    """

    seconds: Seconds
    tail: float = 0.0

    @property
    def total(self) -> float:
        return float(self.seconds.total) + self.tail

    def __mul__(self, times: float) -> Phase:
        return Phase(self.seconds * times, self.tail * times)

    @property
    def by_bound(self) -> dict[str, float]:
        return {**self.seconds.to_json(), "tail": self.tail}

    @property
    def bound(self) -> str:
        """What most of the seconds wait for: memory, compute, overhead, link or tail."""
        found = self.by_bound
        return max(found, key=lambda name: found[name])


class Costs:
    """What the traces of one step, thinking `lengths` along `schedule`, cost in each phase.

    `tokens`, `decode`: of every kind of chunk among them, the tokens of its training sequence (its last one is never
    an input) and of its response.
    """

    def __init__(self, shape: Shape, setup: Setup, schedule: Schedule, lengths: Ints) -> None:
        self.shape, self.setup, self.schedule, self.lengths = shape, setup, schedule, lengths
        _, chunk, decode = schedule.chunks(lengths)
        self._chunk, self._steps = chunk, (decode - 1).astype(np.float64)
        sequences, counts = np.unique((schedule.prompt[chunk] - 1 << 32) + decode, return_counts=True)
        self.decode = (sequences & 0xFFFFFFFF).astype(np.float64)
        self.tokens = (sequences >> 32) + self.decode
        self._counts = counts.astype(np.float64)

    @property
    def chunks(self) -> float:
        """Of a trace, on average."""
        return len(self._chunk) / len(self.lengths)

    def rollout(
        self, ranks: int, replicas: int, limit: int, kv_tokens: float, reckoned: int = REPLICAS
    ) -> tuple[Phase, float]:
        """The rollouts of one step on `replicas` of `ranks` GPUs, at most `limit` traces at once on each, with room
        for `kv_tokens`; and a replica's mean concurrency.

        Which traces a replica gets is chance, so a synchronous step waits for the slowest: they are dealt out by a
        fixed shuffle. Of more than `reckoned` only so many are, and stand for all.
        """
        roofline = Roofline(self.shape, self.setup.device.serving, self.setup.precision, ranks)
        shuffled = np.random.default_rng(0).permutation(self.lengths)
        dealt = [part for part in np.array_split(shuffled, replicas) if len(part)]
        seen = dealt[:: -(-len(dealt) // reckoned)]
        waits = self.setup.placement != "asynchronous"
        if waits:
            found = [synchronous(roofline, self.schedule, part, limit, kv_tokens) for part in seen]
        else:
            found = [steady(roofline, self.schedule, part, min(limit, len(part))) for part in seen]
        totals = [each.total for each in found]
        busy = math.fsum(totals)
        seconds = Seconds()
        for each in found:
            seconds += each.seconds * (len(dealt) / len(seen) / replicas)
        mean = busy / len(seen)
        last = _slowest(totals, len(dealt)) if waits else mean * len(dealt) / replicas
        concurrency = math.fsum(r.concurrency_mean * t for r, t in zip(found, totals, strict=True)) / busy
        return Phase(seconds, last - float(seconds.total)), concurrency

    def logprob(self, gpus: int, split: int, batch: int) -> Phase:
        """One forward pass over every chunk, on `gpus` that share the work evenly, a sequence on `split` of them, in
        micro-batches of `batch` tokens."""
        return Phase(self._trained(gpus, split, batch, passes=1, gathers=1))

    def update(self, gpus: int, split: int, batch: int) -> Phase:
        """Forward, backward and optimizer: 3× the log-probabilities, 4× with recompute.

        Sharded layers are gathered for the forward and the backward pass, and gradients are reduced once.
        """
        work = self._trained(gpus, split, batch, passes=4 if self.setup.recompute else 3, gathers=3)
        states = OPTIMIZER_BYTES_A_PARAMETER * self.shape.parameters / gpus
        return Phase(work + Seconds(memory=states / self.setup.device.training.bandwidth_bytes_per_s))

    def sync(self, ranks: int, gpus: int) -> Phase:
        """What is between phases: fresh weights to every replica, the host's work on every trace, and where the same
        `gpus` train, their states to the host's memory and back.

        Every GPU receives every tensor whole, for the shards of training are not those of the replica, and copies its
        part.
        """
        machine = self.setup.device.serving
        received = self.shape.parameters * _HALF
        moved = Seconds(
            memory=received * (1 + 2 / ranks) / machine.bandwidth_bytes_per_s,
            overhead=HOST_SECONDS_A_TRACE * len(self.lengths),
        )
        link = machine.link_between(self.setup.gpus)
        if self.setup.gpus > 1 and link is not None:
            moved += Seconds(link=received / link)
        if self.setup.placement == "colocated":
            moved += Seconds(link=2 * training_states(self.shape, gpus) / HOST_BYTES_PER_S)
        return Phase(moved)

    @property
    def rollout_flops(self) -> float:
        """FLOPs of all traces' rollouts: causal, of what an engine computes (MLA decodes over its latent)."""
        counter = Roofline(self.shape, _COUNTER)
        chunk, steps = self._chunk, self._steps
        new = self.schedule.new[chunk].astype(np.float64)
        encoded = counter.prefill(new, self.schedule.prompt[chunk] - new).sum()
        middle = self.schedule.prompt[chunk] + (steps + 1) / 2
        return float((encoded + (counter.decode(np.ones_like(steps), middle) * steps).sum()).total)

    @property
    def update_flops(self) -> float:
        """FLOPs of one pass of updates over all traces, recomputed activations included: causal."""
        forward = Roofline(self.shape, _COUNTER).training(self.tokens, self.decode)
        return float((forward * self._counts).sum().total) * (4 if self.setup.recompute else 3)

    def _trained(self, gpus: int, split: int, batch: int, passes: int, gathers: int) -> Seconds:
        """`passes` times the forward work over all chunks, and what the network takes beyond it.

        Hidden behind the work, as far as it lasts: the next layer's weights are gathered while this one computes
        (FSDP). Not hidden: tokens on their way to their experts and back, and a split sequence's queries, keys, values
        and outputs on theirs (all-to-all, as in DeepSpeed-Ulysses). Experts stay sharded (expert parallelism) over as
        few nodes as hold their weights and gradients in half of their memory; a token goes once to each node that has
        some of its experts, as in DeepSeek-V3.
        """
        machine = self.setup.device.training
        roofline = Roofline(self.shape, machine)
        work: Seconds = (roofline.training(self.tokens, self.decode) * self._counts).sum() * (passes / gpus)
        link = machine.link_between(gpus)
        if gpus == 1 or link is None:
            return work
        tokens = float(np.sum(self.tokens * self._counts)) / gpus
        kinds = self.shape.kinds
        experts = sum(kind.count * kind.experts * kind.expert_parameters for kind in kinds)
        batches = math.ceil(tokens / batch)
        gathered = gathers * batches * (self.shape.parameters - experts) * _HALF
        room = min(gpus, machine.node) * self.setup.device.memory_bytes / 2
        nodes = max(1, math.ceil(2 * _HALF * experts / room))
        routed = 2 * self.shape.hidden * sum(kind.count * _copies(kind.active_experts, nodes) for kind in kinds)
        exchanged = 4 * sum(kind.count * kind.heads_width for kind in kinds) if split > 1 else 0
        to_experts = machine.link_between(nodes * min(gpus, machine.node)) or link
        to_parts = machine.link_between(split) or link
        sent = passes * tokens * _HALF * (routed / to_experts + exchanged / to_parts)
        exposed = max(0.0, gathered / link - float(work.total))
        return work + Seconds(link=(gpus - 1) / gpus * (exposed + sent))


def _slowest(totals: Sequence[float], replicas: int) -> float:
    """Seconds of the slowest of `replicas`, of which `totals` are some: where they are not all, the mean and so many
    standard deviations as the largest of that many normal numbers is expected above it (Blom's approximation)."""
    if len(totals) == replicas:
        return max(totals)
    above = NormalDist().inv_cdf((replicas - 0.375) / (replicas + 0.25))
    return max(*totals, statistics.fmean(totals) + above * statistics.stdev(totals))


def _copies(experts: int, nodes: int) -> float:
    """That leave for a token's experts: one for each within the node, one for each other node that has some."""
    return experts if nodes == 1 else (nodes - 1) * (1 - (1 - 1 / nodes) ** experts)

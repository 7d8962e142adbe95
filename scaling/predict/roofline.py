"""Seconds on paper: a machine's measured or published rates applied to what a shape computes and moves.

A kernel takes the longer of its bytes at the machine's bandwidth and its FLOPs at its rate; a pass is the sum over its
kernels, plus their dispatch, the engine's work on the host, and what tensor parallel ranks exchange.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaling.predict.shape import STORED_BYTES, Layer, Shape
from scaling.thinking.base import Segment

Array = NDArray[np.float64]

KERNELS_A_LAYER = 50
"""Kernels that a decoder layer of our own engine dispatches in a decode step, counted, its views as a fifth each:
fused projections, norms, rotation, cache writes, paged attention and its merge, activation, residuals."""

KERNELS_A_PASS = 51
"""Those outside the layers: places in the cache, embedding, angles, last norm, LM head, sampling."""

SAMPLING_BYTES_A_LOGIT = 24
"""Moved for each logit that is sampled from: half-precision out of the head, float32 for the temperature, the maximum,
the sum, the probabilities and the draw; about six passes of 4 bytes."""

TRAINING_BYTES_A_LOGIT = 28
"""Moved for each logit of a log-probability, forward, by eager kernels: 2 out of the head, 2 + 4 to widen it to
float32, 4 + 4 to divide it by the temperature, 4 + 4 + 4 for the log-softmax, which reads twice."""

UNPACKING = {"int8": 0.8, "int4": 0.6}
"""Share of what bfloat16 weights stream at, where each weight must be unpacked before it is multiplied. Dispatch apart,
gpt-fast gets 0.69 of an A100's bandwidth out of int8, 0.50 out of int4 and 0.85 out of bfloat16. What vLLM takes for
mxfp4 on an H100 leaves nothing for it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What one device sustains in one data type.

    `bandwidth_bytes_per_s`: of weights, read from memory by a product with a few rows. `kv_bandwidth_bytes_per_s`: of
    keys and values, read from memory by attention of one query a row. `flops_per_s`: of a large matrix product.
    `seconds_per_kernel`: to dispatch a small one. `spread`: (largest − smallest) ÷ median of each measured rate over
    its measurements; empty for a datasheet. `attention_flops_per_s`: of attention over many queries, None for that of
    a matrix product. `activation_bandwidth_bytes_per_s`: of what is passed from kernel to kernel, None where caches
    hold it. `seconds_per_step`, `seconds_per_row`: the engine's own work for every decode step and for every row in
    it. `link_bytes_per_s`: one direction, to the other ranks; `network_bytes_per_s`: the same where there are more than
    the `node` that share that link, None where there are not; `seconds_per_collective`: before it flows.
    """

    bandwidth_bytes_per_s: float
    kv_bandwidth_bytes_per_s: float
    flops_per_s: float
    seconds_per_kernel: float
    spread: Mapping[str, float] = field(default_factory=dict)
    attention_flops_per_s: float | None = None
    activation_bandwidth_bytes_per_s: float | None = None
    kernels_a_layer: float = KERNELS_A_LAYER
    kernels_a_pass: float = KERNELS_A_PASS
    seconds_per_step: float = 0.0
    seconds_per_row: float = 0.0
    link_bytes_per_s: float | None = None
    network_bytes_per_s: float | None = None
    node: int = 8
    seconds_per_collective: float = 0.0

    def link_between(self, ranks: int) -> float | None:
        """Bytes a second, one direction, that each of so many ranks exchanges with the others; None if unknown."""
        return self.network_bytes_per_s or self.link_bytes_per_s if ranks > self.node else self.link_bytes_per_s

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Precision:
    """Data types of the weights, of what is computed with them, and of keys and values."""

    weights: str = "bfloat16"
    activations: str = "bfloat16"
    kv: str = "bfloat16"

    @classmethod
    def of(cls, dtype: str) -> Precision:
        return cls(dtype, dtype, dtype)


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds by what rules them, each a number or an array of one common shape.

    `memory` and `compute`: of kernels that wait for bytes, and for arithmetic. `overhead`: dispatch and the host.
    `link`: between ranks.
    """

    memory: Array | float = 0.0
    compute: Array | float = 0.0
    overhead: Array | float = 0.0
    link: Array | float = 0.0

    @property
    def total(self) -> Array:
        return np.asarray(self.memory + self.compute + self.overhead + self.link)

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __mul__(self, times: Array | float) -> Seconds:
        return Seconds(*(part * times for part in self._parts()))

    def sum(self) -> Seconds:
        """Over the arrays' elements; parts that are one number for all of them are repeated first."""
        return Seconds(*(float(np.sum(part)) for part in np.broadcast_arrays(*self._parts())))

    def to_json(self) -> dict[str, float]:
        """Totals by name."""
        return asdict(self.sum())

    def _parts(self) -> tuple[Array | float, ...]:
        return self.memory, self.compute, self.overhead, self.link


@dataclass(frozen=True, slots=True)
class Roofline:
    """Seconds of single passes of a model on one replica: `tensor_parallel` devices like `machine`.

    Left out everywhere: rows of unequal length, imbalance between experts, what a cache keeps from one step to the
    next, and that several prompts in one pass share the weights' bytes.
    """

    shape: Shape
    machine: Machine
    precision: Precision = Precision()
    tensor_parallel: int = 1

    def decode(self, rows: ArrayLike, keys: ArrayLike) -> Seconds:
        """One decode step of `rows` sequences whose contexts sum to `keys` tokens, elementwise.

        Weights are read once for all rows, of experts those that some row chose; keys and values once for their row.
        A layer with a window sees at most `rows` × window keys.
        """
        rows, keys = np.asarray(rows, dtype=np.float64), np.asarray(keys, dtype=np.float64)
        found = self._dispatch() + Seconds(overhead=self.machine.seconds_per_step + self.machine.seconds_per_row * rows)
        for layer in self.shape.kinds:
            seen = keys if layer.window is None else np.minimum(keys, rows * layer.window)
            attention = self._attention(
                layer, seen * layer.kv_elements, layer.cached_pair_flops * seen, self.machine.flops_per_s
            )
            found += (self._products(layer, rows) + attention + self._exchange(rows)) * layer.count
        return found + self._head(rows, SAMPLING_BYTES_A_LOGIT)

    def prefill(self, new: ArrayLike, past: ArrayLike = 0) -> Seconds:
        """Encodes one prompt of `new` tokens behind `past` cached ones, logits of its last token; elementwise."""
        new, past = np.asarray(new, dtype=np.float64), np.asarray(past, dtype=np.float64)
        return self._forward(new, past, activations=_FUSED) + self._head(np.ones_like(new), SAMPLING_BYTES_A_LOGIT)

    def rollout(self, segments: Iterable[Segment], rows: int) -> Seconds:
        """`rows` traces that all follow `segments` in lockstep; device-seconds per trace are the total ÷ `rows`.

        Each segment's prefill and its decode steps at the contexts that they have, summed exactly.
        """
        total = Seconds()
        for s in segments:
            contexts = s.prompt + np.arange(1, s.steps + 1)
            total += (self.prefill(s.prefill, s.reused) * rows).sum() + self.decode(
                np.full(s.steps, rows), rows * contexts
            ).sum()
        return total

    def logprob(self, segments: Iterable[Segment]) -> Seconds:
        """One trace's log-probabilities: one forward pass of each of its chunks, logits where a response token is."""
        chunks = [(s.prompt + s.steps, s.decode) for s in segments if s.decode]
        if not chunks:
            return Seconds()
        tokens, logits = np.array(chunks, dtype=np.float64).T
        return self.training(tokens, logits).sum()

    def training(self, tokens: Array, logits: Array) -> Seconds:
        """One forward pass of sequences of `tokens` with log-probabilities at `logits` positions, elementwise."""
        body = self._forward(tokens, np.zeros_like(tokens), activations=_EAGER)
        return body + self._head(logits, TRAINING_BYTES_A_LOGIT)

    def update(self, segments: Iterable[Segment], recompute: bool = True) -> Seconds:
        """One trace's forward and backward: 3× its log-probabilities, 4× with full activation recompute.

        Left out: the optimizer's step, which is paid once a batch.
        """
        return self.logprob(segments) * (4 if recompute else 3)

    def _forward(self, new: Array, past: Array, activations: tuple[int, int, int]) -> Seconds:
        """Everything of a pass but the LM head."""
        found = self._dispatch()
        rate = self.machine.attention_flops_per_s or self.machine.flops_per_s
        for layer in self.shape.kinds:
            kept = past if layer.window is None else np.minimum(past, layer.window)
            attention = self._attention(
                layer, (kept + new) * layer.kv_elements, layer.pair_flops * pairs(new, past, layer.window), rate
            )
            found += (
                self._products(layer, new)
                + attention
                + self._exchange(new)
                + self._activations(layer, new, activations)
            ) * layer.count
        return found

    def _products(self, layer: Layer, tokens: Array) -> Seconds:
        """Projections, MLP and experts of one layer."""
        ranks, precision = self.tensor_parallel, self.precision
        found = Seconds()
        for weights in (layer.attention_parameters, layer.mlp_parameters):
            stored = weights * self.shape.bytes_of(precision.weights, "layer") / ranks
            found += self._kernel(stored, 2 * weights * tokens / ranks, self._streaming)
        if layer.experts:
            touched = layer.experts * (1 - (1 - layer.active_experts / layer.experts) ** tokens)
            size = layer.expert_parameters
            found += self._kernel(
                touched * size * self.shape.bytes_of(precision.weights, "expert") / ranks,
                2 * layer.active_experts * size * tokens / ranks,
                self._streaming,
            )
        return found

    def _attention(self, layer: Layer, elements: Array, flops: Array, rate: float) -> Seconds:
        """Scores and values of one layer: `elements` of KV are read. Ranks share KV heads, never one head."""
        ranks = self.tensor_parallel
        kv_bytes = elements * STORED_BYTES[self.precision.kv] / min(ranks, self.shape.kv_shards)
        return self._kernel(kv_bytes, flops / ranks, self.machine.kv_bandwidth_bytes_per_s, rate)

    def _head(self, logits: Array, bytes_a_logit: float) -> Seconds:
        """The LM head for so many positions, and what is done with their logits."""
        weights = self.shape.hidden * self.shape.vocabulary
        stored = weights * self.shape.bytes_of(self.precision.weights, "head")
        ranks = self.tensor_parallel
        found = self._kernel(stored / ranks, 2 * weights * logits / ranks)
        if self.machine.activation_bandwidth_bytes_per_s is None:
            return found
        moved = logits * self.shape.vocabulary * bytes_a_logit / ranks
        return found + Seconds(memory=moved / self.machine.activation_bandwidth_bytes_per_s)

    def _activations(self, layer: Layer, tokens: Array, passes: tuple[int, int, int]) -> Seconds:
        """What norms, rotations, residuals and the MLP's activation read and write."""
        bandwidth = self.machine.activation_bandwidth_bytes_per_s
        if bandwidth is None:
            return Seconds()
        hidden, heads, mlp = passes
        permuted = _PERMUTED * layer.active_experts
        elements = (hidden + permuted) * self.shape.hidden + (
            heads * layer.heads_width + mlp * layer.mlp_width
        ) / self.tensor_parallel
        return Seconds(memory=tokens * elements * STORED_BYTES[self.precision.activations] / bandwidth)

    def _exchange(self, tokens: Array) -> Seconds:
        """Two all-reduces a layer between tensor parallel ranks: 2(n−1)/n of the activations leave each rank.

        Between nodes each is three collectives in turn: in the node, among the nodes, and in the node again.
        """
        ranks = self.tensor_parallel
        link = self.machine.link_between(ranks)
        if ranks == 1 or link is None:
            return Seconds()
        sent = 2 * (ranks - 1) / ranks * tokens * self.shape.hidden * STORED_BYTES[self.precision.activations]
        collectives = 3 if ranks > self.machine.node else 1
        return Seconds(link=2 * (collectives * self.machine.seconds_per_collective + sent / link))

    @property
    def _streaming(self) -> float:
        """Bytes a second of the layers' stored weights."""
        return self.machine.bandwidth_bytes_per_s * UNPACKING.get(self.precision.weights, 1.0)

    def _dispatch(self) -> Seconds:
        machine = self.machine
        kernels = machine.kernels_a_layer * self.shape.layers + machine.kernels_a_pass
        return Seconds(overhead=kernels * machine.seconds_per_kernel)

    def _kernel(
        self, moved: ArrayLike, flops: ArrayLike, bandwidth: float | None = None, rate: float | None = None
    ) -> Seconds:
        """max(bytes ÷ bandwidth, FLOPs ÷ rate), under the name of the longer."""
        memory = np.asarray(moved, dtype=np.float64) / (bandwidth or self.machine.bandwidth_bytes_per_s)
        compute = np.asarray(flops, dtype=np.float64) / (rate or self.machine.flops_per_s)
        return Seconds(np.where(memory >= compute, memory, 0.0), np.where(compute > memory, compute, 0.0))


_FUSED = (8, 4, 4)
"""Elements that a serving engine's layer moves between its products, in units of the hidden size, of the width of the
heads, and of the MLP: norms fused with residuals, rotation in place, activation and product in one kernel."""

_EAGER = (30, 8, 5)
"""The same of an eager training step: norms widened to float32 in five kernels, residuals and rotations apart."""

_PERMUTED = 4
"""Hidden-sized elements moved for each active expert of a token: copied to its expert's rows, and back to be summed."""


def pairs(new: ArrayLike, past: ArrayLike, window: int | None = None) -> Array:
    """(query, key) pairs of `new` causal queries behind `past` keys: Σ min(past + i, window) over i = 1 … new."""
    new, past = np.asarray(new, dtype=np.float64), np.asarray(past, dtype=np.float64)
    if window is None:
        return np.asarray(new * past + new * (new + 1) / 2)
    growing = np.clip(window - past, 0, new)  # queries that see everything before them
    return np.asarray(growing * past + growing * (growing + 1) / 2 + (new - growing) * window)

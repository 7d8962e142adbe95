"""Seconds on paper: a machine's measured or published rates applied to what a shape computes and reads.

A kernel takes the longer of its bytes at the machine's bandwidth and its FLOPs at its rate; a pass adds the dispatch
of its kernels. What is left out everywhere: sampling and scheduling on the host, activations read and written between
kernels, and rows of unequal length. `dtype` is that of weights and KV alike, and the one the machine was probed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaling.predict.shape import DTYPE_BYTES, Shape
from scaling.thinking.base import Segment

Array = NDArray[np.float64]

KERNELS_A_LAYER = 50
"""Kernels that a decoder layer of our own engine dispatches in a decode step, counted, its views as a fifth each:
fused projections, norms, rotation, cache writes, paged attention and its merge, activation, residuals."""

KERNELS_A_PASS = 51
"""Those outside the layers: places in the cache, embedding, angles, last norm, LM head, sampling."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What one device sustains in one data type.

    `bandwidth_bytes_per_s`: of weights, read from memory by a product with a few rows. `kv_bandwidth_bytes_per_s`: of
    keys and values, read from memory by attention of one query a row. `flops_per_s`: of a large matrix product.
    `seconds_per_kernel`: to dispatch a small one. `spread`: (largest − smallest) ÷ median of each measured rate over
    its measurements; empty for a datasheet.
    """

    bandwidth_bytes_per_s: float
    kv_bandwidth_bytes_per_s: float
    flops_per_s: float
    seconds_per_kernel: float
    spread: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decode_seconds(shape: Shape, contexts: Sequence[int], dtype: str, machine: Machine) -> float:
    """Seconds of one decode step of `len(contexts)` rows, row i attending over `contexts[i]` tokens.

    dispatch + max(weight bytes ÷ bandwidth, 2·weights·rows ÷ rate) + max(KV bytes ÷ KV bandwidth, attention FLOPs ÷
    rate). Weights are read once for all rows. Left out: writing the new keys and values, and what a cache keeps from
    one step to the next, so one row at a short context is faster than this.
    """
    return float(_decode(shape, len(contexts), sum(contexts), dtype, machine))


def prefill_seconds(shape: Shape, tokens: int, rows: int, dtype: str, machine: Machine, reused: int = 0) -> float:
    """Seconds to encode prompts of `tokens` new tokens behind `reused` cached ones, for `rows` rows one after another.

    rows × (dispatch + max(weight bytes ÷ bandwidth, causal FLOPs ÷ rate)). Left out: that several prompts in one
    pass share the weights' bytes, and that attention kernels miss a matrix product's rate on short prompts.
    """
    weights = _weight_bytes(shape, dtype) / machine.bandwidth_bytes_per_s
    work = shape.forward_flops(tokens, reused, "causal", logits=1) / machine.flops_per_s
    return rows * (_dispatch(shape, machine) + max(weights, work))


def rollout_seconds(shape: Shape, segments: Iterable[Segment], rows: int, dtype: str, machine: Machine) -> float:
    """Seconds of `rows` traces that all follow `segments` in lockstep; device-seconds per trace are this ÷ `rows`.

    Each segment's prefill and its decode steps at the contexts that they have, summed exactly.
    """
    total = 0.0
    for s in segments:
        contexts = s.prompt + np.arange(1, s.steps + 1)
        total += prefill_seconds(shape, s.prefill, rows, dtype, machine, s.reused)
        total += float(_decode(shape, rows, rows * contexts, dtype, machine).sum())
    return total


def logprob_seconds(shape: Shape, segments: Iterable[Segment], dtype: str, machine: Machine) -> float:
    """Seconds of one trace's log-probabilities: one forward pass of each of its chunks.

    Σ over chunks of dispatch + max(weight bytes ÷ bandwidth, causal FLOPs ÷ rate). Left out: the logits' own bytes.
    """
    weights = _weight_bytes(shape, dtype) / machine.bandwidth_bytes_per_s
    return sum(
        _dispatch(shape, machine) + max(weights, shape.logprob_flops([s]) / machine.flops_per_s) for s in segments
    )


def update_seconds(
    shape: Shape, segments: Iterable[Segment], dtype: str, machine: Machine, recompute: bool = True
) -> float:
    """Seconds of one trace's forward and backward: 3× the log-probabilities, 4× with full activation recompute.

    Left out: the optimizer's step, which is paid once a batch, and the bytes of activations and gradients.
    """
    return (4 if recompute else 3) * logprob_seconds(shape, segments, dtype, machine)


def _decode(shape: Shape, rows: int, keys: ArrayLike, dtype: str, machine: Machine) -> Array:
    """Seconds of decode steps of `rows` rows whose contexts sum to `keys`, elementwise."""
    keys = np.asarray(keys, dtype=np.float64)
    weights = max(
        _weight_bytes(shape, dtype) / machine.bandwidth_bytes_per_s,
        2 * shape.matmul_parameters * rows / machine.flops_per_s,
    )
    attention = max(
        shape.kv_bytes_per_token(dtype) / machine.kv_bandwidth_bytes_per_s,
        4 * shape.layers * shape.query_width / machine.flops_per_s,
    )
    return np.asarray(_dispatch(shape, machine) + weights + attention * keys)


def _weight_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of weights that a pass reads; the embedding look-up reads a row a token, which is nothing beside them."""
    return shape.matmul_parameters * DTYPE_BYTES[dtype]


def _dispatch(shape: Shape, machine: Machine) -> float:
    return (KERNELS_A_LAYER * shape.layers + KERNELS_A_PASS) * machine.seconds_per_kernel

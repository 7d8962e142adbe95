"""What takes a GPU's memory: weights, keys and values, training states, activations."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.predict.roofline import Precision
from scaling.predict.setup import Setup
from scaling.predict.shape import DTYPE_BYTES, Shape

STATE_BYTES_A_PARAMETER = 16
"""float32 weights, gradients and Adam's two moments, sharded over all training GPUs (FSDP, ZeRO stage 3)."""

WORKSPACE_BYTES = 2 * 2**30
"""The runtime, its kernels and graphs, a slice of logits, and what attention and communication need for themselves."""

_HALF = DTYPE_BYTES["bfloat16"]


@dataclass(frozen=True, slots=True)
class ServingMemory:
    """Bytes on each GPU of a replica that generates; `kv`: what is left for keys and values, negative if less than
    nothing."""

    weights: float
    reserved: float
    kv: float


def serving(shape: Shape, setup: Setup, ranks: int) -> ServingMemory:
    """Where each GPU's memory goes while it generates.

    Reserved: the workspace and float32 logits of all rows. Where the same GPUs train, training states are in the
    host's memory meanwhile.
    """
    weights = shape.weight_bytes(setup.precision.weights) / ranks
    reserved = WORKSPACE_BYTES + 4 * setup.max_sequences * shape.vocabulary / ranks
    return ServingMemory(weights, reserved, setup.usable_bytes - weights - reserved)


def kv_bytes(shape: Shape, context: float, precision: Precision, ranks: int) -> float:
    """Bytes of one sequence's keys and values on each GPU of a replica."""
    return shape.kv_bytes(round(context), precision.kv) / min(ranks, shape.kv_shards)


def training_states(shape: Shape, gpus: int) -> float:
    """Bytes on each of `gpus` that train."""
    return STATE_BYTES_A_PARAMETER * shape.parameters / gpus


def training(shape: Shape, gpus: int, tokens: float, recompute: bool) -> float:
    """Peak bytes on each of `gpus` while a micro-batch of `tokens` goes backward on it; linear in `tokens`.

    States; two gathered layers in half precision, without routed experts, which stay where they are (one layer
    computes, the next arrives); activations: with `recompute` the input of every layer and all of one layer, else all
    of every layer.
    """
    gathered = max(layer.attention_parameters + layer.mlp_parameters for layer in shape.kinds)
    layer = max(12 * shape.hidden + 4 * kind.heads_width + 4 * kind.mlp_width for kind in shape.kinds)
    kept = shape.layers * shape.hidden + layer if recompute else shape.layers * layer
    weights = 2 * _HALF * max(gathered, shape.hidden * shape.vocabulary)
    return training_states(shape, gpus) + weights + _HALF * kept * tokens + WORKSPACE_BYTES

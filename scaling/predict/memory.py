"""What has to fit in a GPU's memory, weights, keys and values, training states, activations; and what would."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scaling.errors import UsageError
from scaling.predict.roofline import Precision, kv_ranks
from scaling.predict.setup import Setup
from scaling.predict.shape import DTYPE_BYTES, Shape

STATE_BYTES_A_PARAMETER = 16
"""float32 weights, gradients and Adam's two moments, sharded over all training GPUs (FSDP, ZeRO stage 3)."""

WORKSPACE_BYTES = 2 * 2**30
"""The runtime, its kernels and graphs, and what attention and communication need beside their tensors."""

_KEPT_A_LAYER = 2
"""Hidden-sized tensors a token and layer that recompute keeps, beside the one layer that is being recomputed."""


@dataclass(frozen=True, slots=True)
class ServingMemory:
    """Bytes on each GPU of a replica that generates, and the KV of one trace."""

    weights: float
    reserved: float
    kv: float


def serving(shape: Shape, setup: Setup, tensor_parallel: int, resident: int | None) -> ServingMemory:
    """What each GPU of a replica has left for keys and values; negative where the weights alone do not fit.

    Reserved: the workspace, float32 logits of all rows and, where training states stay on the same GPUs, a share of
    them: of `resident` GPUs.
    """
    weights = shape.weight_bytes(setup.precision.weights) / tensor_parallel
    logits = 4 * setup.max_sequences * shape.vocabulary / tensor_parallel
    reserved = WORKSPACE_BYTES + logits + (training_states(shape, resident) if resident else 0.0)
    return ServingMemory(weights, reserved, setup.usable_bytes - weights - reserved)


def kv_bytes(shape: Shape, context: float, precision: Precision, tensor_parallel: int) -> float:
    """Bytes of one sequence's keys and values on each GPU of a replica; ranks share KV heads, never one head."""
    return shape.kv_bytes(round(context), precision.kv) / kv_ranks(shape, tensor_parallel)


def training_states(shape: Shape, gpus: int) -> float:
    """Bytes on each of `gpus` that train: all states, sharded."""
    return STATE_BYTES_A_PARAMETER * shape.parameters / gpus


def training(shape: Shape, gpus: int, longest: int, recompute: bool) -> float:
    """Peak bytes on each of `gpus` while a micro-batch that holds one sequence of `longest` tokens goes backward.

    States; the two largest gathered layers in half precision (one computes, the next arrives); activations: with
    `recompute` a layer's input for every layer and all of one layer, else all of every layer; the logits are
    sliced, so that a slice is part of the workspace.
    """
    half = DTYPE_BYTES["bfloat16"]
    biggest = max(
        layer.attention_parameters + layer.mlp_parameters + layer.experts * layer.expert_parameters
        for layer in shape.kinds
    )
    gathered = 2 * half * max(biggest, shape.hidden * shape.vocabulary)
    layer = max(12 * shape.hidden + 4 * kind.heads_width + 4 * kind.mlp_width for kind in shape.kinds)
    kept = shape.layers * _KEPT_A_LAYER * shape.hidden + layer if recompute else shape.layers * layer
    return training_states(shape, gpus) + gathered + half * kept * longest + WORKSPACE_BYTES


def ranks(shape: Shape, setup: Setup, context: int) -> int:
    """The GPUs of a replica: as asked for, else the fewest whose memory holds the weights and one trace."""
    asked = setup.tensor_parallel
    sizes = [n for n in range(1, setup.gpus + 1) if setup.gpus % n == 0 and n & (n - 1) == 0]
    if setup.placement != "colocated":
        sizes = [n for n in sizes if n < setup.gpus]
    rooms = {n: _room(shape, setup, n, context) for n in ([asked] if asked else sizes)}
    for size, room in rooms.items():
        if room >= 0:
            return size
    most = max(rooms, key=lambda size: rooms[size])
    free = serving(shape, setup, most, _resident(setup))
    where = f"{most} × {setup.device.name} ({setup.usable_bytes / 1e9:.0f} GB used of each)"
    dtype = setup.precision.weights
    if free.kv <= 0:
        what = f"{shape.weight_bytes(dtype) / 1e9:.0f} GB of {dtype} weights do not fit on {where}"
    else:
        what = (
            f"the keys and values of one trace of {context} tokens take "
            f"{kv_bytes(shape, context, setup.precision, most) / 1e9:.0f} GB a GPU, and {where} leave "
            f"{free.kv / 1e9:.0f} GB beside the weights"
        )
    raise UsageError(f"{what}; {_what_would_fit(shape, setup, most, context)}")


def _resident(setup: Setup) -> int | None:
    """GPUs that keep training states beside the engine, if any."""
    return setup.gpus if setup.placement == "colocated" else None


def _room(shape: Shape, setup: Setup, ranks: int, context: int) -> float:
    """Bytes a GPU that are left beside the weights and one trace of the longest context."""
    return serving(shape, setup, ranks, _resident(setup)).kv - kv_bytes(shape, context, setup.precision, ranks)


def _what_would_fit(shape: Shape, setup: Setup, ranks: int, context: int) -> str:
    """Every single change that makes room, in the words of the options; what is smallest first."""
    fixes: list[str] = []
    for more in (2**i for i in range(1, 11)):
        if more > ranks and _room(shape, replace(setup, gpus=max(setup.gpus, more)), more, context) >= 0:
            gpus = "" if more <= setup.gpus and setup.gpus % more == 0 else f" --gpus {more}"
            fixes.append(f"--tensor-parallel {more}{gpus}")
            break
    for dtype in ("float8", "int4"):
        smaller = replace(setup, precision=replace(setup.precision, weights=dtype))
        if setup.precision.weights not in ("float8", "int4", "mxfp4") and _room(shape, smaller, ranks, context) >= 0:
            fixes.append(f"--weight-dtype {dtype}")
            break
    if serving(shape, setup, ranks, _resident(setup)).kv > 0:
        if _room(shape, replace(setup, precision=replace(setup.precision, kv="float8")), ranks, context) >= 0:
            fixes.append("--kv-dtype float8")
        shorter = context
        while shorter > 1 and _room(shape, setup, ranks, shorter) < 0:
            shorter = shorter * 3 // 4
        fixes.append(
            f"contexts of at most about {shorter} tokens (--budget, or --mode delethink with that --context-size)"
        )
    return "what would fit: " + ("; or ".join(fixes) or "a GPU with more memory")


def check_training(shape: Shape, setup: Setup, context: int) -> None:
    """Raises `UsageError` where the update's peak does not fit; it may use all of a GPU's"""
    gpus = setup.gpus - (0 if setup.placement == "colocated" else setup.tensor_parallel or 1)
    need, have = training(shape, gpus, context, setup.recompute), setup.device.memory_bytes
    if need <= have:
        return
    fixes: list[str] = []
    more = next(
        (n for n in (gpus * 2**i for i in range(1, 11)) if training(shape, n, context, setup.recompute) <= have),
        None,
    )
    if more is not None:
        fixes.append(f"--gpus {more + setup.gpus - gpus}")
    if not setup.recompute and training(shape, gpus, context, True) <= have:
        fixes.append("--recompute")
    shorter = context
    while shorter > 256 and training(shape, gpus, shorter, setup.recompute) > have:
        shorter = shorter * 3 // 4
    if shorter > 256:
        fixes.append(f"sequences of at most about {shorter} tokens (--budget, or --mode delethink)")
    raise UsageError(
        f"training on sequences of {context} tokens takes {need / 1e9:.0f} GB a GPU, and {setup.device.name} has "
        f"{have / 1e9:.0f} GB; what would fit: {'; or '.join(fixes) or 'a GPU with more memory'}"
    )

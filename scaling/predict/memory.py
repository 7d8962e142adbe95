"""What has to fit in a GPU's memory: weights, keys and values, training states, activations; and what would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from scaling.errors import UsageError
from scaling.predict.roofline import Precision, kv_ranks
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
    return shape.kv_bytes(round(context), precision.kv) / kv_ranks(shape, ranks)


def training_states(shape: Shape, gpus: int) -> float:
    """Bytes on each of `gpus` that train."""
    return STATE_BYTES_A_PARAMETER * shape.parameters / gpus


def training(shape: Shape, gpus: int, longest: int, recompute: bool) -> float:
    """Peak bytes on each of `gpus` while `longest` tokens of one sequence go backward on it.

    States; two gathered layers in half precision, without routed experts, which stay where they are (one layer
    computes, the next arrives); activations: with `recompute` the input of every layer and all of one layer, else all
    of every layer.
    """
    gathered = max(layer.attention_parameters + layer.mlp_parameters for layer in shape.kinds)
    layer = max(12 * shape.hidden + 4 * kind.heads_width + 4 * kind.mlp_width for kind in shape.kinds)
    kept = shape.layers * shape.hidden + layer if recompute else shape.layers * layer
    weights = 2 * _HALF * max(gathered, shape.hidden * shape.vocabulary)
    return training_states(shape, gpus) + weights + _HALF * kept * longest + WORKSPACE_BYTES


def replica_sizes(shape: Shape, setup: Setup, context: int) -> list[int]:
    """The tensor parallel sizes whose memory holds the weights and one trace, or the one asked for if it does.

    `context`: most tokens that a trace comes to. Raises `UsageError` where none does, and says what would fit.
    """
    asked = setup.tensor_parallel
    sizes = [asked] if asked else list(_sizes(setup))
    if fitting := [size for size in sizes if _room(shape, setup, size, context) >= 0]:
        return fitting
    most = sizes[-1]
    free = serving(shape, setup, most).kv
    where = f"{most} × {setup.device.name} with {setup.usable_bytes / 1e9:.0f} GB used of each"
    if free <= 0:
        dtype = setup.precision.weights
        what = f"{shape.weight_bytes(dtype) / 1e9:.0f} GB of {dtype} weights do not fit on {where}"
    else:
        need = kv_bytes(shape, context, setup.precision, most) / 1e9
        what = (
            f"the keys and values of one trace of {context:,} tokens take {need:.0f} GB a GPU, and {where} have "
            f"{free / 1e9:.0f} GB left beside the weights"
        )
    raise UsageError(f"{what}; what would fit: {'; or '.join(_fixes(shape, setup, most, context))}")


def sequence_gpus(shape: Shape, setup: Setup, gpus: int, context: int) -> int:
    """GPUs that one training sequence is split over: the fewest of the `gpus` whose memory holds their part.

    Raises `UsageError` where all of them together do not, and says what would fit.
    """
    have = setup.device.memory_bytes

    def fits(gpus: int, split: int, longest: int = context) -> bool:
        return training(shape, gpus, -(-longest // split), setup.recompute) <= have

    for split in (1 << i for i in range(gpus.bit_length())):
        if fits(gpus, split):
            return split
    more = next((n for n in (gpus * 2**i for i in range(1, 13)) if fits(n, n)), None)
    fixes = [] if more is None else [f"--gpus {more + setup.gpus - gpus}"]
    if not setup.recompute and training(shape, gpus, context // gpus, True) <= have:
        fixes.append("--recompute")
    shorter = _shorter(context, lambda longest: fits(gpus, gpus, longest))
    if shorter is not None:
        fixes.append(f"sequences of at most about {shorter:,} tokens (--budget, or --mode delethink)")
    need = training(shape, gpus, -(-context // gpus), setup.recompute)
    raise UsageError(
        f"training {shape.parameters / 1e9:.3g} G parameters on sequences of {context:,} tokens takes "
        f"{need / 1e9:.0f} GB a GPU on {gpus}, and {setup.device.name} has {have / 1e9:.0f} GB; what would fit: "
        f"{'; or '.join(fixes) or 'GPUs with more memory'}"
    )


def _sizes(setup: Setup) -> Iterable[int]:
    """Powers of two that divide the GPUs, and leave some to train where those are others."""
    most = setup.gpus if setup.placement == "colocated" else setup.gpus - 1
    return (n for n in (2**i for i in range(most.bit_length())) if setup.gpus % n == 0)


def _room(shape: Shape, setup: Setup, ranks: int, context: int) -> float:
    """Bytes a GPU that are left beside the weights and one trace of the longest context."""
    return serving(shape, setup, ranks).kv - kv_bytes(shape, context, setup.precision, ranks)


def _fixes(shape: Shape, setup: Setup, ranks: int, context: int) -> list[str]:
    """Every single change that makes room to generate, in the words of the options."""
    fixes: list[str] = []
    larger = next((n for n in (2**i for i in range(1, 13)) if n > ranks and _room(shape, setup, n, context) >= 0), None)
    if larger is not None:
        enough = setup.gpus >= larger and setup.gpus % larger == 0
        fixes.append(f"--tensor-parallel {larger}" + ("" if enough else f" --gpus {larger}"))
    smaller = replace(setup, precision=replace(setup.precision, weights="float8"))
    if shape.weight_bytes("float8") < shape.weight_bytes(setup.precision.weights):
        fixes += ["--weight-dtype float8"] if _room(shape, smaller, ranks, context) >= 0 else []
    if serving(shape, setup, ranks).kv > 0:
        halved = replace(setup, precision=replace(setup.precision, kv="float8"))
        if setup.precision.kv != "float8" and _room(shape, halved, ranks, context) >= 0:
            fixes.append("--kv-dtype float8")
        shorter = _shorter(context, lambda longest: _room(shape, setup, ranks, longest) >= 0)
        if shorter is not None:
            fixes.append(f"contexts of at most about {shorter:,} tokens (--budget, or --mode delethink)")
    return fixes or ["GPUs with more memory"]


def _shorter(tokens: int, fits: Callable[[int], bool]) -> int | None:
    """The first of 3/4, 9/16 … of `tokens` that fits, down to 256."""
    while tokens > 256:
        tokens = tokens * 3 // 4
        if fits(tokens):
            return tokens
    return None

"""What fits on the GPUs that were asked for, and what would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from scaling.errors import UsageError
from scaling.predict.memory import kv_bytes, serving, training
from scaling.predict.setup import Setup
from scaling.predict.shape import Shape

MICRO_BATCH_TOKENS = 32768
"""Packed tokens that a GPU trains on at once where its memory holds them."""

_MOST_GPUS = 1 << 13  # suggestions go no further


def replica_sizes(shape: Shape, setup: Setup, context: int) -> list[int]:
    """The tensor parallel sizes whose memory holds the weights and one trace, or the one asked for if it does.

    Powers of two that divide the attention heads, as engines want them. `context`: most tokens that a trace comes to.
    Raises `UsageError` where none does, and says what would fit.
    """
    asked = setup.tensor_parallel
    if asked and shape.heads % asked:
        divisors = ", ".join(str(n) for n in range(1, setup.gpus + 1) if shape.heads % n == 0 and setup.gpus % n == 0)
        raise UsageError(f"tensor parallel {asked} does not divide {shape.heads} attention heads; possible: {divisors}")
    most = setup.gpus if setup.placement == "colocated" else setup.gpus - 1
    sizes = [asked] if asked else [n for n in (1 << i for i in range(most.bit_length())) if shape.heads % n == 0]
    if fitting := [size for size in sizes if _room(shape, setup, size, context) >= 0]:
        return fitting
    most = sizes[-1]
    missing, fixes = _what_is_missing(shape, setup, most, context), _fixes(shape, setup, most, context)
    raise UsageError(f"{missing}; what would fit: {fixes}")


def training_layout(shape: Shape, setup: Setup, gpus: int, context: int) -> tuple[int, int]:
    """(GPUs that a sequence of `context` tokens is split over, tokens of a micro-batch on each of them).

    The fewest of the `gpus` whose memory holds their part; and as many tokens as memory holds, up to
    `MICRO_BATCH_TOKENS` or the part if that is longer. Raises `UsageError` where all of them together do not hold the
    sequence, and says what would fit.
    """
    have, recompute = setup.device.memory_bytes, setup.recompute
    fixed = training(shape, gpus, 0, recompute)
    room = int((have - fixed) / (training(shape, gpus, 1, recompute) - fixed))
    for split in (1 << i for i in range(gpus.bit_length())):
        if (part := -(-context // split)) <= room:
            return split, max(part, min(room, MICRO_BATCH_TOKENS))
    fixes: list[str] = []
    if (more := _trainable(shape, setup, gpus, context)) is not None:
        fixes.append(f"--gpus {more + setup.gpus - gpus}")
    if not recompute and training(shape, gpus, -(-context // gpus), True) <= have:
        fixes.append("--recompute")
    if (shorter := _shorter(context, lambda tokens: -(-tokens // gpus) <= room)) is not None:
        fixes.append(f"sequences of at most about {shorter:,} tokens (--budget, or --mode delethink)")
    need = training(shape, gpus, -(-context // gpus), recompute)
    raise UsageError(
        f"training {shape.parameters / 1e9:.3g} G parameters on sequences of {context:,} tokens takes "
        f"{need / 1e9:.1f} GB a GPU on {gpus}, and {setup.device.name} has {have / 1e9:.1f} GB; what would fit: "
        f"{'; or '.join(fixes) or 'GPUs with more memory'}"
    )


def _trainable(shape: Shape, setup: Setup, gpus: int, context: int) -> int | None:
    """The first of `gpus`, twice as many, … that hold the training states and a sequence split over all of them."""
    while gpus <= _MOST_GPUS:
        if training(shape, gpus, -(-context // gpus), setup.recompute) <= setup.device.memory_bytes:
            return gpus
        gpus *= 2
    return None


def _room(shape: Shape, setup: Setup, ranks: int, context: int) -> float:
    """Bytes a GPU that are left beside the weights and one trace of the longest context."""
    return serving(shape, setup, ranks).kv - kv_bytes(shape, context, setup.precision, ranks)


def _what_is_missing(shape: Shape, setup: Setup, ranks: int, context: int) -> str:
    found = serving(shape, setup, ranks)
    where = f"{ranks} × {setup.device.name} with {setup.usable_bytes / 1e9:.1f} GB used of each"
    dtype = setup.precision.weights
    if found.weights >= setup.usable_bytes:
        return f"{shape.weight_bytes(dtype) / 1e9:.1f} GB of {dtype} weights do not fit on {where}"
    if found.kv <= 0:
        return (
            f"{found.weights / 1e9:.1f} GB of weights and {found.reserved / 1e9:.1f} GB of workspace and logits of "
            f"{setup.max_sequences:,} sequences leave nothing for keys and values on {where}"
        )
    need = kv_bytes(shape, context, setup.precision, ranks) / 1e9
    return (
        f"the keys and values of one trace of {context:,} tokens take {need:.1f} GB a GPU, and {where} have "
        f"{found.kv / 1e9:.1f} GB left beside the weights"
    )


def _fixes(shape: Shape, setup: Setup, ranks: int, context: int) -> str:
    """Every single change that makes room, in the words of the options."""
    fixes: list[str] = []
    wider = (n for n in (ranks << i for i in range(1, 13)) if shape.heads % n == 0)
    larger = next((n for n in wider if _room(shape, setup, n, context) >= 0), None)
    if larger is not None:
        trained_on = setup.gpus if setup.placement == "colocated" else setup.gpus - larger
        gpus = _trainable(shape, setup, max(trained_on, larger), context)
        if gpus is not None:
            gpus += 0 if setup.placement == "colocated" else larger
            size = f"--tensor-parallel {larger}" if setup.tensor_parallel else ""
            fixes.append(f"{size} --gpus {gpus}".strip() if gpus != setup.gpus else size)
    if setup.max_sequences > 1 and _room(shape, replace(setup, max_sequences=1), ranks, context) >= 0:
        fixes.append("fewer --max-sequences")
    smaller = replace(setup, precision=replace(setup.precision, weights="float8"))
    if shape.weight_bytes("float8") < shape.weight_bytes(setup.precision.weights):
        fixes += ["--weight-dtype float8"] if _room(shape, smaller, ranks, context) >= 0 else []
    if serving(shape, setup, ranks).kv > 0:
        halved = replace(setup, precision=replace(setup.precision, kv="float8"))
        if setup.precision.kv != "float8" and _room(shape, halved, ranks, context) >= 0:
            fixes.append("--kv-dtype float8")
        if (shorter := _shorter(context, lambda tokens: _room(shape, setup, ranks, tokens) >= 0)) is not None:
            fixes.append(f"contexts of at most about {shorter:,} tokens (--budget, or --mode delethink)")
    return "; or ".join(fixes) or "GPUs with more memory"


def _shorter(tokens: int, fits: Callable[[int], bool]) -> int | None:
    """The first of 3/4, 9/16 … of `tokens` that fits, down to 256."""
    while tokens > 256:
        tokens = tokens * 3 // 4
        if fits(tokens):
            return tokens
    return None

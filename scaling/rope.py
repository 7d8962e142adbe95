"""Rotary position embedding (arXiv 2104.09864) and the scalings that dense checkpoints use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scaling.errors import CheckpointError
from scaling.predict.shape import Shape

_SCALINGS = ("default", "linear", "llama3", "yarn")


class Rope:
    """Angles of every position: `table(positions)` gives cosines and signed sines.

    A pair is dimension i and i + head_dim/2, as in Hugging Face checkpoints; `rotate` turns it.
    """

    def __init__(self, config: Mapping[str, Any], shape: Shape) -> None:
        self.frequencies, self.scale = _frequencies(config, shape)

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 cosines and sines of shape [positions, head_dim] on the positions' device.

        The sines of the first half are negated, so that `rotate` needs no negation of its own.
        """
        angles = positions.float()[:, None] * self.frequencies.to(positions.device)
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates heads `x` [tokens, heads, head_dim] by the `table` [tokens, head_dim] of their positions.

    Computed in the table's float32, returned in the dtype of `x`.
    """
    swapped = torch.roll(x, x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos[:, None], swapped, sin[:, None]).to(x.dtype)


def _frequencies(config: Mapping[str, Any], shape: Shape) -> tuple[Tensor, float]:
    """Radians a position for each dimension pair, and the factor on cosines and sines."""
    # Configs before transformers 5 hold the base at top level and the scaling apart; later ones hold both together.
    parameters: dict[str, Any] = {"rope_theta": config.get("rope_theta", 10_000.0)}
    parameters.update(config.get("rope_scaling") or {})
    parameters.update(config.get("rope_parameters") or {})
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if kind not in _SCALINGS:
        raise CheckpointError(f"unsupported RoPE scaling {kind!r}; {', '.join(_SCALINGS)} are supported")
    if float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise CheckpointError("partial rotary embedding is not supported")
    base, dim = float(parameters["rope_theta"]), shape.head_dim
    plain = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    try:
        if kind == "linear":
            return plain / float(parameters["factor"]), 1.0
        if kind == "llama3":
            return _llama3(plain, parameters), 1.0
        if kind == "yarn":
            return _yarn(plain, base, shape, parameters)
    except KeyError as missing:
        raise CheckpointError(f"RoPE scaling {kind!r} lacks {missing} in config.json") from None
    return plain, 1.0


def _llama3(plain: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's rule: long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    turns = int(parameters["original_max_position_embeddings"]) * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / float(parameters["factor"]))


def _yarn(plain: Tensor, base: float, shape: Shape, parameters: Mapping[str, Any]) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071 §3.2–3.4): dimensions that turn often are kept, the others stretched by `factor`."""
    dim, factor = shape.head_dim, float(parameters["factor"])
    original = int(parameters.get("original_max_position_embeddings") or shape.max_positions)

    def dimension(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = dimension(float(parameters.get("beta_fast") or 32))
    last = dimension(float(parameters.get("beta_slow") or 1))
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = ((torch.arange(dim // 2) - first) / max(last - first, 1e-3)).clamp(0, 1)
    scale = parameters.get("attention_factor")
    if scale is None:
        mscale, all_dims = parameters.get("mscale"), parameters.get("mscale_all_dim")
        scale = _yarn_scale(factor, mscale) / _yarn_scale(factor, all_dims) if mscale and all_dims else None
    return plain * (1 - ramp + ramp / factor), float(_yarn_scale(factor) if scale is None else scale)


def _yarn_scale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

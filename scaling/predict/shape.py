"""A model's shape, read from a Hugging Face config: parameters, FLOPs, and bytes of weights and KV of its decoder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from scaling.errors import unknown
from scaling.predict.families import (
    Fields,
    Layer,
    attention_biases,
    head_sizes,
    mlp_bias,
    qk_norm,
    read_layers,
)
from scaling.thinking.base import Segment

__all__ = [
    "DTYPE_BYTES",
    "STORED_BYTES",
    "FlopsConvention",
    "Layer",
    "Shape",
    "WeightClass",
    "architecture",
    "catalogue",
    "visible_pairs",
]

FlopsConvention = Literal["causal", "full", "verl"]
"""`causal`: a token attends to itself and what is before it, inside its layer's window. `full`: every token of a
forward pass attends to the whole pass and all that is cached, windows or not, as kernels that mask instead of skip do
and as many papers count. `verl`: `full`, and the embedding counted as a matrix product of every token, as the FLOPs
counter of the training library verl does."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number in what the embedded engine computes in."""

STORED_BYTES: dict[str, float] = {
    **DTYPE_BYTES,
    "float8": 1,
    "int8": 1,
    "mxfp4": 4.25 / 8,
    "int4": 4 / 8 + 2 / 128,
}
"""Bytes of a number in what weights, or keys and values, may be stored in, scales included. mxfp4: an 8-bit scale for
32 numbers (OCP Microscaling specification 1.0). int4: assumed a bfloat16 scale for 128 numbers and no zero points.
float8, int8: a scale for a channel or a block of 128 × 128, left out."""

WeightClass = Literal["layer", "expert", "head"]
"""Where a weight is: a `layer`'s matrices that every token meets, its routed `expert`s', or elsewhere: `head`, the
embedding, norms, biases, routers."""

_UNQUANTISED = 2  # bytes of what a quantised checkpoint leaves in bfloat16


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder-only transformer: those of its config, and `kinds` of layers. Multiply-adds count as 2 FLOPs.

    Of a multimodal config this is the text decoder alone; the multi-token prediction layer that DeepSeek-V3
    checkpoints carry is no part of it. `intermediate` is a dense MLP's (of gpt-oss and Mixtral, one expert's).
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    norm_eps: float
    max_positions: int
    kinds: tuple[Layer, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Shape:
        """Reads a `config.json`; raises `CheckpointError` for an architecture that is not supported, and for a field
        that is missing or makes no sense."""
        fields = Fields(config)
        heads, kv_heads, head_dim = head_sizes(fields)
        qkv_bias, output_bias = attention_biases(fields)
        return cls(
            family=fields.family,
            layers=fields.size("num_hidden_layers"),
            hidden=fields.size("hidden_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=fields.size("intermediate_size"),
            vocabulary=fields.size("vocab_size"),
            tied=fields.flag("tie_word_embeddings"),
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            mlp_bias=mlp_bias(fields),
            qk_norm=qk_norm(fields),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            max_positions=fields.size("max_position_embeddings", 2048),
            kinds=read_layers(fields),
        )

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def kv_shards(self) -> int:
        """Most parts that tensor parallelism splits the cache in: KV heads; a latent is whole on every rank."""
        return 1 if self.kinds[0].expansion_parameters else self.kv_heads

    @property
    def head_parameters(self) -> int:
        """Weights of the LM head, and of the embedding."""
        return self.hidden * self.vocabulary

    @property
    def matmul_parameters(self) -> int:
        """Weights that multiply a token's activations: routers and active experts alone of a mixture, the LM head
        included, the embedding look-up not."""
        return self._body_parameters + self.head_parameters

    @property
    def router_parameters(self) -> int:
        """Weights that choose experts; part of `matmul_parameters`, and left out of it by some counts."""
        return sum(kind.count * kind.router_parameters for kind in self.kinds)

    @property
    def active_parameters(self) -> int:
        """Parameters that a token meets, the embedding counted in full: "active" as most publishers count."""
        idle = sum(k.count * (k.experts - k.active_experts) * k.expert_parameters for k in self.kinds)
        return self.parameters - idle

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return sum(kind.count * kind.parameters for kind in self.kinds) + self.hidden + embeddings

    @property
    def _body_parameters(self) -> int:
        return sum(kind.count * kind.active_parameters for kind in self.kinds)

    def bytes_of(self, dtype: str, kind: WeightClass) -> float:
        """Bytes of one stored weight of that class in a checkpoint of that dtype, a key of `STORED_BYTES`.

        A quantised dtype (below 2 bytes) covers the layers' matrices, experts included; in a mixture of experts
        mxfp4 covers the routed experts alone, as gpt-oss is published. All else stays in bfloat16.
        """
        size: float = STORED_BYTES[dtype]
        if size >= _UNQUANTISED:
            return size
        routed = any(k.experts for k in self.kinds)
        quantised = kind == "expert" or (kind == "layer" and not (dtype == "mxfp4" and routed))
        return size if quantised else _UNQUANTISED

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all stored weights, each at `bytes_of` its class; a tied head once."""
        experts = sum(k.count * k.experts * k.expert_parameters for k in self.kinds)
        layers = sum(k.count * (k.attention_parameters + k.mlp_parameters - k.router_parameters) for k in self.kinds)
        sizes: dict[WeightClass, int] = {"expert": experts, "layer": layers, "head": self.parameters - experts - layers}
        return math.ceil(sum(n * self.bytes_of(dtype, kind) for kind, n in sizes.items()))

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes that every token adds to the cache for good: keys and values at KV heads, or latents, over the layers
        without a window. What a windowed layer holds stops growing: `kv_bytes`."""
        elements = sum(k.count * k.kv_elements for k in self.kinds if k.window is None)
        return math.ceil(elements * STORED_BYTES[dtype])

    def kv_bytes(self, tokens: int, dtype: str) -> int:
        """Bytes of the whole cache of one sequence of `tokens`, a windowed layer holding its window at most."""
        held = sum(
            k.count * k.kv_elements * (tokens if k.window is None else min(tokens, k.window)) for k in self.kinds
        )
        return math.ceil(held * STORED_BYTES[dtype])

    def forward_flops(
        self, new: int, past: int = 0, convention: FlopsConvention = "causal", logits: int | None = None
    ) -> float:
        """FLOPs of one forward pass of `new` tokens behind `past` cached ones, for one sequence.

        2 FLOPs a matmul weight and token, routers and active experts included; `Layer.pair_flops` a (query, key) pair
        and layer. `logits`: how many positions go through the LM head (all, unless given).

        `full` equals exactly what torch's FLOP counter sees of a `transformers` model with eager attention, eager
        experts and a cache that keeps every token; it sees nothing of fused attention on a CPU, nor of grouped expert
        kernels. One thing differs: behind a cache of latents, `transformers` makes keys and values of all of them
        again, where this counts the cheaper of doing so and of attending over the latents themselves (decode steps,
        short prefills), as inference engines do.
        """
        head = self.head_parameters * (new if logits is None else logits)
        if convention == "verl":
            head += self.head_parameters * new
        attention = sum(k.count * _attention_flops(k, new, past, convention) for k in self.kinds)
        return float(2 * (self._body_parameters * new + head) + attention)

    def rollout_flops(self, segments: Iterable[Segment], convention: FlopsConvention = "causal") -> float:
        """FLOPs of sampling a trace: each segment's prefill (logits of its last token only) and its decode steps.

        Equal to the sum of `forward_flops` over those passes. A decode step has one query over all keys, so the
        conventions differ there by windows and the embedding alone.
        """
        total = 0.0
        for s in segments:
            total += self.forward_flops(s.prefill, s.reused, convention, logits=1)
            heads = 2 if convention == "verl" else 1
            total += 2 * (self._body_parameters + heads * self.head_parameters) * s.steps
            for kind in self.kinds:
                keys = visible_pairs(s.steps, s.prompt, kind.window if convention == "causal" else None)
                total += kind.count * kind.cached_pair_flops * keys
        return total

    def update_flops(
        self, segments: Iterable[Segment], convention: FlopsConvention = "causal", recompute: bool = True
    ) -> float:
        """FLOPs of training on a trace's chunks: 3× the forward, 4× with full activation recompute.

        Each chunk is one sequence of its prompt and response; logits are needed where a response token is predicted.
        Without recompute, `full` equals torch's FLOP counter over forward and backward, as in `forward_flops`.
        """
        times = 4 if recompute else 3
        return times * self.logprob_flops(segments, convention)

    def logprob_flops(self, segments: Iterable[Segment], convention: FlopsConvention = "causal") -> float:
        """FLOPs of the log-probabilities of a trace's response tokens: one forward of each chunk."""
        return sum(self.forward_flops(s.prompt + s.steps, 0, convention, logits=s.decode) for s in segments if s.decode)


def visible_pairs(new: int, past: int = 0, window: int | None = None) -> int:
    """(query, key) pairs of `new` causal tokens behind `past` ones, each seeing the last `window` keys at most."""

    def first(tokens: int) -> int:
        ramp = tokens if window is None else min(tokens, window)
        return ramp * (ramp + 1) // 2 + (tokens - ramp) * ramp

    return first(past + new) - first(past)


def _attention_flops(kind: Layer, new: int, past: int, convention: FlopsConvention) -> int:
    """FLOPs of one layer's attention, its projections of the new tokens apart."""
    pairs = visible_pairs(new, past, kind.window) if convention == "causal" else new * (past + new)
    expanded = pairs * kind.pair_flops + 2 * kind.expansion_parameters * past
    return min(expanded, pairs * kind.cached_pair_flops) if past else expanded


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Built-in architectures by name: `config` (the publisher's, without weights), its `source`, and the type that
    `weights` are published in where that is not the config's own."""
    loaded: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("catalogue.json").read_text())
    return loaded


def architecture(name: str) -> dict[str, Any]:
    """The Hugging Face config of a built-in architecture; raises `UsageError` with near names if unknown."""
    if name not in catalogue():
        raise unknown("model", name, catalogue())
    config: dict[str, Any] = catalogue()[name]["config"]
    return config

"""A model's shape, read from a Hugging Face config: parameters, FLOPs and KV bytes of dense decoders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from scaling.errors import CheckpointError, unknown
from scaling.thinking.base import Segment

FlopsConvention = Literal["causal", "full"]
"""`causal`: a token attends to itself and what is before it. `full`: every token of a forward pass attends to the
whole pass, as kernels without causal skipping do and as many papers count."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_FAMILIES = {"llama": False, "qwen2": True, "qwen3": False}  # model type: biases on q, k and v unless the config says


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a dense Llama, Qwen2 or Qwen3 decoder. Multiply-adds count as 2 FLOPs."""

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

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Shape:
        """Reads a `config.json`; raises `CheckpointError` for an architecture that is not supported."""
        family = str(config.get("model_type"))
        if family not in _FAMILIES:
            raise CheckpointError(
                f"unsupported architecture {family!r}; dense {', '.join(_FAMILIES)} checkpoints are supported"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"unsupported activation {config['hidden_act']!r}; silu is supported")
        if config.get("use_sliding_window"):
            raise CheckpointError("sliding-window attention is not supported")
        try:
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            bias = bool(config.get("attention_bias", _FAMILIES[family]))
            return cls(
                family=family,
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                intermediate=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
                qkv_bias=bias,
                output_bias=bias and family != "qwen2",
                mlp_bias=bool(config.get("mlp_bias", False)),
                qk_norm=family == "qwen3",
                norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                max_positions=int(config.get("max_position_embeddings", 2048)),
            )
        except KeyError as missing:
            raise CheckpointError(f"config.json lacks {missing}") from None

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def layer_matmul_parameters(self) -> int:
        """Weights that multiply a token's activations in one layer."""
        attention = self.hidden * (2 * self.query_width + 2 * self.kv_width)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def matmul_parameters(self) -> int:
        """Weights that multiply a token's activations, the LM head included, the embedding look-up not."""
        return self.layers * self.layer_matmul_parameters + self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        vectors = 2 * self.hidden
        vectors += self.qkv_bias * (self.query_width + 2 * self.kv_width) + self.output_bias * self.hidden
        vectors += self.mlp_bias * (2 * self.intermediate + self.hidden) + self.qk_norm * 2 * self.head_dim
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (self.layer_matmul_parameters + vectors) + self.hidden + embeddings

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of keys and values that one token leaves, at KV heads (GQA), over all layers."""
        return self.layers * 2 * self.kv_width * DTYPE_BYTES[dtype]

    def forward_flops(
        self, new: int, past: int = 0, convention: FlopsConvention = "causal", logits: int | None = None
    ) -> float:
        """FLOPs of one forward pass of `new` tokens behind `past` cached ones, for one sequence.

        2 FLOPs a matmul weight and token; 4·heads·head_dim a (query, key) pair and layer: QKᵀ and its product with
        V. `logits`: how many positions go through the LM head (all, unless given).
        """
        pairs = new * past + (new * (new + 1) // 2 if convention == "causal" else new * new)
        head = 2 * self.hidden * self.vocabulary * (new if logits is None else logits)
        body = 2 * self.layers * self.layer_matmul_parameters * new
        return float(body + head + 4 * self.layers * self.query_width * pairs)

    def rollout_flops(self, segments: Iterable[Segment], convention: FlopsConvention = "causal") -> float:
        """FLOPs of sampling a trace: each segment's prefill (logits of its last token only) and its decode steps.

        A decode step has one query, so both conventions count it alike.
        """
        total = 0.0
        for s in segments:
            total += self.forward_flops(s.prefill, s.reused, convention, logits=1)
            keys = s.steps * s.prompt + s.steps * (s.steps + 1) // 2
            body = 2 * self.matmul_parameters * s.steps
            total += body + 4 * self.layers * self.query_width * keys
        return total

    def update_flops(
        self, segments: Iterable[Segment], convention: FlopsConvention = "causal", recompute: bool = True
    ) -> float:
        """FLOPs of training on a trace's chunks: 3× the forward, 4× with full activation recompute.

        Each chunk is one sequence of its prompt and response; logits are needed where a response token is predicted.
        """
        times = 4 if recompute else 3
        return times * self.logprob_flops(segments, convention)

    def logprob_flops(self, segments: Iterable[Segment], convention: FlopsConvention = "causal") -> float:
        """FLOPs of the log-probabilities of a trace's response tokens: one forward of each chunk."""
        return sum(self.forward_flops(s.prompt + s.steps, 0, convention, logits=s.decode) for s in segments if s.decode)


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Built-in architectures by name: `config` (the publisher's, without weights) and its `source`."""
    loaded: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("catalogue.json").read_text())
    return loaded


def architecture(name: str) -> dict[str, Any]:
    """The Hugging Face config of a built-in architecture; raises `UsageError` with near names if unknown."""
    if name not in catalogue():
        raise unknown("model", name, catalogue())
    config: dict[str, Any] = catalogue()[name]["config"]
    return config

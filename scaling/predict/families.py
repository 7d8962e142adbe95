"""From a Hugging Face config to the layers of its decoder: what each architecture family leaves unsaid, counted."""

from __future__ import annotations

import reprlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scaling.errors import CheckpointError

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4096},
    "qwen2": {"attention_bias": True, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
    "smollm3": {"tie_word_embeddings": True},
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": {"sliding_window": 4096, "decoder_sparse_step": 1},
    "gpt_oss": {"head_dim": 64, "attention_bias": True, "sliding_window": 128},
    "mixtral": {},
    "deepseek_v3": {},
}
"""Every supported family, with what its published configs may leave to the family's defaults."""

_RENAMED = {"num_experts": "num_local_experts"}  # what `transformers` 5 writes for the name of earlier configs
_WRAPPERS = {"gemma3": "gemma3_text"}  # multimodal configs whose `text_config` is the decoder: which family it is of
_NO_BIAS = ("mistral", "mixtral")
_MLP_BIAS = ("llama", "smollm3")
_QK_NORM = ("qwen3", "qwen3_moe", "gemma3_text")
_EVERY_LAYER_WINDOWED = ("mistral", "mixtral", "qwen3_moe")  # they ignore `layer_types` where they have a window

MOST_LAYERS = 10_000
MOST = 1 << 31
"""Of any other size."""


class Fields:
    """A decoder's part of a `config.json`, over the defaults of its family, read with one clear line for what is wrong.

    Raises `CheckpointError` for an architecture that is not supported.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        family = str(config.get("model_type"))
        if family in _WRAPPERS and "text_config" in config:
            inner = config["text_config"]
            if not isinstance(inner, Mapping):
                raise CheckpointError(f"config.json has text_config {reprlib.repr(inner)}; expected an object")
            outer = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
            config, family = {**outer, **inner}, _WRAPPERS[family]
        if family not in DEFAULTS:
            known = ", ".join([*DEFAULTS, *(f"{name} (its text_config)" for name in _WRAPPERS)])
            raise CheckpointError(f"unsupported architecture {reprlib.repr(family)}; supported are {known}")
        self.family = family
        self._values = {**DEFAULTS[family], **{_RENAMED.get(key, key): value for key, value in config.items()}}

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` to what a model could have; `default` where the config lacks it or says null."""
        value = self.get(name)
        if value is None:
            if default is not None:
                return default
            if name not in self._values:
                raise CheckpointError(f"config.json lacks {name!r}")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise CheckpointError(
                f"config.json has {name} {reprlib.repr(value)}; expected a whole number of at least {least}"
            )
        most = MOST_LAYERS if name == "num_hidden_layers" else MOST
        if value > most:
            raise CheckpointError(f"config.json has {name} {reprlib.repr(value)}; expected at most {most}")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise CheckpointError(f"config.json has {name} {reprlib.repr(value)}; expected a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false; false where the config lacks it or says null."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"config.json has {name} {reprlib.repr(value)}; expected true or false")
        return bool(value)

    def many(self, name: str) -> list[Any] | None:
        """A list, None where the config lacks it or says null."""
        value = self.get(name)
        if value is not None and not isinstance(value, list | tuple):
            raise CheckpointError(f"config.json has {name} {reprlib.repr(value)}; expected a list")
        return None if value is None else list(value)


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of layer, as its kernels see it. Every number but `count` is of one such layer.

    `window`: most keys that a query sees, itself included; None where it sees all before it.
    `heads_width`: heads × width of a query head.
    `attention_parameters`: matmul weights of the projections.
    `mlp_parameters`: matmul weights that every token meets after attention: a dense MLP, or shared experts and router.
    `mlp_width`: intermediate width active for a token: a dense MLP's, or active experts × theirs + the shared ones'.
    `experts`, `active_experts`, `expert_parameters`: routed ones, all and a token's, and the matmul weights of one.
    `pair_flops`: FLOPs of a (query, key) pair, 2·heads·(query width + value width): QKᵀ and the product with V.
    `cached_pair_flops`: the same where queries meet what the cache holds: for multi-head latent attention, over the
    latents, with the expansion's weights absorbed in query and output (arXiv 2405.04434 §2.1.2); else `pair_flops`.
    `kv_elements`: numbers that a token leaves in the cache.
    `router_parameters`: those of `mlp_parameters` that route.
    `expansion_parameters`: those of `attention_parameters` that make keys and values of a cached latent, 0 elsewhere.
    `vectors`: stored numbers that multiply no matrix: norms, biases (the experts' too), attention sinks.
    """

    heads_width: int
    attention_parameters: int
    pair_flops: int
    cached_pair_flops: int
    kv_elements: int
    vectors: int
    expansion_parameters: int = 0
    mlp_parameters: int = 0
    mlp_width: int = 0
    experts: int = 0
    active_experts: int = 0
    expert_parameters: int = 0
    router_parameters: int = 0
    window: int | None = None
    count: int = 1

    @property
    def active_parameters(self) -> int:
        """Matmul weights that one token meets."""
        return self.attention_parameters + self.mlp_parameters + self.active_experts * self.expert_parameters

    @property
    def parameters(self) -> int:
        """Every stored number."""
        matmul = self.attention_parameters + self.mlp_parameters + self.experts * self.expert_parameters
        return matmul + self.vectors


def read_layers(fields: Fields) -> tuple[Layer, ...]:
    """The kinds of layers of a config, each once with its count, in the order of their first layer."""
    layers = fields.size("num_hidden_layers")
    attention = _latent_attention(fields) if fields.family == "deepseek_v3" else _attention(fields)
    routed = [_is_routed(fields, i) for i in range(layers)]
    bodies = {False: _dense_mlp(attention, fields)} if not all(routed) else {}
    if any(routed):
        bodies[True] = _experts(attention, fields)
    each = [replace(bodies[r], window=w) for r, w in zip(routed, read_windows(fields), strict=True)]
    return tuple(replace(layer, count=count) for layer, count in Counter(each).items())


def read_windows(fields: Fields) -> Sequence[int | None]:
    """Each layer's window, None where it sees everything before it."""
    family, layers, types = fields.family, fields.size("num_hidden_layers"), fields.many("layer_types")
    windowed = fields.get("sliding_window") is not None
    if family in ("qwen2", "qwen3", "qwen3_moe", "smollm3"):
        windowed = windowed and fields.flag("use_sliding_window")
    if family in ("llama", "deepseek_v3") or not windowed:
        return [None] * layers
    window = fields.size("sliding_window")
    if family in _EVERY_LAYER_WINDOWED:
        return [window] * layers
    if types is None:
        return [window if _slides(fields, i) else None for i in range(layers)]
    known = {"sliding_attention": window, "full_attention": None}
    if len(types) != layers:
        raise CheckpointError(f"config.json has {len(types)} layer_types, expected num_hidden_layers {layers}")
    for kind in types:
        if not isinstance(kind, str) or kind not in known:
            raise CheckpointError(f"unsupported layer type {reprlib.repr(kind)}; {', '.join(known)} are supported")
    return [known[kind] for kind in types]


def _slides(fields: Fields, index: int) -> bool:
    """Whether layer `index` of a config without `layer_types` has the window, by its family's rule."""
    if fields.family == "gpt_oss":
        return index % 2 == 0
    if fields.family == "gemma3_text":
        return (index + 1) % fields.size("sliding_window_pattern", 6) != 0
    if fields.family == "smollm3":  # the layers without rotary embedding
        rotary, layers = fields.many("no_rope_layers"), fields.size("num_hidden_layers")
        if rotary is None:
            return (index + 1) % fields.size("no_rope_layer_interval", 4) == 0
        if len(rotary) != layers:
            raise CheckpointError(f"config.json has {len(rotary)} no_rope_layers, expected num_hidden_layers {layers}")
        return not rotary[index]
    return index >= fields.size("max_window_layers", least=0)


def _is_routed(fields: Fields, index: int) -> bool:
    if fields.family == "deepseek_v3":
        return index >= fields.size("first_k_dense_replace", least=0)
    if fields.family == "qwen3_moe":
        dense = index in (fields.many("mlp_only_layers") or ())
        return not dense and (index + 1) % fields.size("decoder_sparse_step") == 0
    return fields.family in ("gpt_oss", "mixtral")


def head_sizes(fields: Fields) -> tuple[int, int, int]:
    """Query heads, KV heads and the width of a query head."""
    heads = fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(f"config.json has {heads} query heads for {kv_heads} KV heads; expected a multiple")
    if fields.family == "deepseek_v3":
        return heads, kv_heads, fields.size("qk_nope_head_dim") + fields.size("qk_rope_head_dim")
    head_dim = fields.get("head_dim")
    if head_dim is None and fields.size("hidden_size") < heads:
        raise CheckpointError(f"config.json has hidden_size {fields.size('hidden_size')} for {heads} heads")
    return heads, kv_heads, fields.size("head_dim", fields.size("hidden_size") // heads)


def attention_biases(fields: Fields) -> tuple[bool, bool]:
    """Whether the query, key and value projections have biases, and whether the output projection has."""
    bias = fields.flag("attention_bias") and fields.family not in _NO_BIAS
    return bias, bias and fields.family != "qwen2"


def mlp_bias(fields: Fields) -> bool:
    return fields.flag("mlp_bias") and fields.family in _MLP_BIAS


def qk_norm(fields: Fields) -> bool:
    return fields.family in _QK_NORM


def _attention(fields: Fields) -> Layer:
    """Attention at grouped KV heads (arXiv 2305.13245) and the layer's norms; nothing behind it yet."""
    hidden, (heads, kv_heads, head_dim) = fields.size("hidden_size"), head_sizes(fields)
    query_width, kv_width = heads * head_dim, kv_heads * head_dim
    into, out = attention_biases(fields)
    vectors = hidden * (4 if fields.family == "gemma3_text" else 2)
    vectors += into * (query_width + 2 * kv_width) + out * hidden + qk_norm(fields) * 2 * head_dim
    vectors += heads * (fields.family == "gpt_oss")  # sinks
    return Layer(
        heads_width=query_width,
        attention_parameters=hidden * (2 * query_width + 2 * kv_width),
        pair_flops=4 * query_width,
        cached_pair_flops=4 * query_width,
        kv_elements=2 * kv_width,
        vectors=vectors,
    )


def _latent_attention(fields: Fields) -> Layer:
    """Multi-head latent attention (arXiv 2412.19437 §2.1.1) and the layer's norms; nothing behind it yet."""
    hidden, (heads, _, width) = fields.size("hidden_size"), head_sizes(fields)
    rank, rotary = fields.size("kv_lora_rank"), fields.size("qk_rope_head_dim")
    values = fields.size("v_head_dim")
    query_rank = 0 if fields.get("q_lora_rank") is None else fields.size("q_lora_rank")
    query = query_rank * (hidden + heads * width) if query_rank else hidden * heads * width
    expansion = rank * heads * (fields.size("qk_nope_head_dim") + values)
    bias, _ = attention_biases(fields)
    return Layer(
        heads_width=heads * width,
        attention_parameters=query + hidden * (rank + rotary) + expansion + heads * values * hidden,
        pair_flops=2 * heads * (width + values),
        cached_pair_flops=2 * heads * (2 * rank + rotary),
        kv_elements=rank + rotary,
        expansion_parameters=expansion,
        vectors=2 * hidden + query_rank + rank + bias * (query_rank + rank + rotary + hidden),
    )


def _dense_mlp(layer: Layer, fields: Fields) -> Layer:
    """`layer` with a gated MLP behind it: two projections up, one down."""
    hidden, width = fields.size("hidden_size"), fields.size("intermediate_size")
    biases = mlp_bias(fields) * (2 * width + hidden)
    return replace(layer, mlp_parameters=3 * hidden * width, mlp_width=width, vectors=layer.vectors + biases)


def _experts(layer: Layer, fields: Fields) -> Layer:
    """`layer` with routed experts, each a gated MLP, behind it, and the shared ones and the router."""
    hidden = fields.size("hidden_size")
    experts = fields.size("n_routed_experts" if fields.family == "deepseek_v3" else "num_local_experts")
    active = fields.size("num_experts_per_tok")
    if active > experts:
        raise CheckpointError(f"config.json has {active} experts a token of {experts}; expected at most all")
    width = fields.size("intermediate_size" if fields.family in ("gpt_oss", "mixtral") else "moe_intermediate_size")
    shared = width * (fields.size("n_shared_experts", least=0) if fields.family == "deepseek_v3" else 0)
    biases = experts * (1 + 2 * width + hidden) * (fields.family == "gpt_oss")  # the router's too
    return replace(
        layer,
        mlp_parameters=3 * hidden * shared + hidden * experts,
        mlp_width=active * width + shared,
        experts=experts,
        active_experts=active,
        expert_parameters=3 * hidden * width,
        router_parameters=hidden * experts,
        vectors=layer.vectors + biases,
    )

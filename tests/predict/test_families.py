"""Configs: windows and experts as `transformers` reads them, and one line for everything that makes no sense."""

from typing import Any

import pytest
from transformers import AutoConfig

from scaling.decoder import Decoder
from scaling.errors import CheckpointError
from scaling.predict.families import DEFAULTS, Fields, read_layers, read_windows
from scaling.predict.shape import Shape, architecture

WINDOWED = {
    "mistral, no window": {"model_type": "mistral", "sliding_window": None},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "mistral, silent": {"model_type": "mistral"},
    "mixtral": {"model_type": "mixtral", "sliding_window": 5},
    "qwen2, off": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 5, "max_window_layers": 2},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen2, all": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "qwen3": {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "qwen3, types": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"] * 3,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", "use_sliding_window": True, "sliding_window": 5},
    "qwen3_moe, off": {"model_type": "qwen3_moe", "sliding_window": 5},
    "smollm3": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 5},
    "smollm3, listed": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 5,
        "no_rope_layers": [1, 1, 0, 1, 1, 0],
    },
    "smollm3, off": {"model_type": "smollm3", "sliding_window": 5},
    "gemma3_text": {"model_type": "gemma3_text", "sliding_window": 5},
    "gemma3_text, pattern": {"model_type": "gemma3_text", "sliding_window": 5, "sliding_window_pattern": 3},
    "gpt_oss": {"model_type": "gpt_oss", "sliding_window": 5},
    "gpt_oss, types": {
        "model_type": "gpt_oss",
        "sliding_window": 5,
        "layer_types": ["full_attention"] * 4 + ["sliding_attention"] * 2,
    },
    "llama": {"model_type": "llama"},
    "deepseek_v3": {"model_type": "deepseek_v3"},
}


def with_config(**change: Any) -> dict[str, Any]:
    return architecture("tiny") | change


@pytest.mark.parametrize("config", WINDOWED.values(), ids=WINDOWED)
def test_windows_are_those_that_transformers_reads(config: dict[str, Any]) -> None:
    """Of six layers. Families without `layer_types` in their config have their window in every layer."""
    real = AutoConfig.for_model(**config, num_hidden_layers=6)
    fields = Fields(config | {"num_hidden_layers": 6})
    window = getattr(real, "sliding_window", None)
    types = getattr(real, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * 6
    expected = [window if kind == "sliding_attention" else None for kind in types]
    assert list(read_windows(fields)) == expected


@pytest.mark.parametrize("family", DEFAULTS)
def test_defaults_are_those_of_transformers(family: str) -> None:
    real = AutoConfig.for_model(family)
    off = not getattr(real, "use_sliding_window", True)  # then its window reads as None
    for name, value in DEFAULTS[family].items():
        if hasattr(real, name) and not (name == "sliding_window" and off):
            assert getattr(real, name) == value, name


def test_a_multimodal_config_is_its_text_decoder() -> None:
    config = architecture("gemma-3-12b")
    assert Shape.from_config(config) == Shape.from_config(config["text_config"])
    untied = config | {"tie_word_embeddings": False}
    assert not Shape.from_config(untied).tied


def test_sparse_layers_follow_the_step_and_the_list() -> None:
    config = architecture("qwen3-30b-a3b") | {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    dense, routed = sorted(read_layers(Fields(config)), key=lambda kind: kind.experts)
    assert (dense.count, routed.count) == (4, 2)
    assert (dense.mlp_width, routed.mlp_width) == (6144, 8 * 768)


@pytest.mark.parametrize("name", ["r1-distill-qwen-1.5b", "gemma-3-1b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3"])
def test_a_config_means_the_same_once_transformers_has_written_it_anew(name: str) -> None:
    written = AutoConfig.for_model(**architecture(name)).to_dict()
    assert Shape.from_config(written) == Shape.from_config(architecture(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "unsupported architecture 'mamba'; supported are llama, mistral, qwen2, qwen3, smol"),
        ({"model_type": None}, "unsupported architecture 'None'"),
        ({"model_type": "gemma3"}, "unsupported architecture 'gemma3'; .* gemma3 \\(its text_config\\)"),
        ({"model_type": "gemma3", "text_config": 3}, "text_config 3; expected an object"),
        ({"hidden_size": 0}, "hidden_size 0; expected a whole number of at least 1"),
        ({"num_hidden_layers": -2}, "num_hidden_layers -2; expected a whole number"),
        ({"vocab_size": "many"}, "vocab_size 'many'; expected a whole number"),
        ({"num_attention_heads": True}, "num_attention_heads True; expected a whole number"),
        ({"intermediate_size": 56.5}, r"intermediate_size 56\.5; expected a whole number"),
        ({"hidden_size": None}, "hidden_size None; expected a whole number"),
        ({"head_dim": 0}, "head_dim 0; expected"),
        ({"num_key_value_heads": 3}, "4 query heads for 3 KV heads; expected a multiple"),
        ({"num_attention_heads": 512, "num_key_value_heads": 1}, "hidden_size 256 for 512 heads"),
        ({"rms_norm_eps": 0}, "rms_norm_eps 0; expected a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan; expected a positive number"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps inf; expected a positive number"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps 1000.*; expected a positive number"),
        ({"hidden_size": 10**400}, r"hidden_size 10+\.\.\.0+; expected at most 2147483648"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000; expected at most 10000"),
        ({"model_type": "x" * 5000}, r"unsupported architecture 'x+\.\.\.x+'; supported"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings 'yes'; expected true or false"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window 0; expected"),
        ({"model_type": "gpt_oss"}, "lacks 'num_local_experts'"),
        ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}, "3 experts a token of 2"),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"]}, "1 layer_types, expected .* 2"),
        ({"model_type": "gemma3_text", "layer_types": "full"}, "layer_types 'full'; expected a list"),
        ({"model_type": "gemma3_text", "layer_types": ["mamba"] * 2}, "unsupported layer type 'mamba'"),
        ({"model_type": "gemma3_text", "layer_types": [["a"], {}]}, r"unsupported layer type \['a'\]"),
        ({"model_type": "deepseek_v3"}, "lacks 'qk_nope_head_dim'"),
        ({**architecture("deepseek-v3"), "first_k_dense_replace": None}, "first_k_dense_replace None; expected"),
        (
            {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 5, "no_rope_layers": [0]},
            "1 no_rope_layers, expected .* 2",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        Shape.from_config(with_config(**change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_missing_size_is_named(size: str) -> None:
    config = {key: value for key, value in architecture("tiny").items() if key != size}
    with pytest.raises(CheckpointError, match=rf"config\.json lacks '{size}'"):
        Shape.from_config(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (architecture("gpt-oss-20b"), "cannot run architecture 'gpt_oss'; .* runs dense llama, qwen2, qwen3 with full"),
        (architecture("deepseek-v3"), "cannot run architecture 'deepseek_v3'"),
        (architecture("qwen2.5-0.5b") | {"use_sliding_window": True, "max_window_layers": 4}, "cannot run sliding-w"),
        (with_config(hidden_act="gelu"), "cannot run activation 'gelu'; .* and silu"),
    ],
)
def test_what_can_be_priced_but_not_run_is_refused_by_the_decoder(config: dict[str, Any], message: str) -> None:
    assert Shape.from_config(config).parameters > 0
    with pytest.raises(CheckpointError, match=message):
        Decoder.from_config(config)


def test_windows_that_are_never_used_run() -> None:
    config = architecture("tiny") | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096}
    assert Decoder.from_config(config).shape.kinds[0].window is None

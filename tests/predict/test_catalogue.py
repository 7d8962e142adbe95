"""Built-in architectures: each against its publisher's stated totals and the real module's, on the meta device."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from scaling.errors import UsageError
from scaling.predict.shape import Shape, architecture, catalogue

# Totals and non-embedding counts as the publishers state them, in billions, with the digits they give.
# Qwen: "Number of Parameters" and "(Non-Embedding)" of the model cards. R1-Distill states its base model only
# (Qwen2.5-Math-1.5B and -7B, Qwen2.5-14B and -32B, Llama-3.1-8B and -3.3-70B: their cards); the 1.5B base ties a head
# that the distilled checkpoint has of its own: 1.54 plus 151936 × 1536 is 1.77. gpt-oss: arXiv 2508.10925, Table 1.
# Llama 2: arXiv 2307.09288, by name; Llama 3, 3.1 and 3.3: arXiv 2407.21783 and the cards, by name; Llama 3.2: 1.23B
# and 3.21B in the card's table. SmolLM2 and 3: the cards, arXiv 2502.02737. Gemma 3: arXiv 2503.19786, Table 1,
# embedding plus non-embedding parameters, the vision encoder apart. Mistral 7B: 7.3B in its announcement; Small 3: by
# name. Mixtral: 47B, arXiv 2401.04088 §1. DeepSeek-V3: 671B of main weights, README_WEIGHTS.md of its repository; R1 is
# trained from it, arXiv 2501.12948.
PUBLISHED: dict[str, tuple[str, str | None]] = {
    "smollm2-135m": ("0.135", None),
    "smollm2-360m": ("0.362", None),
    "smollm2-1.7b": ("1.71", None),
    "smollm3-3b": ("3.08", None),
    "qwen2.5-0.5b": ("0.49", "0.36"),
    "qwen2.5-1.5b": ("1.54", "1.31"),
    "qwen2.5-3b": ("3.09", "2.77"),
    "qwen2.5-7b": ("7.61", "6.53"),
    "qwen2.5-14b": ("14.7", "13.1"),
    "qwen2.5-32b": ("32.5", "31.0"),
    "qwen2.5-72b": ("72.7", "70.0"),
    "r1-distill-qwen-1.5b": ("1.77", "1.31"),
    "r1-distill-qwen-7b": ("7.61", "6.53"),
    "r1-distill-qwen-14b": ("14.7", "13.1"),
    "r1-distill-qwen-32b": ("32.5", "31.0"),
    "r1-distill-llama-8b": ("8", None),
    "r1-distill-llama-70b": ("70", None),
    "qwen3-0.6b": ("0.6", "0.44"),
    "qwen3-1.7b": ("1.7", "1.4"),
    "qwen3-4b": ("4.0", "3.6"),
    "qwen3-8b": ("8.2", "6.95"),
    "qwen3-14b": ("14.8", "13.2"),
    "qwen3-32b": ("32.8", "31.2"),
    "qwen3-30b-a3b": ("30.5", "29.9"),
    "qwen3-235b-a22b": ("235", "234"),
    "gpt-oss-20b": ("20.91", None),
    "gpt-oss-120b": ("116.83", None),
    "llama-2-7b": ("7", None),
    "llama-2-13b": ("13", None),
    "llama-2-70b": ("70", None),
    "llama-3-8b": ("8", None),
    "llama-3.1-8b": ("8", None),
    "llama-3.1-70b": ("70", None),
    "llama-3.1-405b": ("405", None),
    "llama-3.2-1b": ("1.23", None),
    "llama-3.2-3b": ("3.21", None),
    "llama-3.3-70b": ("70", None),
    "gemma-3-1b": ("1.000", "0.698"),
    "gemma-3-4b": ("3.884", "3.209"),
    "gemma-3-12b": ("11.771", "10.759"),
    "gemma-3-27b": ("27.016", "25.600"),
    "mistral-7b": ("7.3", None),
    "mistral-small-24b": ("24", None),
    "mixtral-8x7b": ("47", None),
    "deepseek-v3": ("671", None),
    "deepseek-r1": ("671", None),
}

# Active parameters as published, in billions, and which of ours they are: those of a token's matrix products (gpt-oss
# "excludes embeddings but includes unembeddings"; DeepSeek's README_WEIGHTS.md, "including 0.9B for the output Head"),
# or those and the embedding (Qwen's cards, Mixtral's §1).
ACTIVE = {
    "gpt-oss-20b": ("matmul_parameters", "3.61"),
    "gpt-oss-120b": ("matmul_parameters", "5.13"),
    "deepseek-v3": ("matmul_parameters", "36.6"),
    "qwen3-30b-a3b": ("active_parameters", "3.3"),
    "qwen3-235b-a22b": ("active_parameters", "22"),
    "mixtral-8x7b": ("active_parameters", "13"),
}


def shape_of(name: str) -> Shape:
    return Shape.from_config(architecture(name))


def near(published: str, relative: float = 0.015) -> Any:
    """A number that rounds to the digits given, or is within `relative` of it, as publishers round freely."""
    half = 0.5 * 10.0 ** -len(published.partition(".")[2])
    return pytest.approx(float(published), rel=relative, abs=half)


@pytest.mark.parametrize("name", catalogue())
def test_parameters_equal_those_of_the_real_module(name: str) -> None:
    config = architecture(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.get("text_config", config)))
    assert shape_of(name).parameters == sum(p.numel() for p in model.parameters())


def test_every_published_model_is_checked_against_its_publisher() -> None:
    assert set(PUBLISHED) == set(catalogue()) - {"tiny"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_publishers_totals(name: str) -> None:
    shape = shape_of(name)
    total, without_embeddings = PUBLISHED[name]
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    assert shape.parameters / 1e9 == near(total)
    if without_embeddings is not None:
        assert (shape.parameters - embeddings) / 1e9 == near(without_embeddings)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_equal_the_publishers(name: str) -> None:
    which, published = ACTIVE[name]
    assert getattr(shape_of(name), which) / 1e9 == near(published, relative=0.02)


@pytest.mark.parametrize(
    ("name", "billions", "without_routers", "kv_bytes"),
    [
        ("r1-distill-qwen-1.5b", 1.544, 1.544, 28_672),
        ("qwen3-30b-a3b", 3.042, 3.029, 98_304),
        ("gpt-oss-120b", 5.131, 5.118, 36_864),
    ],
)
def test_what_a_token_multiplies_and_leaves(name: str, billions: float, without_routers: float, kv_bytes: int) -> None:
    """Three models of the paper's §7: matmul parameters active a token, LM head included, and bf16 KV bytes a token."""
    shape = shape_of(name)
    assert round(shape.matmul_parameters / 1e9, 3) == billions
    assert round((shape.matmul_parameters - shape.router_parameters) / 1e9, 3) == without_routers
    assert shape.kv_bytes_per_token("bfloat16") == kv_bytes
    assert shape.kv_bytes_per_token("float32") == 2 * kv_bytes
    assert shape.kv_bytes_per_token("float8") == kv_bytes / 2


def test_every_other_layer_of_gpt_oss_holds_its_window_at_most() -> None:
    shape = shape_of("gpt-oss-120b")
    window = 18 * 128 * 2 * 8 * 64 * 2  # layers, tokens, keys and values, KV heads, width, bytes
    assert shape.kv_bytes(96 * 1024, "bfloat16") == 96 * 1024 * 36_864 + window
    assert shape.kv_bytes(100, "bfloat16") == 100 * 2 * 36_864


def test_latents_make_a_small_cache() -> None:
    """DeepSeek-V3: (512 + 64) numbers a token and layer, 70,272 bytes in bf16; no split over tensor-parallel ranks."""
    shape = shape_of("deepseek-v3")
    assert shape.kv_bytes_per_token("bfloat16") == 61 * (512 + 64) * 2
    assert (shape.kv_shards, shape_of("llama-3.1-70b").kv_shards) == (1, 8)


@pytest.mark.parametrize("name", catalogue())
def test_every_entry_names_its_source(name: str) -> None:
    assert set(catalogue()[name]) - {"weights"} == {"source", "config"}
    assert name == "tiny" or catalogue()[name]["source"].startswith("https://huggingface.co/")


def test_weights_that_are_published_quantised_say_in_what() -> None:
    quantised = {name: entry["weights"] for name, entry in catalogue().items() if "weights" in entry}
    assert quantised == {
        "gpt-oss-20b": "mxfp4",
        "gpt-oss-120b": "mxfp4",
        "deepseek-v3": "float8",
        "deepseek-r1": "float8",
    }


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'qwen3-0\.6'; did you mean qwen3-0\.6b"):
        architecture("qwen3-0.6")

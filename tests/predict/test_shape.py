"""Shapes: every parameter, FLOP and byte of every family against what real modules, and dense masks, count."""

import itertools
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from scaling.predict.shape import FlopsConvention, Shape, WeightClass, architecture, visible_pairs
from scaling.thinking import Delethink, LongCoT, Segment

CONVENTIONS: tuple[FlopsConvention, ...] = get_args(FlopsConvention)
GIB = 2**30


def tiny_config(family: str, hidden: int, heads: int, kv_heads: int, **options: Any) -> dict[str, Any]:
    return {
        "model_type": family,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "vocab_size": 80,
        "tie_word_embeddings": False,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    } | options


MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = MIXTURE | {
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}
TINY = {
    "llama": tiny_config("llama", 32, 4, 2, mlp_bias=True),
    "llama, narrow heads": tiny_config("llama", 48, 4, 4, head_dim=8),
    "llama, biases": tiny_config("llama", 32, 4, 1, attention_bias=True),
    "mistral": tiny_config("mistral", 32, 4, 2, sliding_window=None),
    "mistral, windowed": tiny_config("mistral", 32, 4, 2, sliding_window=5, head_dim=16),
    "qwen2": tiny_config("qwen2", 48, 6, 2),
    "qwen2, tied": tiny_config("qwen2", 32, 2, 1, tie_word_embeddings=True),
    "qwen2, upper layers windowed": tiny_config(
        "qwen2", 32, 2, 1, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": tiny_config("qwen3", 32, 4, 2, head_dim=16),
    "smollm3": tiny_config("smollm3", 32, 4, 2, tie_word_embeddings=True),
    "gemma3_text": tiny_config(
        "gemma3_text", 32, 4, 1, head_dim=16, sliding_window=5, sliding_window_pattern=2, tie_word_embeddings=True
    ),
    "qwen3_moe": tiny_config("qwen3_moe", 32, 4, 2, head_dim=16, num_experts=8, mlp_only_layers=[1], **MIXTURE),
    "gpt_oss": tiny_config(
        "gpt_oss", 32, 4, 2, head_dim=16, sliding_window=5, num_local_experts=8, num_experts_per_tok=2
    ),
    "mixtral": tiny_config("mixtral", 32, 4, 2, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": tiny_config("deepseek_v3", 32, 4, 4, q_lora_rank=24, n_shared_experts=2, **LATENT),
    "deepseek_v3, plain queries": tiny_config(
        "deepseek_v3", 32, 4, 4, q_lora_rank=None, n_shared_experts=1, attention_bias=True, **LATENT
    ),
}
every_family = pytest.mark.parametrize("config", TINY.values(), ids=TINY)


def shape_of(name: str) -> Shape:
    return Shape.from_config(architecture(name))


def build(config: dict[str, Any]) -> Any:
    """A `transformers` model with eager attention and experts, whose matrix products torch's counter sees."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config),
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    ).eval()


def tokens(count: int) -> torch.Tensor:
    return torch.arange(count)[None] % 80


def count(model: Any, new: int, backward: bool = False, **inputs: Any) -> int:
    """FLOPs that torch counts in a pass of `new` tokens, but for the table of RoPE angles, which some `transformers`
    versions make as a matrix product: an outer product of positions and frequencies, no work of a weight or a
    (query, key) pair."""
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        logits = model(input_ids=tokens(new), **inputs).logits
        if backward:
            logits.sum().backward()
    angles = [ops for name, ops in counter.get_flop_counts().items() if name.endswith(".rotary_emb")]
    return counter.get_total_flops() - sum(sum(ops.values()) for ops in angles)


def as_module(shape: Shape) -> Shape:
    """`shape` as `transformers` computes latent attention: keys and values made again of all latents in every pass."""
    kinds = (replace(kind, cached_pair_flops=10**9) if kind.expansion_parameters else kind for kind in shape.kinds)
    return replace(shape, kinds=tuple(kinds))


class TestParameters:
    @every_family
    def test_equal_those_of_the_real_module(self, config: dict[str, Any]) -> None:
        assert Shape.from_config(config).parameters == sum(p.numel() for p in build(config).parameters())

    @every_family
    def test_matmul_parameters_are_what_a_tokens_pass_multiplies(self, config: dict[str, Any]) -> None:
        """Half the FLOPs of a token that is alone, less its one (query, key) pair a layer."""
        shape = Shape.from_config(config)
        pairs = sum(kind.count * kind.pair_flops for kind in shape.kinds)
        assert 2 * shape.matmul_parameters == count(build(config), 1) - pairs

    @every_family
    def test_kinds_are_all_layers_each_once(self, config: dict[str, Any]) -> None:
        kinds = Shape.from_config(config).kinds
        assert sum(kind.count for kind in kinds) == config["num_hidden_layers"]
        assert len({replace(kind, count=1) for kind in kinds}) == len(kinds)

    def test_a_mixture_is_idle_but_for_its_active_experts(self) -> None:
        shape = Shape.from_config(TINY["qwen3_moe"])
        assert shape.parameters - shape.active_parameters == 2 * (8 - 2) * 3 * 32 * 24
        assert shape.router_parameters == 2 * 32 * 8

    def test_the_widths_of_a_layer_are_those_active_for_a_token(self) -> None:
        """`intermediate_size` 56 in the dense layer; 2 of 8 experts of 24 and 2 shared ones in the others."""
        dense, routed = Shape.from_config(TINY["deepseek_v3"]).kinds
        assert (dense.mlp_width, routed.mlp_width) == (56, 2 * 24 + 2 * 24)
        assert dense.heads_width == routed.heads_width == 4 * (8 + 4)


class TestBytes:
    @every_family
    @pytest.mark.parametrize("length", [3, 9])
    def test_kv_bytes_are_those_of_a_real_cache(self, config: dict[str, Any], length: int) -> None:
        """A static cache, which holds a window where there is one, and latents where attention is over them."""
        shape, model = Shape.from_config(config), build(config)
        cache = StaticCache(model.config, max_cache_len=length)
        with torch.no_grad():
            model(input_ids=tokens(length), past_key_values=cache)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert held == shape.kv_bytes(length, "float32")

    @every_family
    def test_past_every_window_a_token_adds_the_same_for_good(self, config: dict[str, Any]) -> None:
        shape = Shape.from_config(config)
        added = shape.kv_bytes(1001, "bfloat16") - shape.kv_bytes(1000, "bfloat16")
        assert added == shape.kv_bytes_per_token("bfloat16")

    @pytest.mark.parametrize(
        ("name", "dtype", "gibibytes"),
        [("gpt-oss-20b", "mxfp4", 12.8), ("gpt-oss-120b", "mxfp4", 60.8)],
    )
    def test_published_checkpoints_weigh_what_their_publisher_says(
        self, name: str, dtype: str, gibibytes: float
    ) -> None:
        """Checkpoint sizes of arXiv 2508.10925, Table 1: the routed experts in MXFP4, all else in bfloat16."""
        assert round(shape_of(name).weight_bytes(dtype) / GIB, 1) == gibibytes

    def test_unquantised_weights_take_their_dtype_everywhere(self) -> None:
        shape = shape_of("gpt-oss-20b")
        assert shape.weight_bytes("float32") == 2 * shape.weight_bytes("bfloat16") == 4 * shape.parameters

    @pytest.mark.parametrize(
        ("name", "dtype", "layer", "expert"),
        [
            ("gpt-oss-20b", "mxfp4", 2, 0.53125),
            ("qwen3-8b", "mxfp4", 0.53125, 0.53125),
            ("deepseek-v3", "float8", 1, 1),
            ("qwen3-30b-a3b", "int4", 0.515625, 0.515625),
            ("qwen3-30b-a3b", "bfloat16", 2, 2),
        ],
    )
    def test_a_quantised_dtype_covers_the_layers_matrices(
        self, name: str, dtype: str, layer: float, expert: float
    ) -> None:
        shape, classes = shape_of(name), get_args(WeightClass)
        assert [shape.bytes_of(dtype, each) for each in classes] == [layer, expert, 2]

    def test_routers_norms_and_embeddings_stay_in_bfloat16(self) -> None:
        shape = Shape.from_config(TINY["qwen3_moe"])
        attention = 3 * 32 * (2 * 4 * 16 + 2 * 2 * 16)
        quantised = attention + 3 * 32 * 56 + 2 * 8 * 3 * 32 * 24
        assert shape.weight_bytes("float8") == quantised + 2 * (shape.parameters - quantised)


class TestFlopsOfRealModules:
    @every_family
    def test_a_prefill_equals_torchs_counter(self, config: dict[str, Any]) -> None:
        assert Shape.from_config(config).forward_flops(13, convention="full") == count(build(config), 13)

    @every_family
    def test_logits_of_the_last_token_only(self, config: dict[str, Any]) -> None:
        counted = count(build(config), 13, logits_to_keep=1)
        assert Shape.from_config(config).forward_flops(13, convention="full", logits=1) == counted

    @every_family
    @pytest.mark.parametrize(("new", "past"), [(1, 11), (4, 9), (12, 5)])
    def test_a_pass_behind_a_cache_equals_torchs_counter(self, config: dict[str, Any], new: int, past: int) -> None:
        model, cache = build(config), DynamicCache()
        with torch.no_grad():
            model(input_ids=tokens(past), past_key_values=cache)
        shape = as_module(Shape.from_config(config))
        assert shape.forward_flops(new, past, "full") == count(model, new, past_key_values=cache)

    @every_family
    def test_forward_and_backward_are_three_forwards(self, config: dict[str, Any]) -> None:
        """As an update without recompute is counted: the embedding look-up multiplies nothing, either way."""
        counted = count(build(config), 13, backward=True)
        assert counted == 3 * Shape.from_config(config).forward_flops(13, convention="full")

    @every_family
    @pytest.mark.parametrize(
        "segments",
        [LongCoT(16).schedule(4, [12]), Delethink(8, 4, 5, head=2).schedule(4, [8, 4, 4, 3])],
        ids=["longcot", "delethink"],
    )
    def test_a_whole_rollout_equals_torchs_counter(self, config: dict[str, Any], segments: list[Segment]) -> None:
        model, shape = build(config), Shape.from_config(config)
        module, counted, expected = as_module(shape), 0, 0.0
        for segment in segments:
            cache = DynamicCache()
            assert segment.reused == 0
            counted += count(model, segment.prefill, past_key_values=cache, logits_to_keep=1)
            counted += sum(count(model, 1, past_key_values=cache) for _ in range(segment.steps))
            expected += module.forward_flops(segment.prefill, 0, "full", logits=1)
            expected += sum(module.forward_flops(1, segment.prompt + i, "full") for i in range(segment.steps))
        assert counted == expected
        if config["model_type"] != "deepseek_v3":
            assert counted == shape.rollout_flops(segments, "full")

    @pytest.mark.parametrize("new", [1, 7])
    def test_attention_over_latents_costs_its_cached_pairs(self, new: int) -> None:
        """The expansion absorbed: queries go to the latents' space, meet `past` + `new` latents, and come back."""
        config = TINY["deepseek_v3"]
        rank, nope, rotary, values, heads, keys = 16, 8, 4, 12, 4, 20
        kind = Shape.from_config(config).kinds[0]
        torch.manual_seed(0)
        latents, rotated = torch.randn(keys, rank), torch.randn(keys, rotary)
        queries, query_rotations = torch.randn(heads, new, nope), torch.randn(heads, new, rotary)
        key_weights, value_weights = torch.randn(heads, nope, rank), torch.randn(heads, rank, values)
        with FlopCounterMode(display=False) as absorbed:
            wide = torch.cat([queries @ key_weights, query_rotations], -1)
            scores = (wide @ torch.cat([latents, rotated], -1).T.expand(heads, -1, -1)).softmax(-1)
            over_latents = (scores @ latents.expand(heads, -1, -1)) @ value_weights
        with FlopCounterMode(display=False) as expanded:
            made = torch.cat([latents @ key_weights.mT, rotated.expand(heads, -1, -1)], -1)
            scores = (torch.cat([queries, query_rotations], -1) @ made.mT).softmax(-1)
            over_keys = scores @ (latents @ value_weights)
        assert torch.allclose(over_latents, over_keys, atol=1e-3)
        assert absorbed.get_total_flops() == 2 * kind.expansion_parameters * new + kind.cached_pair_flops * new * keys
        assert expanded.get_total_flops() == 2 * kind.expansion_parameters * keys + kind.pair_flops * new * keys


class TestConventions:
    @every_family
    @given(new=st.integers(1, 20), past=st.integers(0, 20))
    def test_causal_counts_the_ones_of_the_mask(self, config: dict[str, Any], new: int, past: int) -> None:
        shape = Shape.from_config(config)
        keys, queries = np.meshgrid(np.arange(past + new), past + np.arange(new))
        total = 2.0 * new * shape.matmul_parameters
        for kind in shape.kinds:
            seen = (keys <= queries) & (keys > queries - (kind.window or past + new))
            expanded = int(seen.sum()) * kind.pair_flops + 2 * past * kind.expansion_parameters
            total += kind.count * (min(expanded, int(seen.sum()) * kind.cached_pair_flops) if past else expanded)
        assert shape.forward_flops(new, past) == total

    @given(new=st.integers(0, 30), past=st.integers(0, 30), window=st.none() | st.integers(1, 40))
    def test_visible_pairs_are_the_ones_of_the_mask(self, new: int, past: int, window: int | None) -> None:
        keys, queries = np.meshgrid(np.arange(past + new), past + np.arange(new))
        assert visible_pairs(new, past, window) == ((keys <= queries) & (keys > queries - (window or 100))).sum()

    @pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-30b-a3b"])
    @pytest.mark.parametrize("length", [1, 700, 4096])
    def test_verl_counts_as_the_training_library_does(self, name: str, length: int) -> None:
        """verl's `FlopsCounter` bills a training sequence 6 · (body + embedding + head) · n + 12 · layers · heads ·
        head_dim · n², with top-k experts and their router in the body."""
        shape, config = shape_of(name), architecture(name)
        hidden, head_dim = config["hidden_size"], config["head_dim"]
        mlp = 3 * hidden * config["intermediate_size"]
        if "num_experts" in config:
            mlp = hidden * (3 * config["num_experts_per_tok"] * config["moe_intermediate_size"] + config["num_experts"])
        projections = hidden * head_dim * 2 * (config["num_attention_heads"] + config["num_key_value_heads"])
        dense = (projections + mlp) * config["num_hidden_layers"] + 2 * config["vocab_size"] * hidden
        pairs = config["num_hidden_layers"] * config["num_attention_heads"] * head_dim * length**2
        assert 3 * shape.forward_flops(length, convention="verl") == 6 * dense * length + 12 * pairs

    @pytest.mark.parametrize("convention", CONVENTIONS)
    @pytest.mark.parametrize("name", ["qwen3-0.6b", "gpt-oss-20b", "gemma-3-4b", "deepseek-v3"])
    @given(reused=st.integers(0, 1200), prefill=st.integers(1, 1200), decode=st.integers(1, 40))
    def test_a_rollout_is_the_sum_of_its_forwards(
        self, name: str, convention: FlopsConvention, reused: int, prefill: int, decode: int
    ) -> None:
        shape = shape_of(name)
        passes = [shape.forward_flops(prefill, reused, convention, logits=1)]
        passes += [shape.forward_flops(1, reused + prefill + step, convention) for step in range(decode - 1)]
        assert shape.rollout_flops([Segment(reused, prefill, decode)], convention) == sum(passes)

    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_a_trace_is_the_sum_of_its_segments(self, convention: FlopsConvention) -> None:
        shape, segments = shape_of("tiny"), Delethink(64, 32, 5, head=4).schedule(10, [64, 32, 32, 32, 7])
        for cost in (shape.rollout_flops, shape.logprob_flops, shape.update_flops):
            assert cost(segments, convention) == sum(cost([s], convention) for s in segments)

    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_logprobs_feed_all_but_the_last_token(self, convention: FlopsConvention) -> None:
        """5 prompt and 4 response tokens: 8 go in, the last 4 positions give logits."""
        shape = shape_of("tiny")
        assert shape.logprob_flops([Segment(0, 5, 4)], convention) == shape.forward_flops(8, 0, convention, logits=4)
        assert shape.logprob_flops([Segment(0, 5, 0)], convention) == 0

    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_an_update_is_three_forwards_or_four_with_recompute(self, convention: FlopsConvention) -> None:
        shape, segments = shape_of("tiny"), [Segment(0, 10, 64), Segment(0, 46, 32)]
        forward = shape.logprob_flops(segments, convention)
        assert shape.update_flops(segments, convention, recompute=False) == 3 * forward
        assert shape.update_flops(segments, convention) == 4 * forward

    @pytest.mark.parametrize("name", ["tiny", "gpt-oss-20b", "gemma-3-1b"])
    def test_without_an_update_a_causal_trace_costs_what_its_tokens_cost_however_it_is_cut_in_passes(
        self, name: str
    ) -> None:
        """Causal FLOPs of one pass over a prompt and response equal prefill plus decode steps, LM head apart."""
        shape, segment = shape_of(name), Segment(0, 100, 1500)
        head = 2 * shape.hidden * shape.vocabulary
        assert shape.rollout_flops([segment]) == shape.forward_flops(1599) - 99 * head

    @pytest.mark.parametrize(
        ("convention", "crossover", "ratio"),
        [
            ("full", (28_000, 33_000), (18, 20)),
            ("verl", (31_000, 33_000), (17.5, 18.5)),
            ("causal", (44_000, 49_000), (11.5, 12.5)),
        ],
    )
    def test_the_papers_crossover_and_its_ratio_at_a_million(
        self, convention: FlopsConvention, crossover: tuple[int, int], ratio: tuple[float, float]
    ) -> None:
        """One pass over a trace of R1-Distill-Qwen-1.5B, logits at every position, C = 8192, m = 4096: LongCoT passes
        Delethink near 30K thinking tokens and costs 17× at 1M (arXiv 2510.06557v3, Fig. C.1); 28K and 20× by our
        non-causal count, 32K and 18× with embeddings counted too, 48K and 12× by the causal one."""
        shape = shape_of("r1-distill-qwen-1.5b")

        def ratio_at(thinking: int) -> float:
            environments = LongCoT(thinking), Delethink.for_length(thinking, 8192, 4096, head=100)
            longcot, delethink = (
                sum(
                    shape.forward_flops(s.prompt + s.decode, 0, convention)
                    for s in e.schedule(100, e.expected_lengths(100, thinking))
                )
                for e in environments
            )
            return longcot / delethink

        first = next(n for n in itertools.count(8192 + 512, 512) if ratio_at(n) > 1)
        assert crossover[0] <= first <= crossover[1]
        assert ratio[0] <= ratio_at(1024 * 1024) <= ratio[1]

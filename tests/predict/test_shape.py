"""Shapes: every parameter, FLOP and byte against what real modules and publishers count."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from scaling.errors import CheckpointError, UsageError
from scaling.predict.shape import FlopsConvention, Shape, architecture, catalogue
from scaling.thinking import Delethink, LongCoT, Segment

CONVENTIONS: tuple[FlopsConvention, ...] = ("causal", "full")

# Totals and non-embedding counts as the publishers state them, in billions, to the digits they give.
# Qwen: "Number of Parameters" and "(Non-Embedding)" of the model cards. R1-Distill states its base model only
# (Qwen2.5-Math-1.5B and -7B, Qwen2.5-14B and -32B: their cards), whose 1.5B ties a head that the distilled
# checkpoint has of its own; so its total is the base's 1.54 plus 151936 × 1536. Llama 3.2: 1.23B in the model
# card's table. SmolLM2: the model cards' names, arXiv 2502.02737.
PUBLISHED: dict[str, tuple[float, float | None]] = {
    "smollm2-135m": (0.135, None),
    "smollm2-360m": (0.362, None),
    "smollm2-1.7b": (1.71, None),
    "qwen2.5-0.5b": (0.49, 0.36),
    "r1-distill-qwen-1.5b": (1.54 + 151936 * 1536 / 1e9, 1.31),
    "r1-distill-qwen-7b": (7.61, 6.53),
    "r1-distill-qwen-14b": (14.7, 13.1),
    "r1-distill-qwen-32b": (32.5, 31.0),
    "qwen3-0.6b": (0.6, 0.44),
    "qwen3-1.7b": (1.7, 1.4),
    "llama-3.2-1b": (1.23, None),
}


def shape_of(name: str) -> Shape:
    return Shape.from_config(architecture(name))


def build(config: dict[str, Any]) -> Any:
    """A `transformers` model with eager attention, whose matrix products torch's counter sees."""
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), attn_implementation="eager", dtype=torch.float32
    ).eval()


def count(model: Any, backward: bool = False, **inputs: Any) -> int:
    """FLOPs that torch counts in a pass, but for the table of RoPE angles, which some `transformers` versions make as
    a matrix product: an outer product of positions and frequencies, no work of a weight or a (query, key) pair."""
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        logits = model(**inputs).logits
        if backward:
            logits.sum().backward()
    angles = [ops for name, ops in counter.get_flop_counts().items() if name.endswith(".rotary_emb")]
    return counter.get_total_flops() - sum(sum(ops.values()) for ops in angles)


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
    } | options


TINY = [
    tiny_config("llama", 32, 4, 2, mlp_bias=True),
    tiny_config("llama", 48, 4, 4, head_dim=8),
    tiny_config("llama", 32, 4, 1, attention_bias=True),
    tiny_config("qwen2", 48, 6, 2),
    tiny_config("qwen2", 32, 2, 1, tie_word_embeddings=True),
    tiny_config("qwen3", 32, 4, 2, head_dim=16),
]
tiny = pytest.mark.parametrize("config", TINY, ids=[f"{i}-{c['model_type']}" for i, c in enumerate(TINY)])


class TestParameters:
    @pytest.mark.parametrize("name", catalogue())
    def test_equal_those_of_the_real_module(self, name: str) -> None:
        with torch.device("meta"):
            model = build(architecture(name))
        assert shape_of(name).parameters == sum(p.numel() for p in model.parameters())

    @tiny
    def test_equal_those_of_every_option(self, config: dict[str, Any]) -> None:
        assert Shape.from_config(config).parameters == sum(p.numel() for p in build(config).parameters())

    def test_every_published_model_is_checked_against_its_publisher(self) -> None:
        assert set(PUBLISHED) == set(catalogue()) - {"tiny"}

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_equal_the_publishers_totals(self, name: str) -> None:
        shape = shape_of(name)
        total, without_embeddings = PUBLISHED[name]
        embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
        if without_embeddings is not None:
            assert (shape.parameters - embeddings) / 1e9 == pytest.approx(without_embeddings, rel=0.015)
        assert shape.parameters / 1e9 == pytest.approx(total, rel=0.015)

    def test_one_and_a_half_billion_of_the_paper(self) -> None:
        """R1-Distill-Qwen-1.5B: 1.544 B weights multiply a token; 28,672 bytes of bf16 KV a token."""
        shape = shape_of("r1-distill-qwen-1.5b")
        assert round(shape.matmul_parameters / 1e9, 3) == 1.544
        assert shape.kv_bytes_per_token("bfloat16") == 28_672
        assert shape.kv_bytes_per_token("float32") == 2 * 28_672

    @tiny
    def test_matmul_parameters_are_the_linear_layers(self, config: dict[str, Any]) -> None:
        linear = [m for m in build(config).modules() if isinstance(m, torch.nn.Linear)]
        assert Shape.from_config(config).matmul_parameters == sum(m.weight.numel() for m in linear)

    @tiny
    def test_kv_bytes_are_those_of_a_real_cache(self, config: dict[str, Any]) -> None:
        with torch.no_grad():
            cache = build(config)(input_ids=torch.zeros(1, 7, dtype=torch.long)).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert 7 * Shape.from_config(config).kv_bytes_per_token("float32") == held


class TestFlops:
    @tiny
    @pytest.mark.parametrize("new", [1, 13])
    def test_a_prefill_equals_torchs_counter(self, config: dict[str, Any], new: int) -> None:
        counted = count(build(config), input_ids=torch.zeros(1, new, dtype=torch.long))
        assert Shape.from_config(config).forward_flops(new, convention="full") == counted

    @tiny
    def test_logits_of_the_last_token_only(self, config: dict[str, Any]) -> None:
        counted = count(build(config), input_ids=torch.zeros(1, 13, dtype=torch.long), logits_to_keep=1)
        assert Shape.from_config(config).forward_flops(13, convention="full", logits=1) == counted

    @tiny
    @pytest.mark.parametrize(("new", "past"), [(1, 11), (4, 9)])
    def test_a_pass_behind_a_cache_equals_torchs_counter(self, config: dict[str, Any], new: int, past: int) -> None:
        model = build(config)
        with torch.no_grad():
            cache = model(input_ids=torch.zeros(1, past, dtype=torch.long)).past_key_values
        counted = count(model, input_ids=torch.zeros(1, new, dtype=torch.long), past_key_values=cache)
        assert Shape.from_config(config).forward_flops(new, past, convention="full") == counted

    @tiny
    def test_forward_and_backward_are_three_forwards(self, config: dict[str, Any]) -> None:
        """As an update without recompute is counted: the embedding look-up multiplies nothing, either way."""
        counted = count(build(config), backward=True, input_ids=torch.zeros(1, 13, dtype=torch.long))
        assert counted == 3 * Shape.from_config(config).forward_flops(13, convention="full")

    @given(new=st.integers(1, 30), past=st.integers(0, 30))
    def test_causal_counts_the_ones_of_the_mask(self, new: int, past: int) -> None:
        shape = shape_of("tiny")
        keys, queries = np.meshgrid(np.arange(past + new), past + np.arange(new))
        pairs = int((keys <= queries).sum())
        body = 2 * new * (shape.layers * shape.layer_matmul_parameters + shape.hidden * shape.vocabulary)
        assert shape.forward_flops(new, past) == body + shape.layers * shape.heads * 2 * 2 * shape.head_dim * pairs

    @pytest.mark.parametrize("convention", CONVENTIONS)
    @given(reused=st.integers(0, 20), prefill=st.integers(1, 20), decode=st.integers(1, 40))
    def test_a_rollout_is_the_sum_of_its_forwards(
        self, convention: FlopsConvention, reused: int, prefill: int, decode: int
    ) -> None:
        shape = shape_of("qwen3-0.6b")
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

    def test_without_an_update_a_causal_trace_costs_what_its_tokens_cost_however_it_is_cut_in_passes(self) -> None:
        """Causal FLOPs of one pass over a prompt and response equal prefill plus decode steps, LM head apart."""
        shape, segment = shape_of("tiny"), Segment(0, 10, 50)
        head = 2 * shape.hidden * shape.vocabulary
        assert shape.rollout_flops([segment]) == shape.forward_flops(59) - 9 * head

    @pytest.mark.parametrize(
        ("convention", "crossover", "ratio"),
        [("full", (28_000, 33_000), (18, 20)), ("causal", (44_000, 49_000), (11.5, 12.5))],
    )
    def test_the_papers_crossover_and_its_ratio_at_a_million(
        self, convention: FlopsConvention, crossover: tuple[int, int], ratio: tuple[float, float]
    ) -> None:
        """One pass over a trace of R1-Distill-Qwen-1.5B, logits at every position, C = 8192, m = 4096: LongCoT passes
        Delethink near 30K thinking tokens and costs 17× at 1M (arXiv 2510.06557v3, Fig. C.1); 29–33K and 18–20× by our
        non-causal count, about 45K and 12× by the causal one."""
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


class TestConfigs:
    def test_an_unknown_architecture_name_suggests_near_ones(self) -> None:
        with pytest.raises(UsageError, match=r"unknown model 'qwen3-0\.6'; did you mean qwen3-0\.6b"):
            architecture("qwen3-0.6")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "mamba"}, "unsupported architecture 'mamba'; supported are llama, mistral, qwen2, qwen3"),
        ],
    )
    def test_what_the_shape_cannot_count_is_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            Shape.from_config(architecture("tiny") | change)

    def test_a_missing_size_is_named(self) -> None:
        config = {key: value for key, value in architecture("tiny").items() if key != "num_hidden_layers"}
        with pytest.raises(CheckpointError, match=r"config\.json lacks 'num_hidden_layers'"):
            Shape.from_config(config)

"""The roofline: hand-worked seconds on a machine of round numbers, and the shapes of its curves."""

import dataclasses
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.decoder import Decoder
from scaling.engines.base import Request
from scaling.engines.local import LocalEngine
from scaling.predict.roofline import (
    KERNELS_A_LAYER,
    KERNELS_A_PASS,
    Machine,
    Precision,
    Roofline,
    pairs,
)
from scaling.predict.shape import Shape, architecture
from scaling.thinking import Delethink, LongCoT, Segment

K = 1024
TINY = Shape.from_config(architecture("tiny"))
CPU = Machine(30e9, 15e9, 130e9, 5e-6)
DISPATCH = (2 * KERNELS_A_LAYER + KERNELS_A_PASS) * 5e-6  # TINY has two layers


ON_CPU = Roofline(TINY, CPU, Precision.of("float32"))


def decode(roofline: Roofline, contexts: list[int]) -> float:
    return float(roofline.decode(len(contexts), sum(contexts)).total)


def prefill(roofline: Roofline, new: int, past: int = 0) -> float:
    return float(roofline.prefill(new, past).total)


class TestByHand:
    def test_a_decode_step(self) -> None:
        """TINY in fp32: 2 × (4·256² + 3·256·1024) + 256·1024 = 2,359,296 weights; 2 layers × 2 × 256 × 4 = 4096 bytes
        of KV a token. Two rows of 3000 and 5000 tokens read 9.4 MB at 30 GB/s and 32.8 MB at 15 GB/s."""
        expected = DISPATCH + 2_359_296 * 4 / 30e9 + 8000 * 4096 / 15e9
        assert decode(ON_CPU, [3000, 5000]) == pytest.approx(expected, rel=1e-12)

    def test_many_rows_wait_for_arithmetic(self) -> None:
        """Each row brings 2 FLOPs a weight, while the weights are read once: at 64 rows the products rule."""
        expected = DISPATCH + 64 * 2 * 2_359_296 / 130e9 + 64 * 10 * 4096 / 15e9
        assert decode(ON_CPU, [10] * 64) == pytest.approx(expected, rel=1e-12)

    def test_seconds_are_told_apart_by_what_rules_them(self) -> None:
        few, many = ON_CPU.decode(1, 10), ON_CPU.decode(64, 640)
        assert few.compute == 0
        assert few.memory == pytest.approx(2_359_296 * 4 / 30e9 + 10 * 4096 / 15e9)
        assert many.compute == pytest.approx(64 * 2 * 2_359_296 / 130e9)
        assert few.overhead == many.overhead == pytest.approx(DISPATCH)

    def test_half_the_bytes_half_the_reading(self) -> None:
        free = dataclasses.replace(CPU, seconds_per_kernel=0.0, flops_per_s=1e18)
        full, half = (decode(Roofline(TINY, free, Precision.of(dtype)), [4096]) for dtype in ("float32", "bfloat16"))
        assert half == pytest.approx(full / 2, rel=1e-12)

    def test_weights_and_kv_have_each_their_type(self) -> None:
        free = dataclasses.replace(CPU, seconds_per_kernel=0.0, flops_per_s=1e18)
        both = Roofline(TINY, free, Precision("float32", "float32", "bfloat16"))
        assert decode(both, [4096]) == pytest.approx(2_359_296 * 4 / 30e9 + 4096 * 2048 / 15e9, rel=1e-12)

    def test_a_prefill(self) -> None:
        """1000 tokens, logits of the last: 2·2,097,152 FLOPs a token, 4·2·256 a pair; the head reads its weights."""
        flops = 1000 * 2 * 2_097_152 + 4 * 2 * 256 * 1000 * 1001 / 2
        assert prefill(ON_CPU, 1000) == pytest.approx(DISPATCH + flops / 130e9 + 256 * 1024 * 4 / 30e9, rel=1e-12)

    def test_a_prefill_of_one_token_reads_the_weights_and_its_keys(self) -> None:
        expected = DISPATCH + 2_359_296 * 4 / 30e9 + 4096 / 15e9
        assert prefill(ON_CPU, 1) == pytest.approx(expected, rel=1e-12)

    def test_what_is_cached_is_read_but_not_computed(self) -> None:
        expected = DISPATCH + 2_359_296 * 4 / 30e9 + 1001 * 4096 / 15e9
        assert prefill(ON_CPU, 1, past=1000) == pytest.approx(expected, rel=1e-12)

    def test_an_engine_works_for_every_step_and_every_row(self) -> None:
        busy = dataclasses.replace(CPU, seconds_per_step=1e-3, seconds_per_row=1e-5)
        extra = decode(Roofline(TINY, busy, Precision.of("float32")), [10] * 4) - decode(ON_CPU, [10] * 4)
        assert extra == pytest.approx(1e-3 + 4e-5, rel=1e-9)


def test_flops_are_the_seconds_of_a_machine_of_one_flop_a_second() -> None:
    """The kernels together do what the shape counts: causal, of every family."""
    counter = Machine(float("inf"), float("inf"), 1.0, 0.0)
    for name in ("tiny", "r1-distill-qwen-1.5b", "gpt-oss-20b", "gemma-3-4b", "qwen3-30b-a3b"):
        shape = Shape.from_config(architecture(name))
        roofline = Roofline(shape, counter)
        assert float(roofline.prefill(700, 300).total) == pytest.approx(
            shape.forward_flops(700, 300, logits=1), rel=1e-9
        )
        assert float(roofline.decode(1, 900).total) == pytest.approx(shape.forward_flops(1, 899), rel=1e-9)
        trained = [Segment(0, 500, 800), Segment(0, 600, 200)]
        assert float(roofline.logprob(trained).total) == pytest.approx(shape.logprob_flops(trained), rel=1e-9)


@given(st.integers(0, 300), st.integers(0, 300), st.one_of(st.none(), st.integers(1, 200)))
def test_pairs_are_those_of_a_dense_mask(new: int, past: int, window: int | None) -> None:
    query, key = np.arange(past, past + new)[:, None], np.arange(past + new)[None, :]
    seen = (key <= query) & (key > query - (window or 10**6))
    assert float(pairs(new, past, window)) == seen.sum()


class TestParallelRanks:
    SHAPE = Shape.from_config(architecture("qwen3-0.6b"))  # 8 KV heads

    def test_share_weights_and_kv_heads(self) -> None:
        one, four = (
            Roofline(self.SHAPE, dataclasses.replace(CPU, seconds_per_kernel=0.0), tensor_parallel=n) for n in (1, 4)
        )
        assert decode(four, [5000]) == pytest.approx(decode(one, [5000]) / 4, rel=1e-9)

    def test_but_never_one_head(self) -> None:
        free = dataclasses.replace(CPU, seconds_per_kernel=0.0, bandwidth_bytes_per_s=1e30, flops_per_s=1e30)
        eight, sixteen = (Roofline(self.SHAPE, free, tensor_parallel=n) for n in (8, 16))
        assert decode(sixteen, [5000]) == pytest.approx(decode(eight, [5000]), rel=1e-9)

    def test_exchange_activations_twice_a_layer(self) -> None:
        linked = dataclasses.replace(CPU, link_bytes_per_s=1e9, seconds_per_collective=1e-5)
        seconds = Roofline(self.SHAPE, linked, tensor_parallel=4).decode(2, 10)
        sent = 2 * 3 / 4 * 2 * 1024 * 2  # 2(n−1)/n of two rows of 1024 bfloat16 numbers
        assert seconds.link == pytest.approx(28 * 2 * (1e-5 + sent / 1e9), rel=1e-9)


@given(
    segments=st.lists(st.builds(Segment, st.integers(0, 50), st.integers(1, 50), st.integers(1, 60)), max_size=4),
    rows=st.integers(1, 5),
)
def test_a_rollout_is_its_prefills_and_its_decode_steps(segments: list[Segment], rows: int) -> None:
    stepwise = 0.0
    for s in segments:
        stepwise += rows * prefill(ON_CPU, s.prefill, s.reused)
        for step in range(1, s.decode):
            stepwise += decode(ON_CPU, [s.prompt + step] * rows)
    assert float(ON_CPU.rollout(segments, rows).total) == pytest.approx(stepwise, rel=1e-9)


def test_an_update_is_three_forwards_or_four_with_recompute() -> None:
    segments = Delethink(1024, 512, 3, head=100).schedule(16, [1024, 512, 512])
    forward = float(ON_CPU.logprob(segments).total)
    assert forward > TINY.logprob_flops(segments) / CPU.flops_per_s
    assert float(ON_CPU.update(segments).total) == pytest.approx(4 * forward)
    assert float(ON_CPU.update(segments, recompute=False).total) == pytest.approx(3 * forward)


@pytest.mark.parametrize("rows", [1, 4])
def test_longcot_bends_and_delethink_does_not(rows: int) -> None:
    """Second differences of seconds over equally spaced lengths at chunk boundaries: positive, and zero."""
    lengths = [K * n for n in range(1, 9)]

    def curve(environment: type) -> np.ndarray:
        made = [LongCoT(n) if environment is LongCoT else Delethink.for_length(n, 1024, 512, head=100) for n in lengths]
        return np.array(
            [
                float(ON_CPU.rollout(e.schedule(16, e.expected_lengths(16, n)), rows).total)
                for e, n in zip(made, lengths, strict=True)
            ]
        )

    longcot, delethink = curve(LongCoT), curve(Delethink)
    attention = rows * 4096 / 15e9 * K**2
    assert np.diff(longcot, 2) == pytest.approx(attention, rel=1e-6)
    assert np.diff(delethink, 2) == pytest.approx(0, abs=1e-9 * delethink[-1])
    assert longcot[-1] > delethink[-1]


def test_96k_is_costed_in_a_blink() -> None:
    environments = LongCoT(96 * K), Delethink.for_length(96 * K, 1024, 512, head=100)
    start = time.process_time()
    for e in environments:
        ON_CPU.rollout(e.schedule(16, e.expected_lengths(16, 96 * K)), 4)
    assert time.process_time() - start < 0.1


VIEWS = {
    "alias", "as_strided", "chunk", "detach", "detach_", "expand", "lift_fresh", "permute",
    "reshape", "resolve_conj", "resolve_neg", "select", "slice", "split", "split_with_sizes", "squeeze",
    "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip


class Kernels(TorchDispatchMode):
    """Counts what torch dispatches; a view, which touches no data, as a fifth."""

    count = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 0.2 if function.__name__.split(".")[0] in VIEWS else 1.0
        return function(*args, **(kwargs or {}))


def test_kernels_are_about_what_our_own_engine_dispatches() -> None:
    """Between two thirds and three halves: the engine may gain and lose a kernel without the model's noticing."""

    def kernels(layers: int) -> float:
        config = architecture("tiny") | {"num_hidden_layers": layers}
        engine = LocalEngine(Decoder.from_config(config, dtype=torch.float32, device="cpu", seed=0), kv_bytes=2**24)
        for seed in range(4):
            engine.submit(Request([1] * 200, 50, ignore_eos=True, seed=seed))
        engine.step()
        with Kernels() as counted:
            engine.step()
        engine.close()
        return counted.count

    two, three = kernels(2), kernels(3)
    assert 2 / 3 < (three - two) / KERNELS_A_LAYER < 3 / 2
    assert 2 / 3 < (two - 2 * (three - two)) / KERNELS_A_PASS < 3 / 2


def test_it_needs_no_torch() -> None:
    code = "import sys, scaling.predict.roofline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

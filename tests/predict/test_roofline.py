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
    decode_seconds,
    logprob_seconds,
    prefill_seconds,
    rollout_seconds,
    update_seconds,
)
from scaling.predict.shape import Shape, architecture
from scaling.thinking import Delethink, LongCoT, Segment

K = 1024
TINY = Shape.from_config(architecture("tiny"))
CPU = Machine(30e9, 15e9, 130e9, 5e-6)
DISPATCH = (2 * KERNELS_A_LAYER + KERNELS_A_PASS) * 5e-6  # TINY has two layers


def test_a_decode_step_worked_by_hand() -> None:
    """TINY in fp32: 2 × (4·256² + 3·256·1024) + 256·1024 = 2,359,296 weights; 2 layers × 2 × 256 × 4 = 4096 bytes of KV
    a token. Two rows of 3000 and 5000 tokens read 9.4 MB at 30 GB/s and 32.8 MB at 15 GB/s."""
    expected = DISPATCH + 2_359_296 * 4 / 30e9 + 8000 * 4096 / 15e9
    assert decode_seconds(TINY, [3000, 5000], "float32", CPU) == pytest.approx(expected, rel=1e-12)


def test_many_rows_are_bound_by_flops() -> None:
    """Each row brings 2 FLOPs a weight, while the weights are read once: at 64 rows the products rule."""
    expected = DISPATCH + 64 * 2 * 2_359_296 / 130e9 + 64 * 10 * 4096 / 15e9
    assert decode_seconds(TINY, [10] * 64, "float32", CPU) == pytest.approx(expected, rel=1e-12)


def test_half_the_bytes_half_the_reading() -> None:
    free = dataclasses.replace(CPU, seconds_per_kernel=0.0, flops_per_s=1e18)
    full, half = (decode_seconds(TINY, [4096], dtype, free) for dtype in ("float32", "bfloat16"))
    assert half == pytest.approx(full / 2, rel=1e-12)


def test_a_prefill_worked_by_hand() -> None:
    """1000 tokens, logits of the last: 2·2,097,152 FLOPs a token, 2·256·1024 for the logits, 4·2·256 a pair."""
    flops = 1000 * 2 * 2_097_152 + 2 * 256 * 1024 + 4 * 2 * 256 * 1000 * 1001 / 2
    expected = DISPATCH + flops / 130e9
    assert prefill_seconds(TINY, 1000, 1, "float32", CPU) == pytest.approx(expected, rel=1e-12)
    assert prefill_seconds(TINY, 1000, 3, "float32", CPU) == pytest.approx(3 * expected, rel=1e-12)


def test_a_single_token_prefill_reads_the_weights() -> None:
    expected = DISPATCH + 2_359_296 * 4 / 30e9
    assert prefill_seconds(TINY, 1, 1, "float32", CPU) == pytest.approx(expected, rel=1e-12)


@given(
    segments=st.lists(st.builds(Segment, st.integers(0, 50), st.integers(1, 50), st.integers(1, 60)), max_size=4),
    rows=st.integers(1, 5),
)
def test_a_rollout_is_its_prefills_and_its_decode_steps(segments: list[Segment], rows: int) -> None:
    stepwise = 0.0
    for s in segments:
        stepwise += prefill_seconds(TINY, s.prefill, rows, "float32", CPU, s.reused)
        for step in range(1, s.decode):
            stepwise += decode_seconds(TINY, [s.prompt + step] * rows, "float32", CPU)
    assert rollout_seconds(TINY, segments, rows, "float32", CPU) == pytest.approx(stepwise, rel=1e-9)


def test_an_update_is_three_forwards_or_four_with_recompute() -> None:
    segments = Delethink(1024, 512, 3, head=100).schedule(16, [1024, 512, 512])
    forward = logprob_seconds(TINY, segments, "float32", CPU)
    assert forward > TINY.logprob_flops(segments) / CPU.flops_per_s
    assert update_seconds(TINY, segments, "float32", CPU) == 4 * forward
    assert update_seconds(TINY, segments, "float32", CPU, recompute=False) == 3 * forward


@pytest.mark.parametrize("rows", [1, 4])
def test_longcot_bends_and_delethink_does_not(rows: int) -> None:
    """Second differences of seconds over equally spaced lengths at chunk boundaries: positive, and zero."""
    lengths = [K * n for n in range(1, 9)]

    def curve(environment: type) -> np.ndarray:
        made = [LongCoT(n) if environment is LongCoT else Delethink.for_length(n, 1024, 512, head=100) for n in lengths]
        return np.array(
            [
                rollout_seconds(TINY, e.schedule(16, e.expected_lengths(16, n)), rows, "float32", CPU)
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
        rollout_seconds(TINY, e.schedule(16, e.expected_lengths(16, 96 * K)), 4, "float32", CPU)
    assert time.process_time() - start < 0.1


def test_published_decode_speed_of_llama_2_7b_on_an_a100() -> None:
    """gpt-fast: 104.9 tokens/s at batch 1 in bf16 is about 69 % of an A100-80GB's 2.039 TB/s of weight reads."""
    llama = Shape.from_config(
        architecture("tiny") | {
            "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 32000,
        }
    )  # fmt: skip
    a100 = Machine(2.039e12 * 0.69, 2.039e12 * 0.69, 312e12, 0.0)
    assert 1 / decode_seconds(llama, [128], "bfloat16", a100) == pytest.approx(104.9, rel=0.02)


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

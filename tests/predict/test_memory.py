"""What takes memory, on GPUs that generate and on GPUs that train."""

from __future__ import annotations

import pytest

from scaling.predict import memory
from scaling.predict.roofline import Precision
from scaling.predict.shape import Shape, architecture

R1 = Shape.from_config(architecture("r1-distill-qwen-1.5b"))
LLAMA = Shape.from_config(architecture("llama-3.1-70b"))
BFLOAT16 = Precision.of("bfloat16")


def test_serving_is_weights_workspace_logits_and_keys_and_values(make_setup) -> None:
    """1.777 G parameters of 2 bytes; float32 logits of 256 rows of 151,936; 90 % of the GPU in all."""
    setup = make_setup(max_sequences=256)
    found = memory.serving(R1, setup, 1)
    assert found.weights == 2 * 1_777_088_000
    assert found.reserved == memory.WORKSPACE_BYTES + 4 * 256 * 151_936
    assert found.weights + found.reserved + found.kv == pytest.approx(0.9 * setup.device.memory_bytes)


def test_ranks_share_weights_and_heads_but_never_one_head() -> None:
    """R1-Distill-Qwen-1.5B has two KV heads."""
    one, two, four = (memory.kv_bytes(R1, 1000, BFLOAT16, ranks) for ranks in (1, 2, 4))
    assert one == 1000 * 28_672
    assert one == 2 * two == 2 * four


def test_training_states_are_sixteen_bytes_a_parameter_sharded() -> None:
    assert memory.training_states(R1, 8) == 16 * 1_777_088_000 / 8


def test_recompute_keeps_one_input_a_layer() -> None:
    again, kept = (memory.training(R1, 8, 65536, recompute) for recompute in (True, False))
    assert again < kept / 3
    longer = memory.training(R1, 8, 131072, True)
    assert longer - again == pytest.approx(2 * 65536 * (28 * 1536 + 12 * 1536 + 4 * 1536 + 4 * 8960))

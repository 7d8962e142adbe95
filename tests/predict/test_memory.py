"""What fits in memory, what does not, and what would."""

from __future__ import annotations

import pytest

from scaling.errors import UsageError
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


class TestReplicas:
    def test_every_size_that_holds_the_weights_and_one_trace(self, make_setup) -> None:
        assert memory.replica_sizes(R1, make_setup(), 8192) == [1, 2, 4, 8]
        assert memory.replica_sizes(LLAMA, make_setup(), 8192) == [2, 4, 8]

    def test_the_one_that_was_asked_for(self, make_setup) -> None:
        assert memory.replica_sizes(LLAMA, make_setup(tensor_parallel=8), 8192) == [8]

    def test_weights_that_do_not_fit_say_what_would(self, make_setup) -> None:
        with pytest.raises(UsageError, match=r"141 GB of bfloat16 weights .*--tensor-parallel 2 --gpus 2"):
            memory.replica_sizes(LLAMA, make_setup(gpus=1), 8192)
        with pytest.raises(UsageError, match=r"would fit: --tensor-parallel 2$"):
            memory.replica_sizes(LLAMA, make_setup(tensor_parallel=1), 8192)
        with pytest.raises(UsageError, match="--weight-dtype float8"):
            memory.replica_sizes(Shape.from_config(architecture("qwen3-32b")), make_setup("l40s", gpus=1), 2048)

    def test_so_do_the_keys_and_values_of_one_trace(self, make_setup) -> None:
        with pytest.raises(UsageError) as error:
            memory.replica_sizes(R1, make_setup(gpus=1), 4_000_000)
        assert "one trace of 4,000,000 tokens" in str(error.value)
        assert "--kv-dtype float8" in str(error.value)
        assert "contexts of at most about 2,250,000 tokens" in str(error.value)

    def test_what_they_say_does_fit(self, make_setup) -> None:
        assert memory.replica_sizes(R1, make_setup(gpus=1), 2_250_000) == [1]
        assert memory.replica_sizes(LLAMA, make_setup(gpus=2), 8192) == [2]


class TestSequences:
    def test_one_gpu_holds_a_short_one(self, make_setup) -> None:
        assert memory.sequence_gpus(R1, make_setup(), 8, 24576) == 1

    def test_a_long_one_is_split_over_as_few_as_hold_it(self, make_setup) -> None:
        gemma, setup = Shape.from_config(architecture("gemma-3-27b")), make_setup(gpus=16)
        split = memory.sequence_gpus(gemma, setup, 16, 98_432)
        assert 1 < split <= 16
        assert memory.training(gemma, 16, 98_432 // split, True) <= setup.device.memory_bytes
        assert memory.training(gemma, 16, 98_432 // (split // 2), True) > setup.device.memory_bytes

    def test_states_that_do_not_fit_ask_for_gpus(self, make_setup) -> None:
        with pytest.raises(UsageError, match=r"70\.6 G parameters .* would fit: --gpus 16"):
            memory.sequence_gpus(LLAMA, make_setup(), 8, 8192)
        assert memory.sequence_gpus(LLAMA, make_setup(gpus=16), 16, 8192) >= 1

"""What fits, what does not, and what would."""

from __future__ import annotations

import re

import pytest

from scaling.errors import UsageError
from scaling.predict.capacity import MICRO_BATCH_TOKENS, replica_sizes, training_layout
from scaling.predict.memory import training
from scaling.predict.shape import Shape, architecture

R1 = Shape.from_config(architecture("r1-distill-qwen-1.5b"))
LLAMA = Shape.from_config(architecture("llama-3.1-70b"))


class TestReplicas:
    def test_every_size_that_divides_the_heads_and_holds_the_weights_and_one_trace(self, make_setup) -> None:
        """R1-Distill-Qwen-1.5B has 12 heads, Llama-3.1-70B 64."""
        assert replica_sizes(R1, make_setup(), 8192) == [1, 2, 4]
        assert replica_sizes(LLAMA, make_setup(), 8192) == [2, 4, 8]

    def test_some_gpus_may_be_left_over(self, make_setup) -> None:
        assert replica_sizes(LLAMA, make_setup(gpus=9), 8192) == [2, 4, 8]

    def test_the_one_that_was_asked_for(self, make_setup) -> None:
        assert replica_sizes(LLAMA, make_setup(tensor_parallel=8), 8192) == [8]
        with pytest.raises(UsageError, match="8 does not divide 12 attention heads; possible: 1, 2, 4"):
            replica_sizes(R1, make_setup(tensor_parallel=8), 8192)

    def test_weights_that_do_not_fit_say_what_would(self, make_setup) -> None:
        with pytest.raises(UsageError, match=r"141\.1 GB of bfloat16 weights .* would fit: --gpus 16$"):
            replica_sizes(LLAMA, make_setup(gpus=1), 8192)
        with pytest.raises(UsageError, match=r"would fit: --tensor-parallel 2 --gpus 16$"):
            replica_sizes(LLAMA, make_setup(tensor_parallel=1), 8192)
        with pytest.raises(UsageError, match="--weight-dtype float8"):
            replica_sizes(Shape.from_config(architecture("qwen3-32b")), make_setup("l40s", gpus=1), 2048)

    def test_so_do_the_keys_and_values_of_one_trace(self, make_setup) -> None:
        with pytest.raises(UsageError) as error:
            replica_sizes(R1, make_setup(gpus=1), 4_000_000)
        assert "one trace of 4,000,000 tokens" in str(error.value)
        assert "--kv-dtype float8" in str(error.value)
        assert "contexts of at most about 2,250,000 tokens" in str(error.value)
        assert replica_sizes(R1, make_setup(gpus=1), 2_250_000) == [1]

    def test_so_do_logits_of_too_many_sequences(self, make_setup) -> None:
        with pytest.raises(UsageError, match=r"logits of 1,000,000 sequences .* fewer --max-sequences"):
            replica_sizes(R1, make_setup(max_sequences=1_000_000), 8192)

    @pytest.mark.parametrize("placement", ["colocated", "split", "asynchronous"])
    @pytest.mark.parametrize("model", ["llama-3.3-70b", "qwen3-32b", "deepseek-r1", "gpt-oss-120b"])
    @pytest.mark.parametrize("gpus", [2, 7, 8])
    def test_the_gpus_that_they_ask_for_are_enough(self, make_plan, model: str, gpus: int, placement: str) -> None:
        for _ in range(3):
            try:
                plan = make_plan("delethink", 8192, model=model, gpus=gpus, placement=placement)
            except UsageError as error:
                [asked] = re.findall(r"--gpus (\d+)", str(error))
                if int(asked) <= gpus:
                    break
                gpus = int(asked)
            else:
                assert plan.total_gpu_hours > 0
                return
        pytest.fail(f"{gpus} GPUs were asked for and are not enough")


class TestTraining:
    def test_one_gpu_holds_a_short_sequence(self, make_setup) -> None:
        assert training_layout(R1, make_setup(), 8, 24576) == (1, MICRO_BATCH_TOKENS)

    def test_a_sequence_longer_than_a_micro_batch_is_one(self, make_setup) -> None:
        assert training_layout(R1, make_setup(), 8, 98304) == (1, 98304)

    def test_a_long_one_is_split_over_as_few_as_hold_it(self, make_setup) -> None:
        gemma, setup = Shape.from_config(architecture("gemma-3-27b")), make_setup(gpus=16)
        split, batch = training_layout(gemma, setup, 16, 98_432)
        assert 1 < split <= 16
        assert batch >= 98_432 // split
        assert training(gemma, 16, batch, True) <= setup.device.memory_bytes
        assert training(gemma, 16, 98_432 // (split // 2), True) > setup.device.memory_bytes

    def test_a_full_memory_makes_micro_batches_small(self, make_setup) -> None:
        setup = make_setup(gpus=15)
        _, batch = training_layout(LLAMA, setup, 15, 4096)
        assert 4096 / 15 <= batch < MICRO_BATCH_TOKENS
        assert training(LLAMA, 15, batch, True) <= setup.device.memory_bytes

    def test_states_that_do_not_fit_ask_for_gpus(self, make_setup) -> None:
        with pytest.raises(UsageError, match=r"70\.6 G parameters .* would fit: --gpus 16"):
            training_layout(LLAMA, make_setup(), 8, 8192)
        assert training_layout(LLAMA, make_setup(gpus=16), 16, 8192)[0] >= 1

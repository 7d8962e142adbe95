"""What a run asks vLLM for, where vLLM itself need not be there."""

from scaling.measure.vllm import BLOCK_TOKENS, kv_bytes
from scaling.predict.shape import Shape, architecture


def test_devices_share_the_kv_memory_as_far_as_there_are_kv_heads() -> None:
    """Beyond, each holds a whole head, as vLLM does: else a run on 8 GPUs has room for a quarter of its contexts."""
    shape = Shape.from_config(architecture("r1-distill-qwen-1.5b"))
    assert shape.kv_heads == 2
    one = 4 * (1000 // BLOCK_TOKENS + 2) * BLOCK_TOKENS * shape.kv_bytes_per_token("bfloat16")
    each = {count: kv_bytes(shape, "bfloat16", 4, 1000, devices=count) for count in (1, 2, 8)}
    assert each == {1: one, 2: one // 2, 8: one // 2}

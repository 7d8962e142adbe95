"""What sampling an arm took."""

from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.predict.shape import architecture
from studies.arm_costs import Watched


class Apart(LocalEngine):
    """As vLLM on two GPUs: the model is in other processes."""

    apart = True


def test_memory_is_not_claimed_where_the_model_is_in_other_processes() -> None:
    model = Decoder.from_config(architecture("tiny"))
    for engine, known in ((LocalEngine(model, kv_bytes=1 << 20), True), (Apart(model, kv_bytes=1 << 20), False)):
        with Watched(engine, 2) as watched:
            pass
        assert (watched.telemetry.peak_memory_bytes is not None) is known
        assert watched.telemetry.gpus == 2

"""What real software gets out of a datasheet: general shares, and the machine that they make of a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaling.errors import UsageError
from scaling.predict.hardware import Gpu
from scaling.predict.roofline import Machine
from scaling.predict.setup import Device

NETWORK_BYTES_PER_S = 50e9
"""Between nodes, a GPU and direction: 400 Gb/s, one NIC a GPU, as in the reference designs of H100 clusters."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of a datasheet's rates, and the times that no datasheet has.

    `bandwidth`: of memory, streaming weights; `kv_bandwidth`: gathering pages of keys and values; `matmul` and
    `attention`: of the matrix rate, averaged over a layer's products and over causal attention, on a GPU whose memory
    and power kept up with any arithmetic; `halved_at`: 16-bit FLOPs a byte of memory bandwidth at which a GPU gets half
    of these two. `link`: of the interconnect. `seconds_per_step` and `seconds_per_row`: an engine's scheduling and
    output handling.
    """

    bandwidth: float
    kv_bandwidth: float
    matmul: float
    attention: float
    link: float
    seconds_per_kernel: float
    kernels_a_layer: float
    kernels_a_pass: float
    seconds_per_step: float
    seconds_per_row: float
    seconds_per_collective: float
    halved_at: float = math.inf

    def machine(self, gpu: Gpu, dtype: str, gpus: int = 1) -> Machine:
        """The machine that `gpu` is for products of `dtype`, one of `gpus` in a node or in several.

        Raises `UsageError` where the GPU has no arithmetic of that type.
        """
        if dtype not in gpu.flops_per_s:
            raise UsageError(
                f"{gpu.title} has no {dtype} arithmetic; it has {', '.join(gpu.flops_per_s)}: choose one of them with "
                "--activation-dtype"
            )
        network = min(gpu.link_bytes_per_s, NETWORK_BYTES_PER_S) if gpus > gpu.gpus_per_node else None
        balance = gpu.flops_per_s["float16"] / gpu.bandwidth_bytes_per_s
        rate = gpu.flops_per_s[dtype] / (1 + balance / self.halved_at)
        return Machine(
            bandwidth_bytes_per_s=self.bandwidth * gpu.bandwidth_bytes_per_s,
            kv_bandwidth_bytes_per_s=self.kv_bandwidth * gpu.bandwidth_bytes_per_s,
            flops_per_s=self.matmul * rate,
            attention_flops_per_s=self.attention * rate,
            activation_bandwidth_bytes_per_s=self.bandwidth * gpu.bandwidth_bytes_per_s,
            seconds_per_kernel=self.seconds_per_kernel,
            kernels_a_layer=self.kernels_a_layer,
            kernels_a_pass=self.kernels_a_pass,
            seconds_per_step=self.seconds_per_step,
            seconds_per_row=self.seconds_per_row,
            link_bytes_per_s=self.link * gpu.link_bytes_per_s,
            network_bytes_per_s=network and self.link * network,
            node=gpu.gpus_per_node,
            seconds_per_collective=self.seconds_per_collective,
        )


_HALVED_AT = 420

SERVING = Efficiency(
    bandwidth=0.85,
    kv_bandwidth=0.85,
    matmul=0.95,
    attention=0.70,
    halved_at=_HALVED_AT,
    link=0.75,
    seconds_per_kernel=2.5e-6,
    kernels_a_layer=11,
    kernels_a_pass=10,
    seconds_per_step=1e-3,
    seconds_per_row=10e-6,
    seconds_per_collective=10e-6,
)
"""An engine that replays graphs, as vLLM, SGLang and TensorRT-LLM do. Each number, and what it rests on:

`bandwidth`: what twice the tensor parallel ranks save gpt-fast a token on A100s, 0.82 (Llama-2-70B, 2 → 4 → 8 ranks);
an RTX 4090 gets 0.90. `kv_bandwidth`: FlashMLA's 3000 GB/s on an H800 is 0.90 of it with rows in step, and
TensorRT-LLM's long outputs at full load fit 0.8 to 0.9. `matmul`, `halved_at`: as in training, whose products are as
large. `attention`: a FlashAttention-2 or 3 forward pass over a few thousand tokens. `link`: of NVLink or a network,
NCCL's bus bandwidth for large messages. `seconds_per_kernel`, `kernels_a_layer`: projections, norms, rotation, cache
write, attention, activation and residuals of a captured layer, the tail of one kernel not overlapping the head of the
next: 1.6 ms of Llama-2-7B's 9.5 ms at one row. `seconds_per_step`, `seconds_per_row`: scheduling and detokenising,
most of it behind the GPU's work: 6.4 ms a token of a 32B on 8 ranks leave 1 ms, and TensorRT-LLM's batches of hundreds
fit 10 µs a row; vLLM behind its HTTP server takes 40 µs. `seconds_per_collective`: two a layer
part gpt-fast's 8 ranks from one."""

TRAINING = Efficiency(
    bandwidth=0.85,
    kv_bandwidth=0.85,
    matmul=0.95,
    attention=0.60,
    halved_at=_HALVED_AT,
    link=0.75,
    seconds_per_kernel=5e-6,
    kernels_a_layer=40,
    kernels_a_pass=40,
    seconds_per_step=0.0,
    seconds_per_row=0.0,
    seconds_per_collective=20e-6,
)
"""Eager training under FSDP. What it rests on:

`matmul`, `halved_at`: the same software (MPT, 1B to 70B, sequences of 512 to 2048) uses 0.6 of an A100's arithmetic
and 0.42 of an H100's, which has twice the arithmetic for a byte of bandwidth and less power for each FLOP; beside the
traffic of activations, which is counted apart, that is 0.70 (at 153 FLOPs a byte) and 0.56 (at 295) of the peak while
a product runs. A straight line through the inverse of the two leaves 0.95 where memory never lags, and half at 420.
`attention`: at 2.5 times the forward FLOPs backward, where 2 are counted, FlashAttention-2 gets 0.56 of an A100 and
0.30 of an H100, FlashAttention-3 about 0.50 of an H100, MPT's older kernel 0.29 and 0.18: 0.44 and 0.35 are between.
`seconds_per_kernel`: a launch from Python that runs ahead of the GPU most of the time."""


def device(gpu: Gpu, activations: str, gpus: int) -> Device:
    """`gpu` as a device to plan for, one of `gpus`, with the general efficiencies; training is in bfloat16, or in
    float16 where the GPU has no bfloat16. Raises `UsageError` where it has no arithmetic of type `activations`."""
    half = "bfloat16" if "bfloat16" in gpu.flops_per_s else "float16"
    return Device(
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        watts=gpu.watts,
        serving=SERVING.machine(gpu, activations, gpus),
        training=TRAINING.machine(gpu, half, gpus),
    )

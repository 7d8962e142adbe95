"""What real software gets out of a datasheet: general shares, and the machine that they make of a GPU."""

from __future__ import annotations

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
    `attention`: of the matrix rate, averaged over a layer's products and over causal attention; `link`: of the
    interconnect. `seconds_per_step` and `seconds_per_row`: an engine's scheduling and output handling.
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

    def machine(self, gpu: Gpu, dtype: str, gpus: int = 1) -> Machine:
        """The machine that `gpu` is for products of `dtype`, one of `gpus` that work together.

        Raises `UsageError` where the GPU has no arithmetic of that type.
        """
        if dtype not in gpu.flops_per_s:
            raise UsageError(
                f"{gpu.title} has no {dtype} arithmetic; it has {', '.join(gpu.flops_per_s)}: choose one of them with "
                "--activation-dtype"
            )
        link = gpu.link_bytes_per_s if gpus <= gpu.gpus_per_node else min(gpu.link_bytes_per_s, NETWORK_BYTES_PER_S)
        rate = gpu.flops_per_s[dtype]
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
            link_bytes_per_s=self.link * link,
            seconds_per_collective=self.seconds_per_collective,
        )


SERVING = Efficiency(
    bandwidth=0.85,
    kv_bandwidth=0.80,
    matmul=0.60,
    attention=0.40,
    link=0.75,
    seconds_per_kernel=2.5e-6,
    kernels_a_layer=11,
    kernels_a_pass=10,
    seconds_per_step=1e-3,
    seconds_per_row=5e-6,
    seconds_per_collective=10e-6,
)

TRAINING = Efficiency(
    bandwidth=0.85,
    kv_bandwidth=0.80,
    matmul=0.55,
    attention=0.35,
    link=0.75,
    seconds_per_kernel=5e-6,
    kernels_a_layer=40,
    kernels_a_pass=40,
    seconds_per_step=0.0,
    seconds_per_row=0.0,
    seconds_per_collective=20e-6,
)


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

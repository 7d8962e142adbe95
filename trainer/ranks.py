"""One trainer in several processes: who takes which part of the work, and how they share one policy."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from scaling.decoder import Decoder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process is number `rank` of `world`, on `device`. Without a `group` the policy is whole and float32.

    With one, FSDP2 shards it over the ranks: float32 parameters, gathered a layer at a time in the type to compute in.
    """

    rank: int
    world: int
    device: str
    group: dist.ProcessGroup | None

    @classmethod
    def join(cls, dtype: torch.dtype) -> Ranks:
        """The ranks that `torchrun` started, or this process alone."""
        world, local = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        if device != "cpu":
            torch.cuda.set_device(device)
        if world == 1 and dtype == torch.float32:
            return cls(0, 1, device, None)
        if not dist.is_initialized():
            backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
            if world > 1:
                dist.init_process_group(backend)
            else:
                dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
            atexit.register(_leave)
        return cls(dist.get_rank(), world, device, dist.group.WORLD)

    @property
    def lead(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This rank's part."""
        return work[self.rank :: self.world]

    def gather(self, done: Sequence[T]) -> list[T]:
        """What all ranks made of their shares, in the order of the whole."""
        if self.world == 1:
            return list(done)
        parts: list[Sequence[T]] = [()] * self.world
        dist.all_gather_object(parts, done)
        return [parts[i % self.world][i // self.world] for i in range(sum(map(len, parts)))]

    def told(self, value: T) -> T:
        """The lead's value; who asks waits until the lead has it."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def shard(self, policy: Decoder, dtype: torch.dtype) -> None:
        """Leaves of each parameter this rank's part of what the lead has."""
        if self.group is None:
            return
        for parameter in policy.parameters():
            dist.broadcast(parameter.data, src=0)
        mesh = init_device_mesh(self.device.partition(":")[0], (self.world,))
        # Inputs stay as they are: angles are float32 as where the policy is sampled, and torch 2.11 would cast what a
        # layer gets, but not when it is computed again.
        precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for module in (*policy.model.layers, policy):
            fully_shard(module, mesh=mesh, mp_policy=precision)
        # The decoder is entered here; its head stays gathered until the backward pass is through.
        register_fsdp_forward_method(policy, "hidden")


def _leave() -> None:
    if dist.is_initialized():  # vLLM, where it sampled here, took the group with it
        dist.destroy_process_group()
    # Gloo's threads outlive the group, and one that lets go of a tensor when Python has begun to end aborts the
    # process (pytorch/pytorch#179291): each gets its turn before.
    time.sleep(0.2)


def whole_weights(policy: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, gathered one at a time; all ranks have to iterate together."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for name, parameter in policy.named_parameters():
        yield name, whole(parameter.detach())


def whole(tensor: Tensor) -> Tensor:
    """The tensor of all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, full: Tensor) -> Any:
    """`full` on the device of `parameter`, and sharded as it is."""
    if not isinstance(parameter, DTensor):
        return full.to(parameter.device)
    placed = full.to(parameter.device_mesh.device_type)
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)

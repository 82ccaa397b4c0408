"""Several processes that train one network: who am I, and sums over all of us."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mesh.errors import InputError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of a run; alone unless `torchrun` started it."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def from_main(self, value: Any) -> Any:
        """What the main process holds; an InputError in its place is raised by every process."""
        if self.size > 1:
            box = [value]
            dist.broadcast_object_list(box, src=0, device=self.device)
            value = box[0]
        if isinstance(value, InputError):
            raise value
        return value

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


def join_world(device: torch.device) -> World:
    """The processes that `torchrun` started (gloo on the CPU, nccl on GPUs, one GPU each), or this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(device=device)
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} here): start "
                "torchrun with --nproc-per-node of at most that, or take --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


def leave_world(world: World) -> None:
    """Say goodbye to the others.

    What is left of the training in reference cycles goes first: a group that something still holds ends its threads
    only with the interpreter, which may abort the process then (pytorch issue 190489).
    """
    if world.size > 1 and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()

"""The ranks of one trainer as one: sums and broadcasts over gloo (CPU) or NCCL (GPU); a single rank needs neither."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others in a collective; a rank that dies ends the whole group much earlier."""


@dataclass(frozen=True)
class Ranks:
    """This rank among `world_size`. Collectives only inside a lease: between leases each rank waits for the supervisor alone."""

    rank: int
    world_size: int
    device: str

    def sum(self, values: Tensor) -> None:
        """In place; the same bits on every rank."""
        if self.world_size > 1:
            dist.all_reduce(values)

    def share(self, values: Tensor) -> None:
        """Rank 0's values on every rank, in place."""
        if self.world_size > 1:
            dist.broadcast(values, 0)

    def sum_gradients(self, parameters: list[torch.nn.Parameter], loss: Tensor) -> float:
        """Adds up every parameter's gradient, and the loss, in one all-reduce; returns the summed loss."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(part.reshape(-1) for part in parts), loss.detach().reshape(1)])
        self.sum(flat)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.grad = flat[start:end].view_as(parameter)
            start = end
        return float(flat[-1])


@contextmanager
def ranks(rank: int, world_size: int, device: str) -> Iterator[Ranks]:
    """Joins the group that torchrun's variables describe. Raises KeyError when they are missing."""
    if world_size == 1:
        yield Ranks(rank, world_size, device)
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name may resolve to an address that leads elsewhere
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    # FSDP2 goes here: a device mesh over these ranks, and `sum_gradients` falls away.
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=PATIENCE)
    try:
        yield Ranks(rank, world_size, device)
    finally:
        dist.destroy_process_group()

"""This module makes the ranks of one trainer a group: sums and broadcasts over gloo (CPU) or NCCL (GPU). A single rank needs neither."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=2)
"""A rank waits so long for the others in a collective. When a rank dies, the supervisor ends all of them much earlier."""


@dataclass(frozen=True)
class Ranks:
    """The group, seen from this rank. Collectives are for inside a lease: between leases each rank waits for the supervisor alone."""

    rank: int
    world_size: int
    device: str

    def sum(self, values: Tensor) -> None:
        """Adds up the ranks' values in place; every rank gets the same bits."""
        if self.world_size > 1:
            dist.all_reduce(values)

    def broadcast(self, values: Tensor) -> None:
        """Gives every rank the values of rank 0, in place."""
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
def join(rank: int, world_size: int, device: str) -> Iterator[Ranks]:
    """Joins the group that torchrun's variables describe. Raises KeyError when they are missing."""
    if world_size == 1:
        yield Ranks(rank, world_size, device)
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name may resolve to an address that leads elsewhere
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    # FSDP2 goes here: a device mesh over these ranks, and `sum_gradients` falls away.
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        yield Ranks(rank, world_size, device)
    finally:
        dist.destroy_process_group()

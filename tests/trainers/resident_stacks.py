"""Trainings whose tensors share memory in every way that stacks do, for `test_resident.py`; run as a script it is one of two gloo ranks.

A stack is a function that makes a model and an optimizer and returns what a mover is given, what happens in a lease, what happens between
leases, and what must be equal to never offloading, bit for bit.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from trainshed import storages
from trainshed.resident import Resident

GPU = 7
LEASES = 6


class Emptied(storages.DeviceMemory):
    """What is done on a GPU, done to host memory: every storage is on the device that is no host buffer of the mover."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.buffers: dict[int, Any] = {}
        self.pinned = 0

    def _is_on(self, storage: Any) -> bool:
        return storage._cdata not in self.buffers

    def _pinned(self, size: int) -> torch.Tensor:
        buffer = torch.empty(size, dtype=torch.uint8)
        self.buffers[buffer.untyped_storage()._cdata] = storages._weak(buffer.untyped_storage())
        self.pinned += 1
        return buffer

    def _settle(self) -> None: ...
    def _give_back(self) -> None: ...
    def _refuse_graphs(self) -> None: ...


def mover(kind: str) -> Any:
    """A mover by name: of a virtual GPU, or of a GPU as far as that can be had without one."""
    if kind == "virtual":
        return Resident(f"virtual:{GPU}")
    moves = Resident("cpu")
    moves._memory = Emptied()
    return moves


@dataclass
class Stack:
    owners: list[Any]
    lease: Callable[[int], None]
    result: Callable[[], Iterable[torch.Tensor]]
    between: Callable[[int], None] = field(default=lambda _lease: None)
    plain: bool = True
    """Whether everything may be read between leases: tensors inside other tensors may not, on a GPU."""


def measured() -> int:
    """Bytes of virtual GPU 7 in this process, as anyone outside sees them."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == f"/memfd:trainshed-gpu-{GPU} (deleted)":
                total += os.stat(f"/proc/self/fd/{name}").st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def train(make: Callable[[], Stack], moves: Any = None) -> list[str]:
    """A hash of everything after each lease."""
    torch.manual_seed(0)
    stack = make()
    if moves is not None:
        moves.add(*stack.owners)
    hashes = []
    for lease in range(LEASES):
        if moves is not None:
            moves.onload()
        stack.lease(lease)
        hashes.append(digest(stack.result()))
        if moves is not None:
            moves.offload()
            assert measured() == 0
            assert not stack.plain or digest(stack.result()) == hashes[-1]
        stack.between(lease)
    return hashes


def digest(tensors: Iterable[torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        sha.update(bytes(local.detach().contiguous().reshape(-1).view(torch.uint8).tolist()))
    return sha.hexdigest()[:16]


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Parameters, buffers, gradients and optimizer state."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.ndim]
    return [*model.parameters(), *model.buffers(), *grads, *state]


def data(seed: int, width: int = 24) -> torch.Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(seed))


def mlp(width: int = 24) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, width))


def simple(model: nn.Module, optimizer: torch.optim.Optimizer, *, set_to_none: bool = True, accumulate: int = 1) -> Stack:
    """Gradients live on when the lease ends: zero_grad comes before the next backward."""

    def lease(number: int) -> None:
        for micro in range(3):
            if (3 * number + micro) % accumulate == 0:
                optimizer.zero_grad(set_to_none=set_to_none)
            x = data(100 * number + micro)
            (model(x) - x).pow(2).mean().backward()
            if (3 * number + micro) % accumulate == accumulate - 1:
                optimizer.step()

    return Stack([model, optimizer], lease, lambda: everything(model, optimizer))


def adamw() -> Stack:
    model = mlp()
    return simple(model, torch.optim.AdamW(model.parameters(), lr=1e-2))


def momentum() -> Stack:
    model = mlp()
    return simple(model, torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9), set_to_none=False)


def accumulated() -> Stack:
    """Gradients are summed over micro-batches of several leases."""
    model = mlp()
    return simple(model, torch.optim.AdamW(model.parameters(), lr=1e-2), accumulate=4)


def lbfgs() -> Stack:
    """State in lists inside mappings."""
    model = nn.Linear(24, 24)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def lease(number: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(data(number)) - data(number)).pow(2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    return Stack([model, optimizer], lease, lambda: list(model.parameters()))


def tied() -> Stack:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(20, 24), mlp(), nn.Linear(24, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.embed(tokens)))

    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def lease(number: int) -> None:
        tokens = torch.randint(0, 20, (12,), generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), tokens).backward()
        optimizer.step()
        assert model.head.weight.data_ptr() == model.embed.weight.data_ptr()

    return Stack([model, optimizer], lease, lambda: everything(model, optimizer))


def sparse() -> Stack:
    model = nn.Embedding(20, 8, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def lease(number: int) -> None:
        if number % 2 == 0:
            optimizer.zero_grad()
        model(torch.tensor([number, 1, 2])).pow(2).sum().backward()
        optimizer.step()

    return Stack([model, optimizer], lease, lambda: [model.weight, model.weight.grad.coalesce().values()], plain=False)


def adapter() -> Stack:
    """LoRA: a frozen base with integer buffers (as 8-bit weights are kept), an adapter that learns."""

    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.randn(24, 24)
            self.register_buffer("scale", base.abs().amax() / 127)
            self.register_buffer("quantised", (base / self.scale).round().to(torch.int8))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.frozen = nn.Parameter(torch.randn(24).bfloat16(), requires_grad=False)
            self.a, self.b = nn.Parameter(torch.randn(4, 24) / 5), nn.Parameter(torch.zeros(24, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x @ (self.quantised.float() * self.scale).T + self.frozen.float() + x @ self.a.T @ self.b.T

    model = Lora()
    return simple(model, torch.optim.AdamW([model.a, model.b], lr=1e-2))


def _flatten(model: nn.Module) -> torch.Tensor:
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    start = 0
    for parameter in model.parameters():
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat


def flat() -> Stack:
    """ZeRO, Megatron: the optimizer owns one tensor, the parameters are views of it."""
    model = mlp()
    whole = nn.Parameter(_flatten(model))
    optimizer = torch.optim.AdamW([whole], lr=1e-2)

    def lease(number: int) -> None:
        model.zero_grad()
        x = data(number)
        (model(x) - x).pow(2).mean().backward()
        whole.grad = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        optimizer.step()

    return Stack([model, optimizer], lease, lambda: [*everything(model, optimizer), whole])


def flat_unseen() -> Stack:
    """As `flat`, but the one who updates the flat tensor is known to nobody."""
    model = mlp()
    whole = _flatten(model)

    def lease(number: int) -> None:
        model.zero_grad()
        x = data(number)
        (model(x) - x).pow(2).mean().backward()
        whole.sub_(torch.cat([p.grad.reshape(-1) for p in model.parameters()]), alpha=0.1)

    return Stack([model], lease, lambda: [*model.parameters(), *[p.grad for p in model.parameters() if p.grad is not None]])


def masters() -> Stack:
    """A bf16 model, fp32 masters that are in the optimizer's param_groups and nowhere else."""
    model = mlp().bfloat16()
    copies = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    optimizer = torch.optim.AdamW(copies, lr=1e-2)

    def lease(number: int) -> None:
        model.zero_grad()
        x = data(number).bfloat16()
        (model(x) - x).pow(2).mean().backward()
        for copy, parameter in zip(copies, model.parameters(), strict=True):
            copy.grad = parameter.grad.float()  # type: ignore[union-attr]
        optimizer.step()
        with torch.no_grad():
            for copy, parameter in zip(copies, model.parameters(), strict=True):
                parameter.copy_(copy)

    return Stack([model, optimizer], lease, lambda: [*everything(model, optimizer), *copies])


ALONE = [adamw, momentum, accumulated, lbfgs, tied, sparse, adapter, flat, flat_unseen, masters]


def _ddp(view: bool, dropped: bool = False, accumulate: int = 1) -> Callable[[], Stack]:
    def make() -> Stack:
        model = mlp()
        net = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=view)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def lease(number: int) -> None:
            for micro in range(3):
                count = 3 * number + micro
                if count % accumulate == 0 and not (dropped and micro == 0):
                    optimizer.zero_grad(set_to_none=count % 2 == 0)
                x = data(1000 * dist.get_rank() + 10 * number + micro)
                (net(x) - x).pow(2).mean().backward()
                if count % accumulate == accumulate - 1:
                    optimizer.step()

        def between(number: int) -> None:
            if dropped and number % 2 == 0:  # nothing names the buckets any more, and they are away
                optimizer.zero_grad(set_to_none=True)
            elif dropped:
                optimizer.zero_grad(set_to_none=False)

        return Stack([net, optimizer], lease, lambda: everything(model, optimizer), between)

    return make


def _fsdp2(policy: bool) -> Callable[[], Stack]:
    def make() -> Stack:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        model = nn.Sequential(nn.Linear(24, 33), nn.ReLU(), nn.Linear(33, 24))
        mesh = init_device_mesh("cpu", (2,))
        options: dict[str, Any] = {"mesh": mesh}
        if policy:
            options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        for layer in (model[0], model[2]):
            fully_shard(layer, **options)
        fully_shard(model, **options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

        def lease(number: int) -> None:
            for micro in range(2):
                optimizer.zero_grad(set_to_none=number % 2 == 0)
                x = data(1000 * dist.get_rank() + 10 * number + micro)
                (model(x) - x).pow(2).mean().backward()
                optimizer.step()
            with torch.no_grad():  # the last thing is a forward: FSDP2 leaves the root's parameters gathered
                model(data(number))

        def result() -> list[torch.Tensor]:
            model.reshard()
            return everything(model, optimizer)

        return Stack([model, optimizer], lease, result, plain=False)

    return make


def _fsdp1() -> Stack:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(nn.Sequential(nn.Linear(24, 33), nn.ReLU(), nn.Linear(33, 24)), device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def lease(number: int) -> None:
        for micro in range(2):
            optimizer.zero_grad()
            x = data(1000 * dist.get_rank() + 10 * number + micro)
            (model(x) - x).pow(2).mean().backward()
            optimizer.step()

    return Stack([model, optimizer], lease, lambda: everything(model, optimizer))


RANKS: dict[str, Callable[[], Stack]] = {
    "ddp": _ddp(view=False),
    "ddp, bucket views": _ddp(view=True),
    "ddp, bucket views, gradients dropped between leases": _ddp(view=True, dropped=True),
    "ddp, bucket views, gradients over several leases": _ddp(view=True, accumulate=4),
    "fsdp2": _fsdp2(policy=False),
    "fsdp2, bf16": _fsdp2(policy=True),
    "fsdp1": _fsdp1,
}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
    outcomes = {}
    for name, make in RANKS.items():
        outcomes[name] = {"never": train(make)}
        for kind in ("virtual", "emptied"):
            try:
                outcomes[name][kind] = train(make, mover(kind))
            except Exception as error:
                if sys.argv[-1] == "raise":
                    raise
                outcomes[name][kind] = [f"{type(error).__name__}: {error}"]
                dist.barrier()
    print(json.dumps(outcomes), flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads do not always survive the interpreter's own end


if __name__ == "__main__":
    main()

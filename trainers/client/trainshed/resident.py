"""Moves a trainer's tensors on to a device when a lease begins and off it when the lease ends.

What is moved are **storages** (the memory behind tensors), never single tensors; `trainshed.storages` does it and has the theory. This
module finds them: the storages of parameters, gradients and buffers of the models, and of everything in `state` and `param_groups` of
the optimizers (master weights). Scalars of an optimizer (Adam's `step`) stay where the optimizer keeps them. What holds no memory
that can be seen is refused by name, with what to do about it: TypeError for a wrapper without `__tensor_flatten__`, other layouts
and quantised tensors, ValueError for what has no contents yet (meta, lazy).

Standard library and the script's torch; Python >= 3.9.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainshed.storages import DeviceMemory, Found, VirtualMemory
from trainshed.virtual_gpu import Device, DeviceKind, parse_device


class Resident:
    """A trainer's tensors on a device during its leases and in host memory between them.

    `Resident("virtual:0")`, `add(model, optimizer)`, then `onload()` when a lease begins and `offload()` when it ends. It starts off
    the device. Both calls may be repeated. On `cpu` they do nothing. Models are anything with `parameters()` and `buffers()`,
    optimizers anything with `state` (and `param_groups`). Not thread-safe.
    """

    def __init__(self, device: str | Device) -> None:
        self.device = parse_device(device) if isinstance(device, str) else device
        self.on_device = False
        self._owners: list[Any] = []
        self._memory: VirtualMemory | DeviceMemory | None = None
        if self.device.kind is DeviceKind.VIRTUAL:
            self._memory = VirtualMemory(self.device)
        elif self.device.kind is DeviceKind.CUDA:
            self._memory = DeviceMemory(self.device.torch_device)

    @property
    def held(self) -> int:
        """Bytes of device memory that the tensors take now (of a virtual GPU: whole pools)."""
        return self._memory.held if self._memory is not None and self.on_device else 0

    def add(self, *owners: Any) -> None:
        """Take care of these models and optimizers too; inside a lease (on the device) they are moved on at once.

        Raises TypeError and ValueError for owners and tensors that cannot be moved; then none of these owners is taken.
        """
        for owner in owners:
            if not (callable(getattr(owner, "parameters", None)) or hasattr(owner, "state")):
                raise TypeError(f"resident takes models (parameters(), buffers()) and optimizers (state), not {type(owner).__name__}")
        new = [owner for owner in owners if all(owner is not known for known in self._owners)]
        if self._memory is not None:
            found = _tensors_of([*self._owners, *new])
            if self.on_device:
                self._memory.check(found)
                self._memory.onload(found)
        self._owners += new

    def onload(self) -> None:
        """Every storage's contents from host memory on to the device. Raises TypeError and ValueError; then nothing was moved."""
        if self.on_device or self._memory is None:
            return
        found = _tensors_of(self._owners)
        self._memory.check(found)
        self.on_device = True  # from here on there may be something to take off
        self._memory.onload(found)

    def offload(self) -> None:
        """Every storage's contents off the device into host memory, and the device's memory back.

        Raises ValueError for what cannot leave (a live CUDA graph, foreign memory on a GPU); then nothing was moved.
        """
        if not self.on_device or self._memory is None:
            return
        self._memory.offload(_tensors_of(self._owners))
        self.on_device = False


def _tensors_of(owners: Iterable[Any]) -> list[Found]:
    """Every tensor to be moved, each object once, in a stable order. Raises TypeError and ValueError for what cannot be moved."""
    found: dict[int, Found] = {}
    for owner in owners:
        for name, tensor in _owned(owner):
            for part in _parts(f"{type(owner).__name__}.{name}", tensor, True):
                found.setdefault(id(part.tensor), part)
    return list(found.values())


def _owned(owner: Any) -> Iterator[tuple[str, Any]]:
    if callable(getattr(owner, "parameters", None)):
        _reshard(owner)
        for name, parameter in _named(owner, "parameters"):
            yield name, parameter
            if not _lazy(parameter) and parameter.grad is not None:
                yield f"{name}.grad", parameter.grad
        yield from _named(owner, "buffers")
        return
    for name, tensor in _nested("param_groups", getattr(owner, "param_groups", ())):
        yield name, tensor
        if tensor.grad is not None:
            yield f"{name}.grad", tensor.grad
    yield from _nested("state", owner.state)


def _named(model: Any, kind: str) -> Iterator[tuple[str, Any]]:
    named = getattr(model, f"named_{kind}", None)
    if named is not None:
        yield from named()
        return
    yield from ((f"{kind}[{index}]", tensor) for index, tensor in enumerate(getattr(model, kind)()))


def _reshard(model: Any) -> None:
    """Brings FSDP2's modules back to their shards: gathered parameters are temporary, and the shards would be seen by nobody."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    if kind is not None and hasattr(model, "modules"):
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()


def _nested(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor inside mappings and sequences. Scalars in host memory stay there."""
    if hasattr(value, "untyped_storage"):
        if value.ndim > 0 or value.device.type != "cpu":
            yield name, value
    elif isinstance(value, Mapping):
        for index, (key, inner) in enumerate(value.items()):
            yield from _nested(f"{name}[{repr(key) if isinstance(key, (str, int)) else index}]", inner)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _nested(f"{name}[{index}]", inner)


def _lazy(tensor: Any) -> bool:
    return callable(getattr(tensor, "materialize", None))


_SPARSE = {
    "sparse_coo": ("_indices", "_values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


def _parts(name: str, tensor: Any, outermost: bool) -> Iterator[Found]:
    """The tensors with memory that `tensor` is made of: most often itself. Raises TypeError and ValueError."""
    layout = str(tensor.layout).split(".")[-1]
    if _lazy(tensor):
        raise ValueError(f"resident cannot move {name}: it is not initialised; run the model once before")
    if hasattr(tensor, "__tensor_flatten__"):
        for attribute in tensor.__tensor_flatten__()[0]:
            if hasattr(getattr(tensor, attribute), "untyped_storage"):  # a DTensor names its mesh too
                yield from _parts(f"{name}.{attribute}", getattr(tensor, attribute), False)
    elif layout in _SPARSE:
        for attribute in _SPARSE[layout]:
            yield from _parts(f"{name}.{attribute}", getattr(tensor, attribute)(), False)
    elif layout != "strided":
        raise TypeError(f"resident cannot move {name}: its layout is {layout}; give it in a dense one (to_dense())")
    elif tensor.is_quantized or getattr(tensor, "is_nested", False):
        kind = "quantised" if tensor.is_quantized else "nested"
        raise TypeError(f"resident cannot move {name}: it is a {kind} tensor of the old kind; keep its parts as plain tensors")
    else:
        _refuse_without_memory(name, tensor)
        yield Found(name, tensor, outermost and not tensor.is_conj() and not tensor.is_neg())
        if tensor._base is not None:
            yield Found(f"{name} (what it is a view of)", tensor._base, not tensor._base.is_conj() and not tensor._base.is_neg())


def _refuse_without_memory(name: str, tensor: Any) -> None:
    if tensor.is_meta or tensor.untyped_storage().device.type == "meta":
        raise ValueError(
            f"resident cannot move {name}: it is a meta tensor, without contents; make it real before (to_empty(), from_pretrained)"
        )
    try:
        hidden = tensor.untyped_storage().nbytes() > 0 and tensor.untyped_storage().data_ptr() == 0
    except RuntimeError:  # torch's "invalid python storage"
        hidden = True
    if hidden:
        raise TypeError(
            f"resident cannot move {name}: it is a {type(tensor).__name__} whose memory cannot be seen (no __tensor_flatten__); "
            "keep it out of resident() and move it in the script"
        )

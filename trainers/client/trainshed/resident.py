"""Moves a trainer's tensors on to a device when a lease begins and off it when the lease ends.

`Resident` takes parameters, buffers, gradients and optimizer state on to the device (`onload`) and off it (`offload`). Contents
travel through host memory bit by bit; tensor *objects* stay (only their `.data` changes), so ties, optimizer keys and autograd
stay intact. State that appears during a lease (Adam's moments) lives in host memory until that lease ends and is taken in, and
counted, from the next lease on; so are gradients. Activations of a virtual GPU are never counted.
"""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from trainshed.virtual_gpu import Device, DeviceKind, Pool, parse_device, room

if TYPE_CHECKING:
    import torch


class Resident:
    """A trainer's tensors on a device during its leases and in host memory between them.

    `Resident("virtual:0")`, `add(model, optimizer)`, then `onload()` when a lease begins and `offload()` when it ends. It starts off
    the device. Both calls may be repeated. On `cpu` they do nothing. Models are anything with `parameters()` and `buffers()`,
    optimizers anything with `state` (a mapping of mappings). Two tensors that are one view of one memory stay so; tensors that
    overlap in part (flattened parameters), and sharded ones (DTensor), must be moved by the script itself.
    """

    def __init__(self, device: str | Device) -> None:
        self.device = parse_device(device) if isinstance(device, str) else device
        self.on_device = False
        self._owners: list[Any] = []
        self._pool: Pool | None = None
        self._layout: tuple[object, ...] = ()
        self._views: list[torch.Tensor] = []

    @property
    def held(self) -> int:
        """Bytes of device memory that the tensors take now."""
        return self._pool.size if self._pool is not None and not self._pool.released else 0

    def add(self, *owners: Any) -> None:
        """Take care of these models and optimizers too. Raises TypeError for what is neither.

        Inside a lease (on the device) they are moved on at once.
        """
        for owner in owners:
            if not (callable(getattr(owner, "parameters", None)) or hasattr(owner, "state")):
                raise TypeError(f"resident takes models (parameters(), buffers()) and optimizers (state), not {type(owner).__name__}")
        self._owners += [owner for owner in owners if all(owner is not known for known in self._owners)]
        if self.on_device:
            self.offload()
            self.onload()

    def onload(self) -> None:
        """Every tensor's contents from host memory on to the device. Raises ValueError for tensors that overlap in part."""
        if self.on_device:
            return
        self.on_device = True
        if self.device.kind is DeviceKind.CPU:
            return
        groups = _aliases(self._tensors())
        layout = tuple((tuple(group[0].shape), group[0].dtype) for group in groups)
        self._place(layout)
        for group, view in zip(groups, self._views, strict=True):
            view.copy_(group[0].detach())
            for tensor in group:
                tensor.data = view

    def offload(self) -> None:
        """Every tensor's contents off the device into host memory, and the device's memory back."""
        if not self.on_device:
            return
        self.on_device = False
        if self.device.kind is DeviceKind.CPU:
            return
        for group in _aliases(self._tensors()):
            current = group[0].detach()
            if current.is_cuda or (self._pool is not None and self._pool.contains(current)):
                host = current.to("cpu", copy=True)
                for tensor in group:
                    tensor.data = host
        if self._pool is not None:
            self._pool.release()
        if self.device.kind is DeviceKind.CUDA:
            import torch  # only processes that compute may load it

            torch.cuda.empty_cache()  # what the lease itself allocated and dropped

    def _place(self, layout: tuple[tuple[tuple[int, ...], "torch.dtype"], ...]) -> None:
        """A pool with one view for each entry of `layout`: the old one again if it has just these."""
        if self._pool is not None and layout == self._layout:
            self._pool.restore()
            return
        if self._pool is not None:
            self._pool.close()
        self._pool = Pool(self.device, room(layout))
        self._layout = layout
        self._views = [self._pool.take(shape, dtype) for shape, dtype in layout]

    def _tensors(self) -> list["torch.Tensor"]:
        """Every tensor to be moved, each object once, in a stable order."""
        found: dict[int, torch.Tensor] = {}
        for owner in self._owners:
            for tensor in _owned(owner):
                if tensor.numel():
                    found.setdefault(id(tensor), tensor)
        return list(found.values())


def _owned(owner: Any) -> Iterable["torch.Tensor"]:
    if callable(getattr(owner, "parameters", None)):
        for parameter in owner.parameters():
            if hasattr(parameter, "_local_tensor"):
                raise ValueError("resident does not move sharded parameters (DTensor): offload them in the script")
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
        yield from owner.buffers()
        return
    for state in owner.state.values():
        for value in state.values():
            # Scalars (Adam's step) stay where the optimizer keeps them: on the host, by torch's default.
            if hasattr(value, "untyped_storage") and value.ndim > 0:
                yield cast("torch.Tensor", value)


def _aliases(tensors: list["torch.Tensor"]) -> list[list["torch.Tensor"]]:
    """Tensors in groups that are one view of one memory. Raises ValueError when two overlap in part."""
    groups: dict[object, list[torch.Tensor]] = {}
    for tensor in tensors:
        start = tensor.data_ptr()
        key = (tensor.device, start, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        groups.setdefault(key, []).append(tensor)
    spans: dict[object, list[tuple[int, int]]] = {}
    for first, *_ in groups.values():
        last = sum((length - 1) * stride for length, stride in zip(first.shape, first.stride(), strict=True))
        start = first.data_ptr()
        spans.setdefault(first.device, []).append((start, start + (last + 1) * first.element_size()))
    for ranges in spans.values():
        ranges.sort()
        for (_, end), (start, _) in itertools.pairwise(ranges):
            if start < end:
                raise ValueError("resident cannot move tensors that overlap in part (flattened parameters): offload them in the script")
    return list(groups.values())

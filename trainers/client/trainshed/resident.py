"""Moves a trainer's tensors on to a device when a lease begins and off it when the lease ends.

What is moved are **storages** (the memory behind tensors), never single tensors: a storage keeps its identity and only its memory is
exchanged. So whatever looks at that memory goes on looking at it, known to us or not: views, ties, DDP's bucket views, flattened
parameters (ZeRO, Megatron), the shards of DTensors and FSDP2's own view of them. Contents travel through host memory bit by bit.

Which storages: those of parameters, gradients and buffers of the models, of everything in `state` and `param_groups` of the
optimizers (master weights), and those that were moved before and still live, even where nothing of that refers to them any more
(DDP's buckets after `zero_grad(set_to_none=True)`). Scalars of an optimizer (Adam's `step`) stay where the optimizer keeps them.

`_VirtualMemory` (a virtual GPU) exchanges a storage's host memory for a slot of a `Pool` and back. The host memory is the one that
the storage had at first, so nothing is allocated from lease to lease, both addresses stay the same, and tensors may be read and
written between leases. What a lease makes (gradients, Adam's moments) is taken in, and counted, from the next lease on.

`_DeviceMemory` (a GPU) shrinks a storage to nothing and lets it grow again; the contents wait in a pinned host buffer that is kept.
Between leases plain tensors look at that buffer, so they may be read and written too; what else looks at the storage (a view
held by the script, a DTensor's shard) must not be touched then. A tensor taken between leases (`state_dict()`) is a host tensor of
that time: later leases do not change it. Addresses on the GPU change, so live CUDA graphs are refused.

Refused by name, with what to do about it: TypeError for what holds no memory that we can see (a wrapper without
`__tensor_flatten__`, other layouts, quantised tensors), ValueError for memory that cannot be exchanged (meta, shared with other processes,
foreign memory on a GPU). Memory of numpy or of a file (safetensors) is copied at the first lease, as `.to("cuda")` does.

Standard library and the script's torch; Python >= 3.9.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from trainshed.device import Device, DeviceKind, Pool, parse_device, room

if TYPE_CHECKING:
    import torch


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
        self._memory: _VirtualMemory | _DeviceMemory | None = None
        if self.device.kind is DeviceKind.VIRTUAL:
            self._memory = _VirtualMemory(self.device)
        elif self.device.kind is DeviceKind.CUDA:
            self._memory = _DeviceMemory(self.device.torch_device)

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


class _Found(NamedTuple):
    """A tensor with memory of its own, by the name that its owner knows it by."""

    name: str
    tensor: torch.Tensor
    plain: bool
    """Whether it may be pointed at other memory by itself: it is not the inside of another tensor, and its bytes are its values."""


def _tensors_of(owners: Iterable[Any]) -> list[_Found]:
    """Every tensor to be moved, each object once, in a stable order. Raises TypeError and ValueError for what cannot be moved."""
    found: dict[int, _Found] = {}
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


def _parts(name: str, tensor: Any, outermost: bool) -> Iterator[_Found]:
    """The tensors with memory that `tensor` is made of: most often itself. Raises TypeError and ValueError."""
    layout = str(tensor.layout).split(".")[-1]
    if _lazy(tensor):
        raise ValueError(f"resident cannot move {name}: it is not initialised; run the model once before")
    if hasattr(tensor, "__tensor_flatten__"):
        for attribute in tensor.__tensor_flatten__()[0]:
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
        yield _Found(name, tensor, outermost and not tensor.is_conj() and not tensor.is_neg())
        if tensor._base is not None:
            yield _Found(f"{name} (what it is a view of)", tensor._base, not tensor._base.is_conj() and not tensor._base.is_neg())


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


def _bytes_of(storage: Any) -> torch.Tensor:
    """The whole storage as one row of bytes."""
    import torch  # only processes that compute may load it

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _weak(storage: Any) -> Any:
    from torch.multiprocessing.reductions import StorageWeakRef

    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _living(weak: Any) -> Any:
    """The storage that a weak reference means, or None."""
    import torch  # only processes that compute may load it

    return None if weak.expired() else torch.UntypedStorage._new_with_weak_ptr(weak.cdata)


@dataclass
class _Pair:
    """A storage and the memory that it does not stand on at present: host memory while it is on the device, else its slot."""

    weak: Any
    slot: torch.Tensor
    pool: Pool
    other: torch.UntypedStorage
    address: int
    """Where the storage was left by the last exchange; if it is elsewhere, the script has given it other memory."""
    on: bool = False

    def storage(self) -> Any:
        """The storage, or None if it is dead or has been given other memory by the script."""
        storage = _living(self.weak)
        if storage is None or storage.data_ptr() != self.address or storage.nbytes() != self.slot.numel():
            return None
        return storage

    def exchange(self, storage: Any) -> None:
        """Copy the contents to the other memory and let the storage stand on that."""
        _bytes_of(self.other).copy_(_bytes_of(storage))
        storage._swap_data_ptr_(self.other)
        self.address = storage.data_ptr()
        self.on = not self.on


_MEMORIES: weakref.WeakSet[_VirtualMemory] = weakref.WeakSet()


class _VirtualMemory:
    """Storages on a virtual GPU. Slots are kept for their storages; those of dead ones are used again for storages of that size."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pairs: dict[int, _Pair] = {}
        self._free: list[tuple[Pool, torch.Tensor]] = []
        _MEMORIES.add(self)

    @property
    def held(self) -> int:
        return sum(pool.size for pool in self._pools() if not pool.released)

    def check(self, found: Iterable[_Found]) -> None:
        """Raises ValueError for a storage that cannot be moved."""
        for name, tensor, _ in found:
            key = tensor.untyped_storage()._cdata
            if any(key in memory._pairs and memory._pairs[key].on for memory in _MEMORIES if memory is not self):
                raise ValueError(f"resident cannot move {name}: another Resident has it on the device")
            if tensor.device.type == "cpu" and tensor.untyped_storage().is_shared():
                raise ValueError(
                    f"resident cannot move {name}: its memory is shared with other processes or mapped from a file; "
                    "clone it before (tensor.data = tensor.data.clone())"
                )

    def onload(self, found: Iterable[_Found]) -> None:
        import torch  # only processes that compute may load it

        if not hasattr(torch.UntypedStorage, "_swap_data_ptr_"):
            warnings.warn(
                f"torch {torch.__version__} cannot exchange the memory of a storage (2.13 can): "
                "residents of a virtual GPU stay in host memory and are not measured",
                stacklevel=4,
            )
            return
        self._forget_dead()
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for _, tensor, _ in found if tensor.device.type == "cpu"}
        self._place([storage for key, storage in storages.items() if key not in self._pairs and storage.nbytes()])
        for pool in self._pools():
            pool.restore()
        for pair in self._pairs.values():
            storage = pair.storage()
            if storage is not None and not pair.on:
                pair.exchange(storage)

    def offload(self, _found: Iterable[_Found]) -> None:
        self._forget_dead()
        for pair in self._pairs.values():
            storage = pair.storage()
            if storage is not None and pair.on:
                pair.exchange(storage)
        for pool in self._pools():
            pool.release()

    def _place(self, storages: list[Any]) -> None:
        """A slot for each of these storages: a free one of just its size, or one of a new pool."""
        import torch  # only processes that compute may load it

        free: dict[int, list[tuple[Pool, torch.Tensor]]] = {}
        for pool, slot in self._free:
            free.setdefault(slot.numel(), []).append((pool, slot))
        without = []
        for storage in storages:
            if free.get(storage.nbytes()):
                self._pair(storage, *free[storage.nbytes()].pop())
            else:
                without.append(storage)
        if without:
            pool = Pool(self._device, room([((storage.nbytes(),), torch.uint8) for storage in without]))
            for storage in without:
                self._pair(storage, pool, pool.take((storage.nbytes(),), torch.uint8))
        used = {id(pair.pool) for pair in self._pairs.values()}
        for pool in {id(pool): pool for pool, _ in self._free if id(pool) not in used}.values():
            pool.close()
        self._free = [entry for entries in free.values() for entry in entries if id(entry[0]) in used]

    def _pair(self, storage: Any, pool: Pool, slot: torch.Tensor) -> None:
        self._pairs[storage._cdata] = _Pair(_weak(storage), slot, pool, _over(slot), storage.data_ptr())

    def _forget_dead(self) -> None:
        for key, pair in list(self._pairs.items()):
            if pair.storage() is None:
                self._free.append((pair.pool, pair.slot))
                del self._pairs[key]

    def _pools(self) -> Iterable[Pool]:
        return {id(pool): pool for pool in [pair.pool for pair in self._pairs.values()] + [pool for pool, _ in self._free]}.values()


def _over(slot: torch.Tensor) -> torch.UntypedStorage:
    """A storage of its own over the memory of a pool's tensor, which lives as long."""
    import torch  # only processes that compute may load it

    memory = (ctypes.c_uint8 * slot.numel()).from_address(slot.data_ptr())
    memory.keeps = slot  # type: ignore[attr-defined]  # the pool is unmapped when nobody refers to its tensors
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()


@dataclass
class _Moved:
    """A storage of a GPU and the host buffer that its contents wait in."""

    name: str
    weak: Any
    size: int
    host: torch.Tensor | None = None
    away: Any = None
    """The storage while it is empty."""
    tensors: list[torch.Tensor] = field(default_factory=list)
    """What looks at the host buffer meanwhile: held, since DDP's reducer may own what no gradient names any more."""


class _DeviceMemory:
    """Storages on a GPU: emptied and filled under the tensors that share them."""

    def __init__(self, torch_device: str) -> None:
        self._torch_device = torch_device
        self._moved: dict[int, _Moved] = {}
        self._free: dict[int, list[torch.Tensor]] = {}

    @property
    def held(self) -> int:
        living = [_living(moved.weak) for moved in self._moved.values()]
        return sum(storage.nbytes() for storage in living if storage is not None)

    def check(self, found: Iterable[_Found]) -> None:
        """Raises ValueError for tensors in host memory that cannot be taken on to the GPU without being torn apart."""
        hosts = {moved.host.untyped_storage()._cdata for moved in self._moved.values() if moved.host is not None}
        sharers: dict[int, list[_Found]] = {}
        for entry in found:
            storage = entry.tensor.untyped_storage()
            if not self._is_on(storage) and storage.nbytes() and storage._cdata not in hosts:
                sharers.setdefault(storage._cdata, []).append(entry)
        for entries in sharers.values():
            self._check_first(entries)

    def _check_first(self, entries: list[_Found]) -> None:
        import torch  # only processes that compute may load it

        for entry in entries:
            if not entry.plain:
                raise ValueError(
                    f"resident cannot take {entry.name} to {self._torch_device}: it is the inside of another tensor, or a conjugate; make it there"
                )
        storage = entries[0].tensor.untyped_storage()
        # Each tensor and this very object of Python refer to the storage.
        if torch._C._storage_Use_Count(storage._cdata) > len(entries) + 1:
            raise ValueError(
                f"resident cannot take {entries[0].name} to {self._torch_device}: a tensor that resident() does not know shares its memory; "
                f"move the model there before (model.to(pipeline.device)), give resident() the other one too, or drop it"
            )

    def onload(self, found: Iterable[_Found]) -> None:
        known: dict[int, _Moved] = {}
        first: dict[int, list[_Found]] = {}
        for moved in self._moved.values():
            if moved.away is not None and moved.host is not None:
                known[moved.host.untyped_storage()._cdata] = moved
                moved.away.resize_(moved.size)
                _bytes_of(moved.away).copy_(moved.host, non_blocking=True)
        for entry in found:
            storage = entry.tensor.untyped_storage()
            if storage._cdata in known:
                known[storage._cdata].tensors.append(entry.tensor)  # also what was made between leases
            elif not self._is_on(storage) and storage.nbytes():
                first.setdefault(storage._cdata, []).append(entry)
        for entries in first.values():
            source = entries[0].tensor.untyped_storage()
            target = self._allocate(source.nbytes())
            _bytes_of(target).copy_(_bytes_of(source))
            for entry in entries:
                _point(entry.tensor, target)
        self._settle()
        for key, moved in known.items():
            self._come_back(key, moved)

    def _come_back(self, key: int, moved: _Moved) -> None:
        import torch  # only processes that compute may load it

        for tensor in moved.tensors:
            if tensor.untyped_storage()._cdata == key:  # else the script has given it other memory
                _point(tensor, moved.away)
        moved.tensors.clear()
        moved.away = None
        assert moved.host is not None
        host = moved.host.untyped_storage()
        if torch._C._storage_Use_Count(host._cdata) > 2:  # the script keeps a tensor of between the leases: it is its own now
            moved.host = None

    def offload(self, found: Iterable[_Found]) -> None:
        self._refuse_graphs()
        sharers: dict[int, list[torch.Tensor]] = {}
        for name, tensor, plain in found:
            storage = tensor.untyped_storage()
            if self._is_on(storage) and storage.nbytes():
                if not storage.resizable():
                    raise ValueError(
                        f"resident cannot take {name} off the GPU: its memory is not torch's own (another library, another process); clone it before"
                    )
                self._moved.setdefault(storage._cdata, _Moved(name, _weak(storage), storage.nbytes()))
                sharers.setdefault(storage._cdata, []).extend([tensor] if plain else [])
        self._forget_dead()
        for moved in self._moved.values():
            storage = _living(moved.weak)
            if storage is None or not storage.nbytes():
                continue
            moved.size = storage.nbytes()
            moved.host = self._host(moved)
            moved.host.copy_(_bytes_of(storage), non_blocking=True)
            moved.away = storage
        self._free.clear()
        self._settle()
        for key, moved in self._moved.items():
            if moved.away is not None and moved.host is not None:
                moved.away.resize_(0)
                moved.tensors = sharers.get(key, [])
                for tensor in moved.tensors:
                    _point(tensor, moved.host.untyped_storage())
        self._give_back()

    def _host(self, moved: _Moved) -> torch.Tensor:
        """The buffer that the storage had before, one of a dead storage of that size, or a new one."""
        if moved.host is not None and moved.host.numel() == moved.size:
            return moved.host
        if self._free.get(moved.size):
            return self._free[moved.size].pop()
        return self._pinned(moved.size)

    def _forget_dead(self) -> None:
        for key, moved in list(self._moved.items()):
            if moved.weak.expired():
                del self._moved[key]
                if moved.host is not None:
                    self._free.setdefault(moved.host.numel(), []).append(moved.host)

    def _is_on(self, storage: Any) -> bool:
        return bool(storage.device.type == "cuda")

    def _allocate(self, size: int) -> Any:
        import torch  # only processes that compute may load it

        return torch.empty(size, dtype=torch.uint8, device=self._torch_device).untyped_storage()

    def _pinned(self, size: int) -> torch.Tensor:
        import torch  # only processes that compute may load it

        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def _settle(self) -> None:
        """Wait for every copy and every kernel: memory goes away or is read next."""
        import torch  # only processes that compute may load it

        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)

    def _give_back(self) -> None:
        import torch  # only processes that compute may load it

        torch.cuda.empty_cache()  # also what the lease itself allocated and dropped

    def _refuse_graphs(self) -> None:
        """Raises ValueError while a CUDA graph lives: it would go on using addresses that are not ours any more."""
        import torch  # only processes that compute may load it

        if torch.cuda.is_current_stream_capturing():
            raise ValueError("resident cannot leave the GPU while a CUDA graph is being captured")
        if any(isinstance(thing, torch.cuda.CUDAGraph) for thing in gc.get_objects()):
            raise ValueError(
                "resident cannot leave the GPU while a CUDA graph lives: the graph holds GPU memory and the addresses of parameters, which change "
                'from lease to lease; delete it before the lease ends (and use no torch.compile(mode="reduce-overhead")), or capture it in each lease'
            )


def _point(tensor: torch.Tensor, storage: Any) -> None:
    """Let the tensor object look at the same place of another storage."""
    import torch  # only processes that compute may load it

    with torch.no_grad():
        empty = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        tensor.data = empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

"""Exchanges the memory under storages: a storage keeps its identity, so whatever looks at its memory goes on looking at it.

That is so whether we know of it or not: views, ties, DDP's bucket views, flattened parameters, FSDP2's own view of a shard.
Contents travel through host memory bit by bit. Storages that were moved before and still live are moved even where no owner refers to
them any more (DDP's buckets after `zero_grad(set_to_none=True)`).

`VirtualMemory` (a virtual GPU) exchanges a storage's host memory for a slot of a `Pool` and back. The host memory is the one that
the storage had at first, so nothing is allocated from lease to lease, both addresses stay the same, and tensors may be read and
written between leases. What a lease makes (gradients, Adam's moments) is taken in, and counted, from the next lease on. Only what looks
at memory past the storage (an array of numpy that a tensor gave) sees the memory of then: between leases the device's is gone (SIGBUS).

`DeviceMemory` (a GPU) shrinks a storage to nothing and lets it grow again; the contents wait in a pinned host buffer that is kept.
Between leases plain tensors look at that buffer, so they may be read and written too; what else looks at the storage (a view
held by the script, a DTensor's shard) must not be touched then. A tensor taken between leases (`state_dict()`) is a host tensor of
that time: later leases do not change it. Addresses on the GPU change, so live CUDA graphs are refused. DDP's buckets are found
where gradients are views of them and alive at the end of one lease; others stay on the GPU.

Refused by name with ValueError: memory shared with other processes or mapped from a file; on a GPU also memory of another library, and
tensors in host memory that share it with one that is not known. Memory of numpy or safetensors in host memory is copied at the first
lease, as `.to("cuda")` does.
"""

from __future__ import annotations

import ctypes
import gc
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch  # whoever has residents has loaded it
from torch.multiprocessing.reductions import StorageWeakRef

from trainshed.virtual_gpu import Device, Pool, room


class Found(NamedTuple):
    """A tensor with memory of its own, by the name that its owner knows it by."""

    name: str
    tensor: torch.Tensor
    plain: bool
    """Whether it may be pointed at other memory by itself: it is not the inside of another tensor, and its bytes are its values."""


def _bytes_of(storage: Any) -> torch.Tensor:
    """The whole storage as one row of bytes."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _point(tensor: torch.Tensor, storage: Any) -> None:
    """Let the tensor object look at the same place of another storage."""
    empty = torch.empty(0, dtype=tensor.dtype, device=storage.device)
    tensor.data = empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _weak(storage: Any) -> Any:
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


def _living(weak: Any) -> Any:
    """The storage that a weak reference means, or None."""
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


_MEMORIES: weakref.WeakSet[VirtualMemory] = weakref.WeakSet()


class VirtualMemory:
    """Storages on a virtual GPU. Slots are kept for their storages; those of dead ones are used again for storages of that size."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pairs: dict[int, _Pair] = {}
        self._free: list[tuple[Pool, torch.Tensor]] = []
        _MEMORIES.add(self)

    @property
    def held(self) -> int:
        return sum(pool.size for pool in self._pools() if not pool.released)

    def check(self, found: Iterable[Found]) -> None:
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

    def onload(self, found: Iterable[Found]) -> None:
        if not _exchangeable():
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

    def offload(self, _found: Iterable[Found]) -> None:
        self._forget_dead()
        for pair in self._pairs.values():
            storage = pair.storage()
            if storage is not None and pair.on:
                pair.exchange(storage)
        for pool in self._pools():
            pool.release()

    def _place(self, storages: list[Any]) -> None:
        """A slot for each of these storages: a free one of just its size, or one of a new pool."""
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


def _exchangeable() -> bool:
    return hasattr(torch.UntypedStorage, "_swap_data_ptr_")


def _over(slot: torch.Tensor) -> torch.UntypedStorage:
    """A storage of its own over the memory of a pool's tensor, which lives as long."""
    memory = (ctypes.c_uint8 * slot.numel()).from_address(slot.data_ptr())
    memory.keeps = slot  # type: ignore[attr-defined]  # the pool is unmapped when nobody refers to its tensors
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()


@dataclass
class _Moved:
    """A storage of a GPU and the host buffer that its contents wait in."""

    weak: Any
    size: int
    host: torch.Tensor | None = None
    away: Any = None  # the storage while it is empty
    tensors: list[torch.Tensor] = field(default_factory=list)
    """What looks at the host buffer meanwhile: held, since DDP's reducer may own what no gradient names any more."""


class DeviceMemory:
    """Storages on a GPU: emptied and filled under the tensors that share them."""

    def __init__(self, torch_device: str) -> None:
        self._torch_device = torch_device
        self._moved: dict[int, _Moved] = {}
        self._free: dict[int, list[torch.Tensor]] = {}

    @property
    def held(self) -> int:
        return sum(storage.nbytes() for moved in self._moved.values() if (storage := _living(moved.weak)) is not None)

    def check(self, found: Iterable[Found]) -> None:
        """Raises ValueError for tensors in host memory that cannot be taken on to the GPU without being torn apart."""
        hosts = {moved.host.untyped_storage()._cdata for moved in self._moved.values() if moved.host is not None}
        sharers: dict[int, list[Found]] = {}
        for entry in found:
            storage = entry.tensor.untyped_storage()
            if not self._is_on(storage) and storage.nbytes() and storage._cdata not in hosts:
                sharers.setdefault(storage._cdata, []).append(entry)
        for entries in sharers.values():
            self._check_first(entries)

    def _check_first(self, entries: list[Found]) -> None:
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

    def onload(self, found: Iterable[Found]) -> None:
        known: dict[int, _Moved] = {}
        first: dict[int, list[Found]] = {}
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
        for tensor in moved.tensors:
            if tensor.untyped_storage()._cdata == key:  # else the script has given it other memory
                _point(tensor, moved.away)
        moved.tensors.clear()
        moved.away = None
        assert moved.host is not None
        host = moved.host.untyped_storage()
        if torch._C._storage_Use_Count(host._cdata) > 2:  # the script keeps a tensor of between the leases: it is its own now
            moved.host = None

    def offload(self, found: Iterable[Found]) -> None:
        self._refuse_graphs()
        sharers: dict[int, list[torch.Tensor]] = {}
        for name, tensor, plain in found:
            storage = tensor.untyped_storage()
            if self._is_on(storage) and storage.nbytes():
                if not storage.resizable():
                    raise ValueError(
                        f"resident cannot take {name} off the GPU: its memory is not torch's own (another library, another process); clone it before"
                    )
                self._moved.setdefault(storage._cdata, _Moved(_weak(storage), storage.nbytes()))
                sharers.setdefault(storage._cdata, []).extend([tensor] if plain else [])
        self._forget_dead()
        leaving = []
        for key, moved in self._moved.items():
            storage = _living(moved.weak)
            if storage is not None and storage.nbytes() and moved.away is None:  # else the host buffer has the truth: an onload failed
                moved.size = storage.nbytes()
                host = moved.host = self._host(moved)
                host.copy_(_bytes_of(storage), non_blocking=True)
                leaving.append((moved, storage, host.untyped_storage(), sharers.get(key, [])))
        self._free.clear()
        self._settle()
        for moved, storage, waiting, tensors in leaving:
            moved.away, moved.tensors = storage, tensors
            for tensor in tensors:
                _point(tensor, waiting)
        for moved in self._moved.values():
            if moved.away is not None:
                moved.away.resize_(0)
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
        return torch.empty(size, dtype=torch.uint8, device=self._torch_device).untyped_storage()

    def _pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def _settle(self) -> None:
        """Wait for every copy and every kernel: memory goes away or is read next."""
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)

    def _give_back(self) -> None:
        torch.cuda.empty_cache()  # also what the lease itself allocated and dropped

    def _refuse_graphs(self) -> None:
        """Raises ValueError while a CUDA graph lives: it would go on using addresses that are not ours any more."""
        if torch.cuda.is_current_stream_capturing():
            raise ValueError("resident cannot leave the GPU while a CUDA graph is being captured")
        if any(issubclass(type(thing), torch.cuda.CUDAGraph) for thing in gc.get_objects()):  # not isinstance: that wakes lazy modules
            raise ValueError(
                "resident cannot leave the GPU while a CUDA graph lives: the graph holds GPU memory and the addresses of parameters, which change "
                'from lease to lease; delete it before the lease ends (and use no torch.compile(mode="reduce-overhead")), or capture it in each lease'
            )

"""This module says what a GPU is to our own engine and trainer, and what a *virtual* GPU is where there is none.

A device is named by a string: `virtual:N` (of a box without GPUs), `cuda:N` (inside CUDA_VISIBLE_DEVICES) or `cpu` (never given back).

A **virtual GPU's memory** is shared memory that can be seen from outside. Each `Pool` on `virtual:N` is one memfd named
`trainshed-gpu-N` (`memfd_name`), mapped once; a process has several (an engine: weights and KV cache; a trainer: one).
What a process holds of GPU N is the sum of `st_blocks * 512` over its descriptors that `readlink` as
`/memfd:trainshed-gpu-N (deleted)` (one descriptor a pool). A page counts once it has been touched.

- `Pool.release()` is `ftruncate(0)`: gone at once, whoever looks; the mapping stays, so a stray touch is SIGBUS, as a device fault would be.
- `Pool.restore()` is `ftruncate(size)`: the same mapping, the same tensors, all zeros.
- A mapping is undone only when the last tensor in it is gone: unmapping under a live tensor would be a silent wild pointer.
- The death of the process frees everything. Make pools after a fork, never before one.

On `cuda` and `cpu` the same calls work by resizing the storage that the tensors share (0 and back), so that whoever uses a pool is
written once: **a pool's tensors are valid exactly between `restore` (or making it) and `release`, and are the same objects for ever.**

`trainshed.resident` is the trainer's use of it.

This module is imported by processes that must never import torch: it does so only when a pool is made.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

ALIGNMENT: Final = 64  # bytes: kernels choose other instructions, hence other last bits, by the alignment of their operands
GRAIN: Final = 2 << 20
"""Bytes. Pools are whole huge pages, so that what is measured does not depend on the kernel's page size."""


def memfd_name(gpu: int) -> str:
    """Returns the name of every memfd of virtual GPU `gpu`; `supervisor.host.gpus.virtual` looks for it, and a test holds the two together."""
    return f"trainshed-gpu-{gpu}"


class DeviceKind(Enum):
    VIRTUAL = "virtual"
    CUDA = "cuda"
    CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """A parsed device string."""

    kind: DeviceKind
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind is DeviceKind.CPU else f"{self.kind.value}:{self.index}"

    @property
    def torch_device(self) -> str:
        """Where tensors of this device live, for torch."""
        return f"cuda:{self.index}" if self.kind is DeviceKind.CUDA else "cpu"


def parse_device(text: str) -> Device:
    """Parses `virtual:N`, `cuda:N` or `cpu`. Raises ValueError for anything else."""
    if text == "cpu":
        return Device(DeviceKind.CPU)
    kind, _, index = text.partition(":")
    if kind not in ("virtual", "cuda") or not (index.isascii() and index.isdigit() and len(index) <= 4):
        raise ValueError(f"device {text!r} is none of virtual:N, cuda:N, cpu")
    return Device(DeviceKind(kind), int(index))


class DeviceFull(Exception):
    """A pool is too small for a tensor: its size was computed wrongly, which is our own bug and never an operator's mistake."""


def room(tensors: Iterable[tuple[Sequence[int], "torch.dtype"]]) -> int:
    """Returns the bytes of pool that tensors of these (shape, dtype) take, their alignment included."""
    total = 0
    for shape, dtype in tensors:
        total += _aligned(_bytes(shape, dtype))
    return total


def _bytes(shape: Sequence[int], dtype: "torch.dtype") -> int:
    count = 1
    for length in shape:
        count *= length
    return count * dtype.itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Pool:
    """A stretch of device memory that tensors are cut from, given back and taken again as a whole. Not thread-safe."""

    def __init__(self, device: Device, size: int) -> None:
        """Takes at least `size` bytes on `device`, all zeros. Raises OSError (virtual) or torch's out-of-memory error (cuda)."""
        self.device = device
        self.size = max(GRAIN, -(-size // GRAIN) * GRAIN)
        self.used = 0
        self.released = False
        self._memory = _SharedMemory(device.index, self.size) if device.kind is DeviceKind.VIRTUAL else _Storage(device, self.size)

    def take(self, shape: Sequence[int], dtype: "torch.dtype") -> "torch.Tensor":
        """Cuts a contiguous tensor of this shape off the pool, at the next 64-byte boundary, zeros at first. Raises DeviceFull."""
        size = _bytes(shape, dtype)
        if self.used + size > self.size:
            raise DeviceFull(f"a pool of {self.size} bytes on {self.device} has {self.size - self.used} left, {size} were asked for")
        start = self.used
        self.used = min(self.size, start + _aligned(size))
        return self._memory.flat[start : start + size].view(dtype).view(tuple(shape))

    def contains(self, tensor: "torch.Tensor") -> bool:
        """Tells whether the tensor's storage is this pool's."""
        return tensor.untyped_storage().data_ptr() == self._memory.flat.untyped_storage().data_ptr() and not self.released

    def release(self) -> None:
        """Gives the memory back; touching a tensor of this pool is now fatal. Does nothing when it is given back already."""
        if not self.released:
            self.released = True
            self._memory.release()

    def restore(self) -> None:
        """Takes the memory again: the same tensors, all zeros. Does nothing when it is not given back."""
        if self.released:
            self._memory.restore()
            self.released = False

    def touch(self) -> None:
        """Writes every page (zeros), so that the pool's full size is held, and measured, from now on."""
        self._memory.flat.zero_()

    def close(self) -> None:
        """Gives the memory back for good."""
        self.release()
        self._memory.close()


class _Storage:
    """Ordinary torch memory whose storage shrinks to nothing and comes back under the same tensors."""

    def __init__(self, device: Device, size: int) -> None:
        import torch  # only processes that compute may load it

        self._size = size
        self.flat = torch.zeros(size, dtype=torch.uint8, device=device.torch_device)

    def release(self) -> None:
        self.flat.untyped_storage().resize_(0)
        if self.flat.is_cuda:
            import torch

            torch.cuda.synchronize(self.flat.device)
            torch.cuda.empty_cache()

    def restore(self) -> None:
        self.flat.untyped_storage().resize_(self._size)
        self.flat.zero_()

    def close(self) -> None:
        """Nothing else is held."""


class _SharedMemory:
    """A memfd mapped once. Its descriptor stays open as long as memory may be held: the meter finds it, `ftruncate` needs it."""

    def __init__(self, gpu: int, size: int) -> None:
        import torch  # only processes that compute may load it

        self._size = size
        self._file = open(os.memfd_create(memfd_name(gpu), os.MFD_CLOEXEC), "r+b", buffering=0)  # noqa: SIM115 - held
        self._file.truncate(size)
        self.flat: torch.Tensor = torch.frombuffer(_mapped(self._file, size), dtype=torch.uint8)

    def release(self) -> None:
        self._file.truncate(0)

    def restore(self) -> None:
        self._file.truncate(self._size)

    def close(self) -> None:
        self._file.close()


def _mapped(file: FileIO, size: int) -> Any:
    """Returns the file as a writable buffer, which is unmapped when nothing refers to it any more (torch does as long as a tensor lives).

    Not `mmap.mmap`: that duplicates the descriptor, and a meter that sums over descriptors would count twice.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"mapping {size} bytes of virtual GPU memory: {os.strerror(code)}")
    buffer = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(buffer, _unmap, libc, address, size, file).atexit = False  # at exit the kernel does it; threads may still compute
    return buffer


def _unmap(libc: ctypes.CDLL, address: int, size: int, file: FileIO) -> None:
    libc.munmap(address, size)
    file.close()

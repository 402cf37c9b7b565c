"""The engine's device memory is two pools, weights and KV cache, given back and taken again by SGLang's tags."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from trainshed.virtual_gpu import Device, Pool, room

from engines.embedded.architecture import Architecture

if TYPE_CHECKING:
    import torch

WEIGHTS: Final = "weights"
KV_CACHE: Final = "kv_cache"
CUDA_GRAPH: Final = "cuda_graph"
TAGS: Final = (WEIGHTS, KV_CACHE, CUDA_GRAPH)
KV_FLOOR: Final = 8 << 20
"""Bytes. The KV pool of a toy model is made this large, so that an awake engine shows on the meter of a virtual GPU."""


class MisusedMemory(Exception):
    """A call that SGLang does not survive: a tag released twice, or resumed without having been released."""


class EngineMemory:
    """One engine's weights (`weights`, by name) and KV cache (`kv`: layers x 2 x slots x kv_heads x context x head_dim).

    After `release` their content is gone: after `resume` the KV cache is zeros, which is right, and the weights are zeros, which is not.
    """

    def __init__(self, device: Device, architecture: Architecture, dtype: "torch.dtype", slots: int, context: int) -> None:
        """Take the memory. Raises OSError or torch's out-of-memory error."""
        shapes = architecture.tensors()
        self._weights = Pool(device, room((shape, dtype) for shape in shapes.values()))
        self.weights = {name: self._weights.take(shape, dtype) for name, shape in shapes.items()}
        shape = (architecture.layers, 2, slots, architecture.kv_heads, context, architecture.head_dim)
        self._kv = Pool(device, max(KV_FLOOR, room([(shape, dtype)])))
        self.kv = self._kv.take(shape, dtype)
        self._kv.touch()
        self._pools = {WEIGHTS: self._weights, KV_CACHE: self._kv}
        self.released: set[str] = set()

    @property
    def held(self) -> int:
        """Return the bytes of device memory held now."""
        return sum(pool.size for pool in self._pools.values() if not pool.released)

    def release(self, tags: Iterable[str]) -> None:
        """Give back what these tags name (none: all). An unknown tag is only remembered, as SGLang does. Raises MisusedMemory."""
        for tag in tuple(tags) or TAGS:
            if tag in self.released:
                raise MisusedMemory(f"release of {tag!r}, which is released already")
            self.released.add(tag)
            if tag in self._pools:
                self._pools[tag].release()

    def resume(self, tags: Iterable[str]) -> None:
        """Take back what these tags name (none: all). Raises MisusedMemory, OSError, torch's out-of-memory error."""
        for tag in tuple(tags) or TAGS:
            if tag not in self.released:
                raise MisusedMemory(f"resume of {tag!r}, which is not released")
            self.released.remove(tag)
            if tag in self._pools:
                self._pools[tag].restore()
            if tag == KV_CACHE:
                self._kv.touch()

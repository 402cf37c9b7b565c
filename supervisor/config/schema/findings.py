"""The parts that read a configuration pass these facts and findings to each other. PURE."""

from dataclasses import dataclass
from typing import NamedTuple

from trainers.protocol.ids import GpuId


class GpuFact(NamedTuple):
    """One GPU of the host's list. `total_bytes` is None where there is no such limit or it is not known (virtual GPUs).
    `driver_cuda` is the newest CUDA that the driver runs (13000 is 13.0), None for virtual GPUs and where it is not known."""

    id: GpuId
    name: str
    total_bytes: int | None
    driver_cuda: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSize:
    """`weights` is the bytes of a model's safetensors files; `kv_token` the bytes that one token takes in a float32 KV cache, None if unknown."""

    weights: int
    kv_token: int | None


class Finding(NamedTuple):
    """Something is wrong at `key` (`pipeline[0].engine.gpus`); `also` are further keys it was concluded from.

    When one of those could not be read, the finding is a mere consequence and is not shown.
    """

    key: str
    value: object
    problem: str
    remedy: str
    also: tuple[str, ...] = ()

"""The GPUs of this box behind one interface: what they are, and how much memory is in use, measured from outside.

Two implementations: `nvml.py` (real ones, by UUID) and `virtual_gpus.py` (memory in named memfds); `inventory.py` chooses. A failed measurement is an
exception, never a small number: who cannot be measured is not empty.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from supervisor.errors import SetUpError
from supervisor.host.gpus.emptiness import Usage
from trainers.protocol.ids import GpuId, GroupId

__all__ = ["Gpu", "GpuMeter", "GpusUnusable", "MeasureFailed", "Usage", "Visible", "visible"]


class GpusUnusable(SetUpError):
    """The operator's `[host]` names GPUs that are not there."""


class MeasureFailed(Exception):
    """Nobody knows what is used now. Never to be taken for "free"."""


@dataclass(frozen=True)
class Gpu:
    """`device` names it to people and in logs: `virtual:2`, or the UUID of a real one."""

    id: GpuId
    name: str
    uuid: str | None
    total_bytes: int | None
    device: str


class GpuMeter(Protocol):
    gpus: tuple[Gpu, ...]
    measures_others: bool
    """Whether programs that are not ours are measured too (they hold nothing on a virtual GPU)."""

    async def measure(self, gpus: Collection[GpuId], pids: Mapping[GroupId, Collection[int]]) -> Usage:
        """What is used now. Raises MeasureFailed."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Visible:
    """What a child must be told to see these GPUs and no others: its device strings, and additions to its environment."""

    devices: tuple[str, ...]
    env: Mapping[str, str]


def visible(gpus: Sequence[Gpu]) -> Visible:
    uuids = [gpu.uuid for gpu in gpus if gpu.uuid is not None]
    if not uuids:
        return Visible(tuple(gpu.device for gpu in gpus), {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    return Visible(tuple(f"cuda:{index}" for index in range(len(uuids))), {"CUDA_VISIBLE_DEVICES": ",".join(uuids)})

"""A meter stands for the GPUs of this box: it says what they are and how much of their memory is in use, measured from outside.

There are two implementations: `nvml.py` (real GPUs, by UUID) and `virtual.py` (memory in named memfds); `inventory.py` chooses. A failed
measurement is an exception, never a small number: a GPU that cannot be measured is not empty.
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
    """Nobody knows what is used now. It must never be taken for "free"."""


@dataclass(frozen=True)
class Gpu:
    """A GPU of this box. `device` names it to people and in logs: `virtual:2`, or the UUID of a real one.

    `total_bytes` is what processes may use: without the `reserved_bytes` of the driver. `index` is its place on the PCI bus among the GPUs that
    the driver shows; a MIG instance has none. `baseline_bytes` were used before anything of ours lived (a display), and are not counted.
    `driver_cuda` is the newest CUDA that its driver runs (13000 is 13.0).
    """

    id: GpuId
    name: str
    uuid: str | None
    total_bytes: int | None
    device: str
    index: int | None = None
    reserved_bytes: int = 0
    baseline_bytes: int = 0
    driver_cuda: int | None = None


class GpuMeter(Protocol):
    """A GpuMeter measures the memory of the GPUs that it lists."""

    gpus: tuple[Gpu, ...]
    measures_others: bool
    """Whether programs that are not ours are measured too (they hold nothing on a virtual GPU)."""

    async def measure(self, gpus: Collection[GpuId], pids: Mapping[GroupId, Collection[int]]) -> Usage:
        """Return what is used now. `pids` are the processes of each group. Raises MeasureFailed."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Visible:
    """What a child is given so that it sees certain GPUs and no others: their device strings, and additions to its environment."""

    devices: tuple[str, ...]
    env: Mapping[str, str]


def visible(gpus: Sequence[Gpu]) -> Visible:
    """Say how a child is made to see these GPUs only. They are all virtual, or all real.

    Several whole GPUs are told by their indices on the PCI bus: SGLang's custom all-reduce reads the list as numbers, and is silently off
    for UUIDs (0.5.23, custom_all_reduce_utils.py). One GPU, and MIG instances, are told by UUID.
    """
    uuids = [gpu.uuid for gpu in gpus if gpu.uuid is not None]
    if not uuids:
        return Visible(tuple(gpu.device for gpu in gpus), {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    indices = [str(gpu.index) for gpu in gpus if gpu.index is not None]
    several = len(indices) == len(gpus) > 1
    names = {"CUDA_VISIBLE_DEVICES": ",".join(indices if several else uuids), **({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if several else {})}
    return Visible(tuple(f"cuda:{index}" for index in range(len(uuids))), names)

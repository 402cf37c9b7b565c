"""This module opens the meter of the GPUs that a configuration asks for."""

from supervisor.host.gpus.meter import GpuMeter, GpusUnusable
from supervisor.host.gpus.nvml import NvmlGpus, Wanted
from supervisor.host.gpus.virtual import VirtualGpus


def open_meter(gpus: Wanted | None, virtual: int | None) -> GpuMeter:
    """Open real GPUs ("auto", which is also the meaning of None, indices as nvidia-smi counts them, or UUIDs), or so many virtual ones.

    Raises GpusUnusable when both are given, there is no driver, or a GPU is not there.
    """
    if virtual is None:
        return NvmlGpus.open(gpus if gpus is not None else "auto")
    if gpus is not None:
        raise GpusUnusable("host.gpus", "", "host.gpus and host.virtual are both given", "Keep one of them")
    return VirtualGpus(virtual)

"""This module opens the meter of the GPUs that a configuration asks for."""

from supervisor.host.gpus.meter import GpuMeter, GpusUnusable
from supervisor.host.gpus.nvml import NvmlGpus, Wanted
from supervisor.host.gpus.virtual import VirtualGpus


def open_meter(gpus: Wanted | None = None, virtual: int | None = None) -> GpuMeter:
    """Open so many virtual GPUs, or the real ones that `gpus` names (all, where neither is given).

    Raises GpusUnusable: both kinds are asked for, there is no driver, or a GPU is not there.
    """
    if virtual is None:
        return NvmlGpus.open(gpus if gpus is not None else "auto")
    if gpus is not None:
        raise GpusUnusable("host.gpus and host.virtual are both given: keep one of them")
    return VirtualGpus(virtual)

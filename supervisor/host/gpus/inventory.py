"""Opens the GPUs that `[host]` asks for."""

from supervisor.host.gpus.meter import GpuMeter, GpusUnusable
from supervisor.host.gpus.nvml import NvmlGpus, Wanted
from supervisor.host.gpus.virtual import VirtualGpus


def inventory(gpus: Wanted | None, virtual: int | None) -> GpuMeter:
    """Returns the meter of real GPUs ("auto", indices as nvidia-smi counts them, or UUIDs), or of so many virtual ones.

    Raises GpusUnusable: both kinds, no driver, or a GPU that is not there.
    """
    if virtual is not None:
        if gpus is not None:
            raise GpusUnusable("host.gpus and host.virtual are both given: keep one of them")
        return VirtualGpus(virtual)
    return NvmlGpus.open(gpus if gpus is not None else "auto")

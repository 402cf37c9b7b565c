"""Which GPUs `[host]` asks for."""

from supervisor.config import Host
from supervisor.runtime.gpus import GpuMeter, GpusUnusable
from supervisor.runtime.nvml import NvmlGpus
from supervisor.runtime.virtual_gpus import VirtualGpus


def inventory(host: Host) -> GpuMeter:
    """Raises GpusUnusable: both kinds, no driver, or a GPU that is not there."""
    if host.virtual is not None:
        if host.gpus is not None:
            raise GpusUnusable("host.gpus and host.virtual are both given: keep one of them")
        return VirtualGpus(host.virtual)
    return NvmlGpus.open(host.gpus if host.gpus is not None else "auto")

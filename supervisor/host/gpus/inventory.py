"""Which GPUs `[host]` asks for."""

from supervisor.config.schema.tables import HostTable
from supervisor.host.gpus.meter import GpuMeter, GpusUnusable
from supervisor.host.gpus.nvml import NvmlGpus
from supervisor.host.gpus.virtual import VirtualGpus


def inventory(host: HostTable) -> GpuMeter:
    """Raises GpusUnusable: both kinds, no driver, or a GPU that is not there."""
    if host.virtual is not None:
        if host.gpus is not None:
            raise GpusUnusable("host.gpus and host.virtual are both given: keep one of them")
        return VirtualGpus(host.virtual)
    return NvmlGpus.open(host.gpus if host.gpus is not None else "auto")

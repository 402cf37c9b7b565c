"""Names of the things that live and die: typed, ordered, never parsed back from a string."""

from typing import NewType

import msgspec

PipelineId = NewType("PipelineId", str)
GpuId = NewType("GpuId", int)
"""Position of a GPU in the host's list (`[host] gpus`), 0-based; never a CUDA index."""
Incarnation = NewType("Incarnation", int)
"""Which life of a group an answer belongs to. It advances when the group *exits*, so a late answer from the dead is seen as such."""
Version = NewType("Version", int)
"""Weight version of a pipeline, issued by the supervisor; 0 is the model path itself."""


class EngineId(msgspec.Struct, frozen=True, order=True, tag="engine", tag_field="group"):
    """One model replica: dp rank `rank` of a pipeline, on `gpus[rank*tp:(rank+1)*tp]`."""

    pipeline: PipelineId
    rank: int

    def __str__(self) -> str:
        return f"{self.pipeline}/engine/{self.rank}"


class TrainerId(msgspec.Struct, frozen=True, order=True, tag="trainer", tag_field="group"):
    """The rank processes of one pipeline's trainer."""

    pipeline: PipelineId

    def __str__(self) -> str:
        return f"{self.pipeline}/trainer"


class GatewayId(msgspec.Struct, frozen=True, order=True, tag="gateway", tag_field="group"):
    """The HTTP front of one pipeline."""

    pipeline: PipelineId

    def __str__(self) -> str:
        return f"{self.pipeline}/gateway"


GroupId = EngineId | TrainerId | GatewayId

"""Which engines' memory nobody can measure here: programs that are not ours, on virtual GPUs. PURE."""

from collections.abc import Iterator

from supervisor.config.schema.tables import Config
from trainers.protocol.ids import GpuId, PipelineId


def pipelines(config: Config) -> Iterator[PipelineId]:
    """Whose engines hold memory that does not show."""
    if config.host.virtual is not None:
        yield from (PipelineId(pipeline.name) for pipeline in config.pipeline if pipeline.engine.kind != "embedded")


def gpus(config: Config) -> frozenset[GpuId]:
    """Of these nobody may say how much is used, nor that they are empty."""
    blind = set(pipelines(config))
    return frozenset(GpuId(gpu) for pipeline in config.pipeline if pipeline.name in blind for gpu in pipeline.engine.gpus)

"""What everything that acts has in common: the configuration, the run's directory, the children, and the way events go back."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog

from supervisor.attempt.checkpoints import Checkpoints
from supervisor.attempt.directory import RunDirectory
from supervisor.attempt.journal import Journal
from supervisor.config.schema.tables import Config, PipelineTable
from supervisor.host.gpus.meter import Gpu, GpuMeter
from supervisor.host.ports import Ports
from supervisor.host.processes.group import Group, Processes
from supervisor.scheduler.events import Event
from trainers.protocol.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation, PipelineId, tag


class Tasks(Protocol):
    """Where background work runs (a task group's `start_soon`)."""

    def __call__(self, func: Callable[..., Coroutine[Any, Any, Any]], /, *args: Any, name: object = None) -> object: ...


@dataclass(slots=True)
class Living:
    """A group that has processes: this incarnation's."""

    group: Group
    incarnation: Incarnation
    tag: str
    stopping: bool = False


@dataclass(slots=True)
class Site:
    """`feed` hands an event to the driver; `spawn_task` runs something beside it until the supervisor ends."""

    config: Config
    directory: RunDirectory
    shm: Path
    processes: Processes
    ports: Ports
    meter: GpuMeter
    journal: Journal
    log: "structlog.typing.FilteringBoundLogger"
    environ: Mapping[str, str]
    feed: Callable[[Event], None]
    spawn_task: Tasks
    living: dict[GroupId, Living] = field(default_factory=dict)
    checkpoints: dict[PipelineId, Checkpoints] = field(default_factory=dict)
    published: dict[PipelineId, int] = field(default_factory=dict)
    urls: dict[PipelineId, str] = field(default_factory=dict)

    def pipeline(self, id: PipelineId) -> PipelineTable:
        return next(pipeline for pipeline in self.config.pipeline if pipeline.name == id)

    def gpus(self, ids: tuple[GpuId, ...] | list[int]) -> list[Gpu]:
        known = {gpu.id: gpu for gpu in self.meter.gpus}
        return [known[GpuId(id)] for id in ids]

    def weights(self, pipeline: PipelineId) -> Path:
        """The pipeline's snapshots in shared memory."""
        return self.shm / pipeline

    def model(self, pipeline: PipelineId) -> Path:
        """The model path: version 0."""
        model = self.pipeline(pipeline).engine.model
        return Path(model).absolute() if isinstance(model, str) else self.directory.models(pipeline) / "v0"

    def tag(self, group: GroupId, incarnation: Incarnation) -> str:
        """What the environment of this life's processes shows, so that a lost one can be recognised."""
        return tag(self.directory.run_id, group, incarnation)

    def bundle(self, engine: EngineId) -> list[Gpu]:
        spec = self.pipeline(engine.pipeline).engine
        return self.gpus(spec.gpus[engine.rank * spec.tp : (engine.rank + 1) * spec.tp])

    def group_log(self, group: GroupId, incarnation: Incarnation) -> "structlog.typing.FilteringBoundLogger":
        if isinstance(group, EngineId):
            return self.log.bind(pipeline=group.pipeline, engine=group.rank, incarnation=incarnation)
        part = "gateway" if isinstance(group, GatewayId) else "trainer"
        return self.log.bind(pipeline=group.pipeline, group=part, incarnation=incarnation)

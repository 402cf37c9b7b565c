"""What to do. Each action has an `id` and is answered by exactly one event that bears it, also when it fails or takes too long."""

import msgspec

from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId, Version
from trainers.protocol.trainer_messages import SupervisorMessage


class _Action(msgspec.Struct, frozen=True, tag=True, tag_field="do", kw_only=True):
    id: int


class PrepareModel(_Action, frozen=True):
    """See that the pipeline's model path exists (a recipe is run). -> `ModelReady`"""

    pipeline: PipelineId


class StartGroup(_Action, frozen=True):
    """Spawn the members of an engine and see it ready: listener ours, one token generated through the real endpoint. -> `GroupReady`"""

    engine: EngineId
    incarnation: Incarnation


class StartTrainer(_Action, frozen=True):
    """Spawn the ranks; they resume at `steps_done`. `restore`: they must publish what they restored. -> `TrainerStarted`"""

    pipeline: PipelineId
    incarnation: Incarnation
    steps_done: int
    restore: bool


class StartGateway(_Action, frozen=True):
    """Spawn the gateway on the pipeline's inherited socket. -> `GatewayReady`"""

    pipeline: PipelineId
    incarnation: Incarnation


class StopGroup(_Action, frozen=True):
    """End every member: KILL at once, or TERM, grace, KILL. Answered when every pid of this incarnation is gone. -> `GroupGone`"""

    group: GroupId
    incarnation: Incarnation
    kill: bool


class Measure(_Action, frozen=True):
    """Look until these GPUs measure empty of `holder` (nobody, at the start), or `within` seconds have passed. -> `GpuFree` | `GpuHeld`"""

    holder: GroupId | None
    gpus: tuple[GpuId, ...]
    within: float


class Pause(_Action, frozen=True):
    """Give back device memory. -> `Paused`"""

    engine: EngineId
    incarnation: Incarnation


class Wake(_Action, frozen=True):
    """Take device memory back, load `version`, resume the KV cache. -> `Woken` with the version read back"""

    engine: EngineId
    incarnation: Incarnation
    version: Version


class LoadWeights(_Action, frozen=True):
    """Load `version` in place; requests that run stay. -> `Woken` with the version read back"""

    engine: EngineId
    incarnation: Incarnation
    version: Version


class Route(_Action, frozen=True):
    """The gateway may send requests to this engine. -> `Ordered`"""

    engine: EngineId
    incarnation: Incarnation
    version: Version


class Unroute(_Action, frozen=True):
    """No new request to this engine, and none to any with weights older than the `published`. What runs there runs on, unless
    `on_publish` says that it is begun anew. -> `Ordered`"""

    engine: EngineId
    incarnation: Incarnation
    published: Version = Version(0)


class Drain(_Action, frozen=True):
    """No new request; what runs there continues elsewhere with the tokens so far. -> `Ordered` when nothing of ours is left on it"""

    engine: EngineId
    incarnation: Incarnation


class Lost(_Action, frozen=True):
    """The engine is dead or condemned; the gateway fails its requests over. -> `Ordered`"""

    engine: EngineId
    incarnation: Incarnation


class OpenAtGateway(_Action, frozen=True):
    """-> `Ordered`"""

    pipeline: PipelineId
    rollout: int
    target: int


class CloseAtGateway(_Action, frozen=True):
    """-> `Ordered` when every sample of it has been answered"""

    pipeline: PipelineId
    rollout: int


class ForgetAtGateway(_Action, frozen=True):
    """The trainer died: every rollout of its past life ends. -> `Ordered`"""

    pipeline: PipelineId


class TellHopeless(_Action, frozen=True):
    """No engine can come back (or, with "", one can again). -> `Ordered`"""

    pipeline: PipelineId
    reason: str


class TellTrainer(_Action, frozen=True):
    """One message to every rank. -> `Told`"""

    pipeline: PipelineId
    incarnation: Incarnation
    message: SupervisorMessage


class AdoptSnapshot(_Action, frozen=True):
    """Make the folder `name` the snapshot of `version`, atomically. -> `SnapshotAdopted`"""

    pipeline: PipelineId
    name: str
    version: Version


class DropSnapshot(_Action, frozen=True):
    """Nobody needs this version any more. -> `Told`"""

    pipeline: PipelineId
    version: Version


class RecordCheckpoint(_Action, frozen=True):
    """Remember where a restart resumes; delete what is older than the kept ones. -> `CheckpointKept`"""

    pipeline: PipelineId
    step: int
    path: str


GatewayOrder = Route | Unroute | Drain | Lost | OpenAtGateway | CloseAtGateway | ForgetAtGateway | TellHopeless
Action = (
    PrepareModel | StartGroup | StartTrainer | StartGateway | StopGroup | Measure | Pause | Wake | LoadWeights | GatewayOrder
    | TellTrainer | AdoptSnapshot | DropSnapshot | RecordCheckpoint
)  # fmt: skip

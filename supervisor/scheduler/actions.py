"""Actions are what the scheduler wants done. Each has an `id` and is answered by exactly one event that bears it, also when it fails or takes too long.

`subject` is the group or pipeline that an action is about. Names and fields are a file format: recordings hold them.
"""

import msgspec

from trainers.protocol.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation, PipelineId, TrainerId, Version
from trainers.protocol.trainer_messages import SupervisorMessage


class _Action(msgspec.Struct, frozen=True, tag=True, tag_field="do", kw_only=True):
    id: int


class _PipelineAction(_Action, frozen=True):
    pipeline: PipelineId

    @property
    def subject(self) -> PipelineId:
        """Whom the action is about."""
        return self.pipeline


class _TrainerAction(_Action, frozen=True):
    pipeline: PipelineId

    @property
    def subject(self) -> TrainerId:
        """Whom the action is about."""
        return TrainerId(self.pipeline)


class _GatewayAction(_Action, frozen=True):
    pipeline: PipelineId

    @property
    def subject(self) -> GatewayId:
        """Whom the action is about."""
        return GatewayId(self.pipeline)


class _EngineAction(_Action, frozen=True):
    engine: EngineId
    incarnation: Incarnation

    @property
    def subject(self) -> EngineId:
        """Whom the action is about."""
        return self.engine


class PrepareModel(_PipelineAction, frozen=True):
    """See that the pipeline's model path exists (a recipe is run). -> `ModelReady`"""


class StartGroup(_EngineAction, frozen=True):
    """Spawn the members of an engine and see it ready: listener ours, one token generated through the real endpoint. -> `GroupReady`"""


class StartTrainer(_TrainerAction, frozen=True):
    """Spawn the ranks; they resume at `steps_done`. `restore`: they must publish what they restored. -> `TrainerStarted`"""

    incarnation: Incarnation
    steps_done: int
    restore: bool


class StartGateway(_GatewayAction, frozen=True):
    """Spawn the gateway on the pipeline's inherited socket. -> `GatewayReady`"""

    incarnation: Incarnation


class StopGroup(_Action, frozen=True, omit_defaults=True):
    """End every member: KILL at once, or TERM, grace, KILL. Answered when every pid of this incarnation is gone. -> `GroupGone`

    `grace`: what is left of it, for a group that was asked to end before; None: all of `grace_s`.
    """

    group: GroupId
    incarnation: Incarnation
    kill: bool
    grace: float | None = None

    @property
    def subject(self) -> GroupId:
        """Whom the action is about."""
        return self.group


class Measure(_Action, frozen=True):
    """Look until these GPUs measure empty of `holder` (nobody, at the start), or `within` seconds have passed. -> `GpuFree` | `GpuHeld`"""

    holder: GroupId | None
    gpus: tuple[GpuId, ...]
    within: float

    @property
    def subject(self) -> GroupId | None:
        """Whom the action is about; nobody at the start."""
        return self.holder


class Pause(_EngineAction, frozen=True):
    """Give back device memory. -> `Paused`"""


class Wake(_EngineAction, frozen=True):
    """Take device memory back, load `version`, resume the KV cache. -> `Woken` with the version read back"""

    version: Version


class LoadWeights(_EngineAction, frozen=True):
    """Load `version` in place; requests that run stay. -> `Woken` with the version read back"""

    version: Version


class Route(_EngineAction, frozen=True):
    """The gateway may send requests to this engine. -> `Ordered`"""

    version: Version


class Unroute(_EngineAction, frozen=True):
    """No new request to this engine, and none to any with weights older than the `published`. What runs there runs on, unless
    `on_publish` says that it is begun anew. -> `Ordered`"""

    published: Version = Version(0)


class Drain(_EngineAction, frozen=True):
    """No new request; what runs there continues elsewhere with the tokens so far. -> `Ordered` when nothing of ours is left on it"""


class Lost(_EngineAction, frozen=True):
    """The engine is dead or condemned; the gateway fails its requests over. -> `Ordered`"""


class OpenAtGateway(_GatewayAction, frozen=True):
    """-> `Ordered`"""

    rollout: int
    target: int


class CloseAtGateway(_GatewayAction, frozen=True):
    """-> `Ordered` when every sample of it has been answered"""

    rollout: int


class ForgetAtGateway(_GatewayAction, frozen=True):
    """The trainer died: every rollout of its past life ends. -> `Ordered`"""


class TellHopeless(_GatewayAction, frozen=True):
    """No engine can come back (or, with "", one can again). -> `Ordered`"""

    reason: str


class TellTrainer(_TrainerAction, frozen=True, omit_defaults=True):
    """One message to every rank, or to `rank` alone. -> `Told`"""

    incarnation: Incarnation
    message: SupervisorMessage
    rank: int | None = None


class AdoptSnapshot(_TrainerAction, frozen=True):
    """Make the folder `name` the snapshot of `version`, atomically. -> `SnapshotAdopted`"""

    name: str
    version: Version


class DropSnapshot(_PipelineAction, frozen=True):
    """Nobody needs this version any more. -> `Told`"""

    version: Version


class RecordCheckpoint(_TrainerAction, frozen=True):
    """Remember where a restart resumes; delete what is older than the kept ones. -> `CheckpointKept`"""

    step: int
    path: str


GatewayOrder = Route | Unroute | Drain | Lost | OpenAtGateway | CloseAtGateway | ForgetAtGateway | TellHopeless
Action = (
    PrepareModel | StartGroup | StartTrainer | StartGateway | StopGroup | Measure | Pause | Wake | LoadWeights | GatewayOrder
    | TellTrainer | AdoptSnapshot | DropSnapshot | RecordCheckpoint
)  # fmt: skip

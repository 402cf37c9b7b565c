"""Events are what happened. An answer bears the `id` of its action; one whose action is no longer awaited is dropped by `InFlight`."""

from typing import Final, Literal

import msgspec

from trainers.protocol.gateway_messages import Progress
from trainers.protocol.ids import GpuId, GroupId, Incarnation, PipelineId, Version
from trainers.protocol.trainer_messages import TrainerMessage

Verb = Literal["restart", "drain", "pause", "resume", "reset", "stop"]
Part = Literal["", "trainer", "gateway"]
UNKNOWN_CODE: Final = -255
"""The exit code of a process whose status nobody could read."""


class _Event(msgspec.Struct, frozen=True, tag=True, tag_field="event", kw_only=True):
    pass


class _Answer(_Event, frozen=True):
    id: int


class ModelReady(_Answer, frozen=True):
    pass


class GroupReady(_Answer, frozen=True):
    """The engine answers, is ours, and has generated one token. It holds memory and has `version` loaded."""

    version: Version
    pids: tuple[int, ...] = ()


class TrainerStarted(_Answer, frozen=True):
    """Every rank runs. `steps_done` are those that it resumes at, where its newest checkpoint was looked for: fewer than asked when that is lost."""

    pids: tuple[int, ...] = ()
    steps_done: int | None = None


class GatewayReady(_Answer, frozen=True):
    pids: tuple[int, ...] = ()


class GroupGone(_Answer, frozen=True):
    """Every pid of that incarnation is gone (`confirmed`), or one could not be ended: `pids`, where they are known."""

    confirmed: bool
    note: str = ""
    pids: tuple[int, ...] = ()


class GpuFree(_Answer, frozen=True):
    pass


class Holder(msgspec.Struct, frozen=True):
    """A group of ours that holds more on this GPU than a sleeper may keep. Which life of it: what is told of a dead one is nobody's fault."""

    gpu: GpuId
    group: GroupId
    incarnation: Incarnation


class GpuHeld(_Answer, frozen=True):
    """These GPUs still hold memory at the end of the measurement; `note` says who holds how much, `holders` who of ours does, if that is known.

    `strangers`: those of `gpus` that would be empty but for processes which are certainly none of ours.
    """

    gpus: tuple[GpuId, ...]
    note: str
    holders: tuple[Holder, ...] = ()
    strangers: tuple[GpuId, ...] = ()


class Paused(_Answer, frozen=True):
    pass


class Woken(_Answer, frozen=True):
    """Awake with this version truly loaded (read back from the engine). Answers `Wake` and `LoadWeights`."""

    version: Version


class Ordered(_Answer, frozen=True):
    """The gateway has done it; `error` says why it could not."""

    error: str = ""


class Told(_Answer, frozen=True):
    pass


class SnapshotAdopted(_Answer, frozen=True):
    pass


class CheckpointKept(_Answer, frozen=True):
    pass


MAKER_LOST: Final = "lost"
"""The code of a `PrepareModel` whose maker was killed, or could not be started: it may be made again. One that ended by itself has failed."""


class ActionFailed(_Answer, frozen=True):
    """`code` is for programs (the class of a crash, `bad_snapshot` …), `reason` for people."""

    reason: str
    code: str = "failed"


class MemberExited(_Event, frozen=True):
    """A process of a group has ended, asked or not. `code` is its exit status, negative for a signal.

    `error` is the exception of the script's own that ended it, if one did: nothing of the machine, no signal, no other process is to blame.
    """

    group: GroupId
    incarnation: Incarnation
    member: int  # -1: no member, but a process of its tree
    code: int
    note: str = ""
    error: str = ""

    @property
    def how(self) -> str:
        """Return in words how the process ended: "ended with signal 9: out of memory"."""
        code = "" if self.code == UNKNOWN_CODE else f" with signal {-self.code}" if self.code < 0 else f" with exit code {self.code}"
        return f"ended{code}{': ' + self.note if self.note else ''}"


class PeerFailed(_Event, frozen=True):
    """A child's descriptor said something impossible, closed, or is not read: the child has failed."""

    group: GroupId
    incarnation: Incarnation
    reason: str


class RankLeft(_Event, frozen=True):
    """A rank that a launcher has made has closed its channel: it has ended, or will. Its exit code is its launcher's affair."""

    pipeline: PipelineId
    incarnation: Incarnation
    rank: int


class ProbeFailed(_Event, frozen=True):
    """An engine failed its last probe budget; the state and incarnation were the same before and after.

    `silent_for`: seconds since its last sign of life.
    """

    group: GroupId
    incarnation: Incarnation
    reason: str
    silent_for: float = 0.0


class TrainerSaid(_Event, frozen=True):
    pipeline: PipelineId
    incarnation: Incarnation
    rank: int
    message: TrainerMessage


class GatewaySaid(_Event, frozen=True):
    pipeline: PipelineId
    incarnation: Incarnation
    progress: Progress


class OperatorAsked(_Event, frozen=True):
    """An operator asks for something: of a pipeline, of its engine `rank`, or of its `part`. `uid`: whose process asked, as the kernel says."""

    verb: Verb
    pipeline: PipelineId
    rank: int | None = None
    part: Part = ""
    uid: int | None = None


class Stop(_Event, frozen=True):
    """The operator wants an end: 1 gracefully, 2 without draining, 3 kill. `why`: the signal's name, or "operator"; `uid`: whose process asked."""

    level: int
    why: str = ""
    uid: int | None = None


class Tick(_Event, frozen=True):
    """The scheduler's own deadline has come."""


Answer = (
    ModelReady | GroupReady | TrainerStarted | GatewayReady | GroupGone | GpuFree | GpuHeld | Paused | Woken | Ordered | Told
    | SnapshotAdopted | CheckpointKept | ActionFailed
)  # fmt: skip
Event = Answer | MemberExited | PeerFailed | RankLeft | ProbeFailed | TrainerSaid | GatewaySaid | OperatorAsked | Stop | Tick

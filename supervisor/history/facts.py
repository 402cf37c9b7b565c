"""A fact is what an event has changed of a run, as the recording keeps it. On the wire it is an array: the tag, then the fields in their order.

Tags and the order of fields are a file format: a new field comes last, with a default. A group is named by its parts (`pipeline`, and `rank`
of an engine, -1 of a trainer), never by a text that would have to be parsed.
"""

from typing import Literal

import msgspec

TRAINER = -1
"""The `rank` of a trainer."""

WaitKind = Literal["lease", "rollout"]


class _Fact(msgspec.Struct, frozen=True, array_like=True):
    pass


class Party(msgspec.Struct, frozen=True, array_like=True):
    """A group that has GPUs: a pipeline's engine, or its trainer."""

    pipeline: str
    rank: int = TRAINER

    def __str__(self) -> str:
        return f"{self.pipeline}/trainer" if self.rank == TRAINER else f"{self.pipeline}/engine/{self.rank}"


class EnginesOf(msgspec.Struct, frozen=True, array_like=True):
    """The engines of a pipeline: dp rank r owns `gpus[r*tp:(r+1)*tp]` and runs `slots` samples at once."""

    gpus: tuple[int, ...]
    tp: int
    slots: int


class PipelineOf(msgspec.Struct, frozen=True, array_like=True):
    """A pipeline as it is configured; `steps` are 0 where nobody knows."""

    name: str
    engines: EnginesOf
    roles: dict[str, tuple[int, ...]]
    steps: int = 0


class BoxIs(_Fact, frozen=True, tag="box"):
    """The GPUs and pipelines of the box."""

    gpus: tuple[int, ...]
    pipelines: tuple[PipelineOf, ...]


class EngineIs(_Fact, frozen=True, tag="engine"):
    """An engine has this state (a value of `EngineState`), and these weights loaded. `busy`: requests run on it."""

    pipeline: str
    rank: int
    state: str
    incarnation: int
    version: int | None
    busy: bool


class GpuLent(_Fact, frozen=True, tag="lease"):
    """A GPU is lent to a group, or to nobody (`pipeline` is empty). `role`: of a trainer's grant; `leaving`: it is being given back."""

    gpu: int
    pipeline: str = ""
    rank: int = TRAINER
    role: str = ""
    leaving: bool = False


class GpuWithheld(_Fact, frozen=True, tag="fence"):
    """A GPU is lent to nobody because of `reason`; an empty one: it may be lent again."""

    gpu: int
    reason: str


class TrainerIs(_Fact, frozen=True, tag="trainer"):
    """A trainer has this state (a value of `TrainerState`). `note` says why it failed last."""

    pipeline: str
    state: str
    incarnation: int
    note: str = ""


class GatewayIs(_Fact, frozen=True, tag="gateway"):
    """A gateway is serving, starting, failed or cold. `note` says why it failed last."""

    pipeline: str
    state: str
    incarnation: int
    note: str = ""


class Waits(_Fact, frozen=True, tag="waits"):
    """A trainer waits for a lease or for an engine, since `since` on the clock of the events; `why` in words, `whom`: the groups that have the GPUs."""

    pipeline: str
    what: WaitKind
    since: float
    why: str
    whom: tuple[Party, ...] = ()


class Waited(_Fact, frozen=True, tag="waited"):
    """Its wait is over. `got`: it has what it waited for (what the summary counts); else it failed, was refused or gave up."""

    pipeline: str
    what: WaitKind
    got: bool


class Demand(_Fact, frozen=True, tag="demand"):
    """The rollouts of a pipeline: samples of `target` that are `done`, waiting and in flight.

    Over this life of the supervisor: `tokens` made, and `work`, the seconds that all samples together were in flight. `samples` delivered.
    """

    pipeline: str
    step: int
    target: int
    done: int
    waiting: int
    in_flight: int
    tokens: int
    work: float
    samples: int = 0


class PublishedIs(_Fact, frozen=True, tag="version"):
    """The published weight version of a pipeline."""

    pipeline: str
    version: int


class Reported(_Fact, frozen=True, tag="report"):
    """A trainer has reported figures of a step."""

    pipeline: str
    step: int
    metrics: dict[str, float]


class Checkpointed(_Fact, frozen=True, tag="checkpoint"):
    """A checkpoint is recorded: this many steps are done."""

    pipeline: str
    steps_done: int


class FaultChanged(_Fact, frozen=True, tag="fault"):
    """An engine group has failed (`change` is "failed"), or its recovery is over (how). `seconds`: of each step since the failure."""

    pipeline: str
    rank: int
    change: str
    cause: str
    reason: str
    attempt: int = 1
    seconds: dict[str, float] = {}


class Noted(_Fact, frozen=True, tag="note"):
    """What the scheduler gives an operator to read."""

    level: str
    about: str
    what: str


class Asked(_Fact, frozen=True, tag="asked"):
    """Somebody asked for something of a pipeline or group. `uid`: whose process it was, where the kernel said."""

    verb: str
    about: str
    uid: int | None = None


class StopAsked(_Fact, frozen=True, tag="stop"):
    """Somebody asked for the end of the run: 1 gracefully, 2 without draining, 3 kill. `why`: a signal's name, or "operator"."""

    level: int
    why: str = ""
    uid: int | None = None


Fact = (
    BoxIs | EngineIs | GpuLent | GpuWithheld | TrainerIs | GatewayIs | Waits | Waited | Demand | PublishedIs | Reported | Checkpointed
    | FaultChanged | Noted | Asked | StopAsked
)  # fmt: skip

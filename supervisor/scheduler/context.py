"""The context is what every rule works on: the records, the leases, what is in flight, and the time of the event that is being handled.

Each rule takes it as its first argument, `ctx`. A rule reads the records, changes them, and emits actions (`do`), messages to a trainer
(`tell`) and notes for the log (`note`). Nothing outside this package sees it: the face of the scheduler is `Scheduler`.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from trainers.protocol.ids import GpuId, GroupId, PipelineId
from trainers.protocol.trainer_messages import SupervisorMessage

from .actions import Action, TellTrainer
from .faults import KEPT, Cause, Fault, Outcome
from .inflight import InFlight
from .leases import LeaseBook
from .records import Engine, Fleet, Pipeline
from .spec import BoxSpec

About = GroupId | PipelineId | GpuId
Level = Literal["info", "warning", "error"]
FaultChange = Literal["failed"] | Outcome

STOPPING = ("stopping", "the supervisor is stopping; `run --resume` goes on from the last checkpoint")
"""Code and reason of every refusal while the supervisor stops."""


@dataclass(slots=True)
class Context:
    """`now` is the time of the event being handled; `alarm` the earliest moment at which a rule wants to look again."""

    box: BoxSpec
    fleet: Fleet
    leases: LeaseBook
    inflight: InFlight
    now: float
    alarm: float | None = None
    stopping: int = 0  # level of the operator's stop: 0 none, 1 graceful, 2 without draining, 3 kill
    stop_at: float = 0.0  # when a graceful stop loses patience
    faults: deque[Fault] = field(default_factory=lambda: deque(maxlen=KEPT))  # closed faults of engine groups
    fault_changes: list[tuple[FaultChange, Fault]] = field(
        default_factory=list
    )  # faults opened ("failed") and closed by this event, in order
    notes: list[tuple[Level, About, str]] = field(
        default_factory=list
    )  # what this event gives an operator to read: (level, about whom, what)

    def do(self, make: Callable[[int], Action], within: float) -> int:
        """Emit an action that must be answered within so many seconds; returns its id."""
        return self.inflight.start(make, self.now + within)

    def look_again(self, at: float) -> None:
        """A rule waits for a moment: the scheduler's deadline will not be later."""
        if at > self.now and (self.alarm is None or at < self.alarm):
            self.alarm = at

    def due(self, at: float) -> bool:
        """Return whether that moment has come; if not, the scheduler looks again then."""
        self.look_again(at)
        return at <= self.now

    def note(self, level: Level, about: About, what: str) -> None:
        """Write down what an operator should read."""
        self.notes.append((level, about, what))

    # -- trainers

    def tell(self, pipeline: Pipeline, message: SupervisorMessage, rank: int | None = None) -> None:
        """Send one message to every rank of the trainer's present life, or to one of them."""
        life = pipeline.trainer.incarnation
        self.do(lambda id: TellTrainer(id=id, pipeline=pipeline.id, incarnation=life, message=message, rank=rank), self.box.limits.order)

    def count_wait(self, pipeline: Pipeline, what: str) -> None:
        """The trainer's wait for `what` is over: add its seconds to the figures."""
        since = pipeline.figures.waits_since.pop(what, None)
        if since is not None:
            pipeline.figures.waited += self.now - since

    # -- faults of engine groups: opened, their steps marked, and closed when the group is well again or never will be

    def open_fault(self, engine: Engine, cause: Cause, reason: str, member: int | None = None, silent: float = 0.0) -> None:
        """The group has failed. A failure before the last fault is closed is a further attempt of the same recovery."""
        before = engine.fault
        members = self.fleet.pipelines[engine.id.pipeline].spec.engine.members  # as it is declared: in a start-up no pid is known yet
        collateral = tuple(index for index in range(members) if index != member)
        fault = Fault(engine.id, engine.incarnation, cause, reason, self.now, 1, member, collateral, silent)
        if before is not None:
            fault.began, fault.attempt = before.began, before.attempt + 1
            self.close_fault(engine, "failed again")
        fault.mark("failed", self.now)
        engine.fault = fault
        self.fault_changes.append(("failed", fault))

    def mark_fault(self, engine: Engine, step: str) -> None:
        """A step of the group's recovery is done, if it is recovering."""
        if engine.fault is not None:
            engine.fault.mark(step, self.now)

    def close_fault(self, engine: Engine, outcome: Outcome) -> None:
        """The group is well again, or never will be, if it had failed."""
        if engine.fault is not None:
            engine.fault.outcome = outcome
            self.faults.append(engine.fault)
            self.fault_changes.append((outcome, engine.fault))
            engine.fault = None

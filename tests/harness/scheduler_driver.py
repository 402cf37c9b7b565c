"""A scheduler with one pipeline whose world answers every action at once and well, but those that a rule answers otherwise."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from engines.lifecycle.state import EngineState
from supervisor.scheduler import Scheduler
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.context import FaultChange
from supervisor.scheduler.faults import Fault
from supervisor.scheduler.records import Engine
from supervisor.scheduler.spec import BoxSpec, PipelineSpec
from tests.harness.boxes import box, pipeline
from tests.harness.checked_scheduler import well
from tests.harness.defaults import default_limits
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import Progress, RolloutProgress
from trainers.protocol.ids import EngineId, Incarnation, PipelineId

P1 = PipelineId("p1")
ENGINE = EngineId(P1, 0)
LIFE = Incarnation(1)
LIMITS = default_limits()
A = TypeVar("A", bound=do.Action)
Rule = Callable[[do.Action], ev.Event | None]


def of_four(spec: PipelineSpec) -> PipelineSpec:
    """Its engines consist of four processes each."""
    return replace(spec, engine=replace(spec.engine, members=4))


class Driver:
    """A scheduler whose world answers every action at once and well, but those that `rule` answers otherwise (or never)."""

    def __init__(self, spec: BoxSpec | None = None) -> None:
        self.spec = spec or box(2, of_four(pipeline("p1", [0], [0, 1], ranks=1)), limits=LIMITS)
        self.scheduler = Scheduler(self.spec, 0.0)
        self.now = 0.0
        self.rule: Rule = lambda action: None
        self.deaf: tuple[type, ...] = ()
        self.done: list[do.Action] = []
        self.fault_changes: list[tuple[FaultChange, Fault]] = []
        self.feed(ev.Tick())
        self.say(say.Hello(0), say.RequestLease(0, ("init",)), say.Offloaded(0))

    def say(self, *messages: say.TrainerMessage) -> None:
        for message in messages:
            life = self.scheduler.pipelines[P1].trainer.incarnation
            self.feed(ev.TrainerSaid(pipeline=P1, incarnation=life, rank=0, message=message))

    def open(self, target: int = 16, number: int = 0) -> None:
        """A rollout that wants every engine."""
        self.say(say.OpenRollout(number, target))
        self.feed(ev.GatewaySaid(pipeline=P1, incarnation=LIFE, progress=Progress((RolloutProgress(number, target, 0, 0),))))

    def feed(self, *events: ev.Event) -> None:
        todo = list(events)
        while todo:
            actions = self.scheduler.handle(todo.pop(0), self.now)
            self.fault_changes += self.scheduler.fault_changes
            for action in actions:
                self.done.append(action)
                if not isinstance(action, self.deaf):
                    todo.append(self.rule(action) or well(action))

    def wait(self, seconds: float) -> None:
        """Time passes; the scheduler is woken when it wants to be."""
        end = self.now + seconds
        while (deadline := self.scheduler.deadline) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.feed(ev.Tick())
        self.now = end
        self.feed(ev.Tick())

    def engine(self, rank: int = 0) -> Engine:
        return self.scheduler.pipelines[P1].engines[rank]

    def asked(self, kind: type[A], rank: int = 0) -> list[A]:
        return [
            action
            for action in self.done
            if isinstance(action, kind) and getattr(action, "engine", getattr(action, "group", None)) == EngineId(P1, rank)
        ]

    def die(self, rank: int = 0, member: int = 0, code: int = -9) -> None:
        engine = self.engine(rank)
        self.feed(ev.MemberExited(group=engine.id, incarnation=engine.incarnation, member=member, code=code))

    @property
    def faults(self) -> list[Fault]:
        return list(self.scheduler.faults)


def serving() -> Driver:
    driver = Driver()
    driver.open()
    assert driver.engine(0).state is EngineState.SERVING
    assert driver.engine(1).state is EngineState.SERVING
    return driver

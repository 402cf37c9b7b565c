"""A scheduler in the hands of a test: trainers say what the test says, and the world answers at once and well, but for what is held back."""

from collections.abc import Callable
from typing import TypeVar

from engines.lifecycle.state import EngineState
from supervisor.scheduler import Scheduler
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.records import Pipeline
from supervisor.scheduler.spec import BoxSpec, EngineSpec, PipelineSpec, TrainerSpec
from tests.harness.checked_scheduler import well
from tests.harness.defaults import default_limits, default_rules
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import Progress, RolloutProgress
from trainers.protocol.ids import GpuId, GroupId, Incarnation, PipelineId
from trainers.protocol.trainer_messages import SupervisorMessage

FIRST = Incarnation(1)
A = TypeVar("A", bound=do.Action)
Hold = Callable[[do.Action], bool]
Rule = Callable[[do.Action], ev.Event | None]


def spec(name: str, train: list[int], infer: list[int], ranks: int = 1, **roles: list[int]) -> PipelineSpec:
    gpus = {role: tuple(map(GpuId, ids)) for role, ids in {"init": train, "train": train, **roles}.items()}
    return PipelineSpec(PipelineId(name), EngineSpec(tuple(map(GpuId, infer)), 1, 8), TrainerSpec(gpus, ranks, 7200.0))


class Bench:
    """A scheduler whose actions are answered at once and well, but for those that `hold` keeps and those that `rule` answers otherwise."""

    def __init__(self, count: int, *pipelines: PipelineSpec, rule: Rule = lambda _: None) -> None:
        self.now = 0.0
        self.hold: Hold = lambda _: False
        self.rule = rule
        self.held: list[do.Action] = []
        self.done: list[do.Action] = []
        self.heard: dict[str, list[SupervisorMessage]] = {p.id: [] for p in pipelines}
        rules = default_rules(minimum_hold=0.0, max_starting=99)
        self.scheduler = Scheduler(BoxSpec(tuple(map(GpuId, range(count))), pipelines, default_limits(), rules), 0.0)
        self.feed(ev.Tick())

    def feed(self, *events: ev.Event) -> None:
        queue = list(events)
        while queue:
            for action in self.scheduler.handle(queue.pop(0), self.now):
                self.done.append(action)
                if isinstance(action, do.TellTrainer):
                    self.heard[action.pipeline].append(action.message)
                if self.hold(action):
                    self.held.append(action)
                else:
                    queue.append(self.rule(action) or well(action))

    def release(self) -> None:
        held, self.held = self.held, []
        self.hold = lambda _: False
        self.feed(*map(well, held))

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.feed(ev.Tick())

    def wait(self, seconds: float) -> None:
        """Time passes; the scheduler is woken when it wants to be."""
        end = self.now + seconds
        while (deadline := self.scheduler.deadline) is not None and deadline <= end:
            self.later(max(0.0, deadline - self.now))
        self.later(end - self.now)

    def say(self, name: str, message: say.TrainerMessage, rank: int = 0, life: int | None = None) -> None:
        self.now += 1.0
        incarnation = Incarnation(life) if life is not None else self.record(name).trainer.incarnation
        self.feed(ev.TrainerSaid(pipeline=PipelineId(name), incarnation=incarnation, rank=rank, message=message))

    def open(self, name: str, rollout: int = 0, target: int = 640) -> None:
        self.say(name, say.OpenRollout(rollout=rollout, target=target))

    def progress(self, name: str, done: int, rollout: int = 0, target: int = 640) -> None:
        running = min(8, target - done)
        report = RolloutProgress(rollout, target - done - running, running, done)
        self.feed(ev.GatewaySaid(pipeline=PipelineId(name), incarnation=FIRST, progress=Progress((report,))))

    def lease(self, name: str, call: int = 0, *roles: str) -> None:
        self.say(name, say.RequestLease(call=call, roles=roles or ("train",)))

    def record(self, name: str) -> Pipeline:
        return self.scheduler.pipelines[PipelineId(name)]

    def unfinished(self, name: str) -> int:
        return self.record(name).unfinished(self.now, self.scheduler.box.limits.quiet_rollout)

    def train(self, name: str, call: int = 0, *roles: str) -> None:
        """A whole lease: granted, and left again."""
        self.lease(name, call, *roles)
        self.say(name, say.Offloaded(call=call))

    def die(self, group: GroupId, code: int = -9, member: int = 0, life: int = FIRST, error: str = "") -> None:
        self.feed(ev.MemberExited(group=group, incarnation=Incarnation(life), member=member, code=code, error=error))

    def asked(self, kind: type[A]) -> list[A]:
        return [action for action in self.done if isinstance(action, kind)]

    def told(self, name: str, kind: type[SupervisorMessage]) -> list[SupervisorMessage]:
        return [message for message in self.heard[name] if isinstance(message, kind)]

    def awake(self, name: str) -> list[int]:
        engines = self.scheduler.pipelines[PipelineId(name)].engines
        return [rank for rank, engine in engines.items() if engine.state is EngineState.SERVING]

    def granted(self, name: str) -> bool:
        return any(isinstance(message, say.LeaseGranted) for message in self.heard[name])

    def refused(self, name: str) -> list[str]:
        return [message.code for message in self.heard[name] if isinstance(message, say.Refused)]


def one(ranks: int = 1) -> Bench:
    """Two GPUs, one pipeline `a` that trains on the first and has an engine on each."""
    return Bench(2, spec("a", [0], [0, 1], ranks))


def serving() -> Bench:
    """The same with a rollout open and both engines at work."""
    bench = one()
    bench.open("a")
    assert bench.awake("a") == [0, 1]
    return bench

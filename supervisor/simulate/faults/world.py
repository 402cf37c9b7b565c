"""A box in virtual time around the real `Scheduler`: fake engines, gateways and trainers that answer late, twice, never, or die.

One step: the nearest of what was scheduled and the scheduler's own deadline happens; its actions are performed on the fakes, which
schedule their answers. Physical memory is modelled apart from the leases, so that a checker can tell one from the other:
a GPU that two hold memory on at once is a violation whatever the lease book says. What is checked after every step: `promises`.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.scheduler import Scheduler
from supervisor.scheduler.spec import BoxSpec
from trainers.protocol.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation, PipelineId, TrainerId, Version

from . import chaos
from .fakes import FakePipeline, FakeTrainer, Violation
from .promises import Promises


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances per action (0..1): its answer never comes, comes twice, comes very late, or the group dies instead of answering.

    `stuck`: what is to be ended stays, with its memory; `keeps`: a paused engine keeps its memory, or a dead one leaves some behind;
    `lies`: other weights are loaded than were asked for. `alone` and `operator` are the mean seconds from one thing that happens by
    itself, or that an operator asks, to the next (0: none). `stop` is the chance that the run, or a pipeline of it, is stopped before
    its end; `midway` that a rollout sees new weights before its end.
    """

    never: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    dies: float = 0.0
    fails: float = 0.0
    stuck: float = 0.0
    keeps: float = 0.0
    lies: float = 0.0
    alone: float = 0.0
    operator: float = 0.0
    stop: float = 0.0
    midway: float = 0.0
    until: float = 200.0  # seconds of virtual time after which nothing fails any more


class World:
    """`run()` until every pipeline has ended; raises Violation (or the scheduler's AssertionError) when a promise is broken."""

    def __init__(self, box: BoxSpec, seed: int, *, steps: int = 3, target: int = 24, faults: Faults | None = None) -> None:
        self.box = box
        self.random = Random(seed)
        self.faults = faults or Faults()
        self.now = 0.0
        self.scheduler = Scheduler(box, 0.0)
        self.handle: Callable[[ev.Event, float], list[do.Action]] = self.scheduler.handle
        self.events = 0
        self.memory: dict[GpuId, set[GroupId | str]] = {gpu: set() for gpu in box.gpus}
        self.alive: dict[GroupId, Incarnation] = {}
        self.versions: dict[EngineId, Version] = {}
        self.trainers = {
            spec.id: FakeTrainer(spec.id, steps, target, spec.trainer.world_size, step=spec.steps_done) for spec in box.pipelines
        }
        self.fakes = {id: FakePipeline(self, id, trainer) for id, trainer in self.trainers.items()}
        self.pauses = self.wakes = 0
        self.promises = Promises(self)
        self.stopped: set[PipelineId] = set()
        self.undead: dict[tuple[GroupId, Incarnation], float] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    # -- time

    def after(self, delay: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, what))

    def run(self, limit: float = 20_000.0) -> None:
        self.feed(ev.Tick())
        chaos.begin(self)
        while not self.scheduler.finished:
            deadline = self.scheduler.deadline
            if self._heap and (deadline is None or self._heap[0][0] <= deadline):
                self.now, _, what = heapq.heappop(self._heap)
                what()
            elif deadline is not None:
                self.now = deadline
                self.feed(ev.Tick())
            else:
                raise Violation(f"nothing will ever happen again at {self.now:.1f} s: {self.describe()}")
            if self.now > limit:
                raise Violation(f"not finished after {limit:.0f} s of virtual time: {self.describe()}")
        self.promises.ended()

    def incomplete(self) -> list[str]:
        """Pipelines that neither did all their steps with all their samples, nor were given up or stopped."""
        scheduler = self.scheduler
        return [
            f"{fake.pipeline} has only {fake.completed}"
            for fake in self.trainers.values()
            if fake.completed != dict.fromkeys(range(fake.steps), fake.target)
            and not (scheduler.pipelines[fake.pipeline].failed or scheduler.stopping or fake.pipeline in self.stopped)
        ]

    def feed(self, event: ev.Event) -> None:
        self.events += 1
        actions = self.handle(event, self.now)
        self.promises.asked_for(actions)
        for action in actions:
            self.perform(action)
        self.promises.check()

    def describe(self) -> str:
        scheduler = self.scheduler
        lines = [
            f"trainer {p.id}: {p.trainer.state.value} rollouts {list(p.rollouts)} v{p.published}" for p in scheduler.pipelines.values()
        ]
        lines += [f"{e.id}: {e.state.value} op {e.op} route {e.route}" for e in scheduler.engines]
        return "; ".join(
            [*lines, f"fences {scheduler.leases.fences}", *(f"{t.pipeline} {t.place} step {t.step}" for t in self.trainers.values())]
        )

    # -- performing actions on the fakes

    def perform(self, action: do.Action) -> None:
        """Answer after a while, unless a fault strikes."""
        delay = self.random.uniform(0.01, 1.0)
        chance = self.random.random() if self.faulty else 1.0
        subject = _subject(action)
        if isinstance(
            action, do.StopGroup | do.Measure | do.PrepareModel | do.TellTrainer | do.DropSnapshot | do.RecordCheckpoint | do.AdoptSnapshot
        ):
            chance = 1.0  # faults of these are the runtime's own, not a child's
        f = self.faults
        if chance < f.never:
            if isinstance(action, do.GatewayOrder):  # orders are never lost on the way: the gateway itself hangs, and dispatches no more
                self.fakes[_pipeline(action)].gateway.hung = True
            return
        if chance < f.never + f.dies and subject is not None and subject in self.alive:
            self.after(delay, lambda: self.die(subject, -9))
            return
        if chance < f.never + f.dies + f.fails and isinstance(action, do.Pause | do.Wake | do.LoadWeights | do.StartGroup):
            self.after(delay, lambda: self.feed(ev.ActionFailed(id=action.id, reason="a fault of the simulation")))
            return
        if chance < f.never + f.dies + f.fails + f.late:
            delay += self.random.uniform(5.0, 300.0)
        self._perform(action, delay)

    @property
    def faulty(self) -> bool:
        return self.now < self.faults.until

    def strikes(self, chance: float) -> bool:
        return chance > 0.0 and self.faulty and self.random.random() < chance

    def answer(self, delay: float, make: Callable[[], ev.Event | None]) -> None:
        def happen() -> None:
            event = make()
            if event is None:
                return
            self.feed(event)
            if self.strikes(self.faults.twice):
                self.after(self.random.uniform(0.1, 100.0), lambda: self.feed(event))

        self.after(delay, happen)

    def _perform(self, action: do.Action, delay: float) -> None:
        match action:
            case do.PrepareModel():
                self.answer(delay, lambda: ev.ModelReady(id=action.id))
            case do.StartGroup(engine=engine, incarnation=incarnation):
                self._start_engine(action.id, engine, incarnation, delay)
            case do.StartTrainer():
                self.fakes[action.pipeline].start_trainer(action, delay)
            case do.StartGateway(pipeline=pipeline, incarnation=incarnation):
                self.fakes[pipeline].start_gateway(action.id, incarnation, delay)
            case do.StopGroup(group=group, incarnation=incarnation):
                self.answer(delay, lambda: self._stopped(action.id, group, incarnation))
            case do.Measure(holder=holder, gpus=gpus):
                self.answer(delay / 10, lambda: self._measured(action.id, holder, gpus))
            case do.Pause(engine=engine, incarnation=incarnation):
                self.answer(delay, lambda: self._paused(action.id, engine, incarnation))
            case do.Wake(engine=engine, incarnation=incarnation, version=version):
                self._take_memory(engine, incarnation)
                self.answer(delay, lambda: self._woken(action.id, engine, incarnation, version))
            case do.LoadWeights(engine=engine, incarnation=incarnation, version=version):
                self.answer(delay, lambda: self._woken(action.id, engine, incarnation, version))
            case do.TellTrainer(pipeline=pipeline, incarnation=incarnation, message=message):
                self.answer(delay / 100, lambda: self.fakes[pipeline].told(action.id, incarnation, message))
            case do.AdoptSnapshot():
                self.answer(delay / 10, lambda: ev.SnapshotAdopted(id=action.id))
            case do.DropSnapshot():
                self.answer(delay / 10, lambda: ev.Told(id=action.id))
            case do.RecordCheckpoint():
                self.answer(delay / 10, lambda: ev.CheckpointKept(id=action.id))
            case _:
                self.fakes[_pipeline(action)].order(action, delay / 20)

    # -- engines

    def _start_engine(self, id: int, engine: EngineId, incarnation: Incarnation, delay: float) -> None:
        self.alive[engine] = incarnation
        self.versions[engine] = Version(0)
        self._take_memory(engine, incarnation)
        self.answer(delay * 3, lambda: ev.GroupReady(id=id, version=Version(0)) if self.alive.get(engine) == incarnation else None)

    def _take_memory(self, engine: EngineId, incarnation: Incarnation) -> None:
        if self.alive.get(engine) == incarnation:
            for gpu in self.scheduler.engine(engine).gpus:
                self.memory[gpu].add(engine)

    def _paused(self, id: int, engine: EngineId, incarnation: Incarnation) -> ev.Event | None:
        if self.alive.get(engine) != incarnation:
            return None
        if any(rank == engine.rank for rank, _ in self.trainers[engine.pipeline].running.values()):
            if not self.fakes[engine.pipeline].condemned:
                raise Violation(f"{engine} is paused while a request runs on it")
            self.fakes[engine.pipeline].requeue(engine.rank)  # a pause aborts what a dying gateway left there
        self.pauses += 1
        if not self.strikes(self.faults.keeps):
            for gpu in self.scheduler.engine(engine).gpus:
                self.memory[gpu].discard(engine)
        return ev.Paused(id=id)

    def _woken(self, id: int, engine: EngineId, incarnation: Incarnation, version: Version) -> ev.Event | None:
        if self.alive.get(engine) != incarnation:
            return None
        self.wakes += 1
        if self.strikes(self.faults.lies):
            version = Version(version + self.random.choice([-1, 1]))
        self.versions[engine] = version
        return ev.Woken(id=id, version=version)

    def _measured(self, id: int, holder: GroupId | None, gpus: tuple[GpuId, ...]) -> ev.Event:
        held = tuple(gpu for gpu in gpus if self.memory[gpu])
        self.promises.free(tuple(gpu for gpu in gpus if not self.memory[gpu]))
        return ev.GpuHeld(id=id, gpus=held, note=f"held by {self.memory[held[0]]}") if held else ev.GpuFree(id=id)

    def _stopped(self, id: int, group: GroupId, incarnation: Incarnation) -> ev.Event:
        """What cannot be ended is a ghost: its memory stays until it goes by itself."""
        life = (group, incarnation)
        mortal = isinstance(group, GatewayId) or self.alive.get(group) != incarnation
        if not mortal and self.strikes(self.faults.stuck):
            self.undead[life] = self.now + self.random.uniform(5.0, 400.0)
            self._vanish(group, until=self.undead[life])
        elif self.alive.get(group) == incarnation:
            self._vanish(group, until=self.now + 100.0 if not mortal and self.strikes(self.faults.keeps) else 0.0)
        return ev.GroupGone(id=id, confirmed=self.undead.get(life, 0.0) <= self.now, note="a ghost")

    def _vanish(self, group: GroupId, until: float = 0.0) -> None:
        """The processes are gone; until then something of their memory stays."""
        self.alive.pop(group, None)
        ghost = f"ghost of {group}"
        for holders in self.memory.values():
            if group in holders:
                holders.discard(group)
                if until > self.now:
                    holders.add(ghost)
                    self.after(until - self.now, lambda holders=holders: holders.discard(ghost))  # type: ignore[misc]
        fake = self.fakes[group.pipeline]
        if isinstance(group, GatewayId):
            fake.lose_gateway()
        elif isinstance(group, EngineId):
            fake.requeue(group.rank)
        else:
            fake.lose_trainer()

    def die(self, group: GroupId, code: int) -> None:
        """A member of the group ends by itself, and takes the others with it."""
        incarnation = self.alive.get(group)
        if incarnation is None:
            return
        self._vanish(group)
        self.feed(ev.MemberExited(group=group, incarnation=incarnation, member=0, code=code))


def _subject(action: do.Action) -> GroupId | None:
    match action:
        case do.StartGroup(engine=e) | do.Pause(engine=e) | do.Wake(engine=e) | do.LoadWeights(engine=e) | do.Drain(engine=e):
            return e
        case do.AdoptSnapshot(pipeline=p) | do.StartTrainer(pipeline=p):
            return TrainerId(p)
        case do.OpenAtGateway(pipeline=p) | do.CloseAtGateway(pipeline=p):
            return GatewayId(p)
        case _:
            return None


def _pipeline(action: do.Action) -> PipelineId:
    match action:
        case do.Route(engine=e) | do.Unroute(engine=e) | do.Drain(engine=e) | do.Lost(engine=e):
            return e.pipeline
        case do.OpenAtGateway(pipeline=p) | do.CloseAtGateway(pipeline=p) | do.ForgetAtGateway(pipeline=p) | do.TellHopeless(pipeline=p):
            return p
        case _:
            raise AssertionError(f"{action} is no order to a gateway")

"""A simulation is a box in virtual time around the real `Scheduler`: fake engines, gateways and trainers that answer late, twice, never, or die.

One step: the nearest of what was scheduled and the scheduler's own deadline happens; its actions are performed on the fakes, which
schedule their answers. What is checked after every step: `promises`.
"""

from collections.abc import Callable

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.spec import BoxSpec
from trainers.protocol.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation, Version

from . import chaos
from .fakes import FakePipeline, FakeTrainer
from .promises import Promises
from .world import Faults, Violation, World

MORTAL = do.StartGroup | do.Pause | do.Wake | do.LoadWeights | do.Drain | do.StartTrainer | do.OpenAtGateway | do.CloseAtGateway
"""Actions whose group may die instead of answering."""
OURS = do.StopGroup | do.Measure | do.PrepareModel | do.TellTrainer | do.DropSnapshot | do.RecordCheckpoint | do.AdoptSnapshot
"""Actions that always succeed: their faults are the runtime's own, not a child's."""


class Simulation(World):
    """`run()` until every pipeline has ended; raises Violation (or the scheduler's AssertionError) when a promise is broken."""

    def __init__(self, box: BoxSpec, seed: int, *, steps: int = 3, target: int = 24, faults: Faults | None = None) -> None:
        super().__init__(box, seed, faults or Faults())
        self.handle: Callable[[ev.Event, float], list[do.Action]] = self.scheduler.handle
        self.events = 0
        self.trainers = {
            spec.id: FakeTrainer(spec.id, steps, target, spec.trainer.world_size, step=spec.steps_done) for spec in box.pipelines
        }
        self.fakes = {id: FakePipeline(self, id, trainer) for id, trainer in self.trainers.items()}
        self.pauses = self.wakes = 0
        self.promises = Promises(self, self.fakes)

    def run(self, limit: float = 20_000.0) -> None:
        self.feed(ev.Tick())
        chaos.begin(self)
        while not self.scheduler.finished:
            deadline = self.scheduler.deadline
            if self.next_at is not None and (deadline is None or self.next_at <= deadline):
                self.step()
            elif deadline is not None:
                self.now = deadline
                self.feed(ev.Tick())
            else:
                raise Violation(f"nothing will ever happen again at {self.now:.1f} s: {self.describe()}")
            if self.now > limit:
                raise Violation(f"not finished after {limit:.0f} s of virtual time: {self.describe()}")
        self.promises.check_end()

    def incomplete(self) -> list[str]:
        """Return the pipelines that neither did all their steps with all their samples, nor were given up or stopped."""
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
        self.promises.check_actions(actions)
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
        if isinstance(action, OURS):
            chance = 1.0
        f = self.faults
        if chance < f.never:
            if isinstance(action, do.GatewayOrder):  # orders are never lost on the way: the gateway itself hangs, and dispatches no more
                self.fakes[action.subject.pipeline].gateway.hung = True
            return
        if chance < f.never + f.dies and isinstance(action, MORTAL) and (subject := action.subject) in self.alive:
            self.after(delay, lambda: self.die(subject, -9))
            return
        if chance < f.never + f.dies + f.fails and isinstance(action, do.Pause | do.Wake | do.LoadWeights | do.StartGroup):
            self.after(delay, lambda: self.feed(ev.ActionFailed(id=action.id, reason="a fault of the simulation")))
            return
        if chance < f.never + f.dies + f.fails + f.late:
            delay += self.random.uniform(5.0, 300.0)
        self._perform(action, delay)

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
                self.take_memory(engine, incarnation)
                self.answer(delay, lambda: self._woken(action.id, engine, incarnation, version))
            case do.LoadWeights(engine=engine, incarnation=incarnation, version=version):
                self.answer(delay, lambda: self._woken(action.id, engine, incarnation, version))
            case do.TellTrainer(pipeline=pipeline, incarnation=incarnation, message=message):
                self.answer(delay / 100, lambda: self.fakes[pipeline].deliver(action.id, incarnation, message))
            case do.AdoptSnapshot():
                self.answer(delay / 10, lambda: ev.SnapshotAdopted(id=action.id))
            case do.DropSnapshot():
                self.answer(delay / 10, lambda: ev.Told(id=action.id))
            case do.RecordCheckpoint():
                self.answer(delay / 10, lambda: ev.CheckpointKept(id=action.id))
            case _:
                self.fakes[action.subject.pipeline].order(action, delay / 20)

    # -- engines

    def _start_engine(self, id: int, engine: EngineId, incarnation: Incarnation, delay: float) -> None:
        self.alive[engine] = incarnation
        self.versions[engine] = Version(0)
        self.take_memory(engine, incarnation)
        self.answer(delay * 3, lambda: ev.GroupReady(id=id, version=Version(0)) if self.alive.get(engine) == incarnation else None)

    def _paused(self, id: int, engine: EngineId, incarnation: Incarnation) -> ev.Event | None:
        if self.alive.get(engine) != incarnation:
            return None
        if any(rank == engine.rank for rank, _ in self.trainers[engine.pipeline].running.values()):
            if not self.fakes[engine.pipeline].condemned:
                raise Violation(f"{engine} is paused while a request runs on it")
            self.fakes[engine.pipeline].requeue(engine.rank)  # a pause aborts what a dying gateway left there
        self.pauses += 1
        if not self.strikes(self.faults.keeps):
            self.give_back_memory(engine)
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
        self.promises.seen_empty(tuple(gpu for gpu in gpus if not self.memory[gpu]))
        return ev.GpuHeld(id=id, gpus=held, note=f"held by {self.memory[held[0]]}") if held else ev.GpuFree(id=id)

    def _stopped(self, id: int, group: GroupId, incarnation: Incarnation) -> ev.Event:
        """Stop a group. What cannot be ended is a ghost: its memory stays until it goes by itself."""
        life = (group, incarnation)
        mortal = isinstance(group, GatewayId) or self.alive.get(group) != incarnation
        if not mortal and self.strikes(self.faults.stuck):
            self.undead[life] = self.now + self.random.uniform(5.0, 400.0)
            self._vanish(group, until=self.undead[life])
        elif self.alive.get(group) == incarnation:
            self._vanish(group, until=self.now + 100.0 if not mortal and self.strikes(self.faults.keeps) else 0.0)
        return ev.GroupGone(id=id, confirmed=self.undead.get(life, 0.0) <= self.now, note="a ghost")

    def _vanish(self, group: GroupId, until: float = 0.0) -> None:
        """The processes are gone, and with them what they knew."""
        self.vanish(group, until)
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

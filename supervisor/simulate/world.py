"""A box in virtual time around the real `Scheduler`: fake engines, gateways and trainers that answer late, twice, never, or die.

One step: the nearest of what was scheduled and the scheduler's own deadline happens; its actions are performed on the fakes, which
schedule their answers. Physical memory is modelled apart from the leases, so that a checker can tell one from the other:
a GPU that two hold memory on at once is a violation whatever the lease book says.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from engines.gateway.messages import EngineLoad, Progress, RolloutProgress
from engines.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation, PipelineId, TrainerId, Version
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.scheduler import Scheduler
from supervisor.scheduler.spec import BoxSpec
from trainers import messages as say


class Violation(AssertionError):
    """A promise was broken in the fake world."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances per action (0..1): its answer never comes, comes twice, comes very late, or the group dies instead of answering."""

    never: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    dies: float = 0.0
    fails: float = 0.0
    until: float = 200.0  # seconds of virtual time after which nothing fails any more


@dataclass(slots=True)
class FakeTrainer:
    """A script of the design's section 7: rollout, lease, publish, checkpoint, in turn, until `steps`."""

    pipeline: PipelineId
    steps: int
    target: int
    world_size: int
    incarnation: Incarnation | None = None
    step: int = 0
    place: str = "dead"
    calls: int = 0
    publishes: int = 0
    waiting: set[int] = field(default_factory=set)
    running: dict[int, tuple[int, int]] = field(default_factory=dict)  # sample -> (engine, its life)
    delivered: set[int] = field(default_factory=set)
    completed: dict[int, int] = field(default_factory=dict)  # step -> samples delivered


@dataclass(slots=True)
class FakeGateway:
    incarnation: Incarnation | None = None
    routes: dict[int, tuple[Incarnation, Version]] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)


class World:
    """`run()` until every pipeline has ended; raises Violation (or the scheduler's AssertionError) when a promise is broken."""

    def __init__(self, box: BoxSpec, seed: int, *, steps: int = 3, target: int = 24, faults: Faults | None = None) -> None:
        self.box = box
        self.random = Random(seed)
        self.faults = faults or Faults()
        self.now = 0.0
        self.scheduler = Scheduler(box, 0.0)
        self.events = 0
        self.violations_checked = 0
        self.memory: dict[GpuId, set[GroupId]] = {gpu: set() for gpu in box.gpus}
        self.alive: dict[GroupId, Incarnation] = {}
        self.versions: dict[EngineId, Version] = {}
        self.trainers = {
            spec.id: FakeTrainer(spec.id, steps, target, spec.trainer.world_size, step=spec.steps_done) for spec in box.pipelines
        }
        self.gateways = {spec.id: FakeGateway() for spec in box.pipelines}
        self.granted: dict[TrainerId, tuple[GpuId, ...]] = {}
        self.pauses = self.wakes = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    # -- time

    def after(self, delay: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, what))

    def run(self, limit: float = 20_000.0) -> None:
        self.feed(ev.Tick())
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

    def feed(self, event: ev.Event) -> None:
        self.events += 1
        for action in self.scheduler.handle(event, self.now):
            self.perform(action)
        self.check()

    def describe(self) -> str:
        desk = self.scheduler.desk
        lines = [
            f"trainer {p.id}: {p.trainer.state.value} rollouts {list(p.rollouts)} v{p.published}" for p in desk.fleet.pipelines.values()
        ]
        lines += [f"{e.id}: {e.state.value} op {e.op} route {e.route}" for e in desk.fleet.engines]
        return "; ".join(
            [*lines, f"fences {desk.leases.fences}", *(f"{t.pipeline} {t.place} step {t.step}" for t in self.trainers.values())]
        )

    # -- checkers

    def check(self) -> None:
        for gpu, holders in self.memory.items():
            if len(holders) > 1:
                raise Violation(f"GPU {gpu} holds memory of {sorted(map(str, holders))} at {self.now:.2f} s")
        for pipeline, gateway in self.gateways.items():
            if self._condemned(pipeline):
                continue
            for rank, (incarnation, _) in gateway.routes.items():
                engine = EngineId(pipeline, rank)
                if self.alive.get(engine) == incarnation and not self._on_device(engine) and not self._dying(engine):
                    raise Violation(f"{engine} is routed while its memory is given back")

    def _condemned(self, pipeline: PipelineId) -> bool:
        """A gateway that is being killed may still hold routes; engines refuse it on their own side."""
        return not self.scheduler.desk.fleet.pipelines[pipeline].gateway.up

    def _on_device(self, engine: EngineId) -> bool:
        return engine in self.memory[self.scheduler.desk.fleet.engine(engine).gpus[0]]

    def _dying(self, engine: EngineId) -> bool:
        return self.scheduler.desk.fleet.engine(engine).state.value in ("quarantined", "stopping")

    # -- performing actions on the fakes

    def perform(self, action: do.Action) -> None:
        """Answer after a while, unless a fault strikes."""
        delay = self.random.uniform(0.01, 1.0)
        faulty = self.now < self.faults.until
        chance = self.random.random() if faulty else 1.0
        subject = _subject(action)
        if isinstance(
            action, do.StopGroup | do.Measure | do.PrepareModel | do.TellTrainer | do.DropSnapshot | do.RecordCheckpoint | do.AdoptSnapshot
        ):
            chance = 1.0  # faults of these are the runtime's own, not a child's
        f = self.faults
        if chance < f.never:
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
        if 1.0 - f.twice < self.random.random() and faulty and isinstance(action, do.Pause | do.Wake):
            self.after(delay + 0.5, lambda: self.feed(ev.Paused(id=action.id)))

    def _answer(self, delay: float, make: Callable[[], ev.Event | None]) -> None:
        def happen() -> None:
            event = make()
            if event is not None:
                self.feed(event)

        self.after(delay, happen)

    def _perform(self, action: do.Action, delay: float) -> None:
        match action:
            case do.PrepareModel():
                self._answer(delay, lambda: ev.ModelReady(id=action.id))
            case do.StartGroup(engine=engine, incarnation=incarnation):
                self._start_engine(action.id, engine, incarnation, delay)
            case do.StartTrainer():
                self._start_trainer(action, delay)
            case do.StartGateway(pipeline=pipeline, incarnation=incarnation):
                self._start_gateway(action.id, pipeline, incarnation, delay)
            case do.StopGroup(group=group, incarnation=incarnation):
                self._answer(delay, lambda: self._stopped(action.id, group, incarnation))
            case do.Measure(holder=holder, gpus=gpus):
                self._answer(delay / 10, lambda: self._measured(action.id, holder, gpus))
            case do.Pause(engine=engine, incarnation=incarnation):
                self._answer(delay, lambda: self._paused(action.id, engine, incarnation))
            case do.Wake(engine=engine, incarnation=incarnation, version=version):
                self._take_memory(engine, incarnation)
                self._answer(delay, lambda: self._woken(action.id, engine, incarnation, version))
            case do.LoadWeights(engine=engine, incarnation=incarnation, version=version):
                self._answer(delay, lambda: self._woken(action.id, engine, incarnation, version))
            case do.TellTrainer(pipeline=pipeline, incarnation=incarnation, message=message):
                self._answer(delay / 100, lambda: self._told(action.id, pipeline, incarnation, message))
            case do.AdoptSnapshot():
                self._answer(delay / 10, lambda: ev.SnapshotAdopted(id=action.id))
            case do.DropSnapshot():
                self._answer(delay / 10, lambda: ev.Told(id=action.id))
            case do.RecordCheckpoint():
                self._answer(delay / 10, lambda: ev.CheckpointKept(id=action.id))
            case _:
                self._give_order(action, delay / 20)

    # -- engines

    def _start_engine(self, id: int, engine: EngineId, incarnation: Incarnation, delay: float) -> None:
        self.alive[engine] = incarnation
        self.versions[engine] = Version(0)
        self._take_memory(engine, incarnation)
        self._answer(delay * 3, lambda: ev.GroupReady(id=id, version=Version(0)) if self.alive.get(engine) == incarnation else None)

    def _take_memory(self, engine: EngineId, incarnation: Incarnation) -> None:
        if self.alive.get(engine) == incarnation:
            for gpu in self.scheduler.desk.fleet.engine(engine).gpus:
                self.memory[gpu].add(engine)

    def _paused(self, id: int, engine: EngineId, incarnation: Incarnation) -> ev.Event | None:
        if self.alive.get(engine) != incarnation:
            return None
        if any(rank == engine.rank for rank, _ in self.trainers[engine.pipeline].running.values()):
            if not self._condemned(engine.pipeline):
                raise Violation(f"{engine} is paused while a request runs on it")
            self._requeue(engine.pipeline, engine.rank)  # a pause aborts what a dying gateway left there
        self.pauses += 1
        for gpu in self.scheduler.desk.fleet.engine(engine).gpus:
            self.memory[gpu].discard(engine)
        return ev.Paused(id=id)

    def _woken(self, id: int, engine: EngineId, incarnation: Incarnation, version: Version) -> ev.Event | None:
        if self.alive.get(engine) != incarnation:
            return None
        self.wakes += 1
        self.versions[engine] = version
        return ev.Woken(id=id, version=version)

    def _measured(self, id: int, holder: GroupId | None, gpus: tuple[GpuId, ...]) -> ev.Event:
        held = tuple(gpu for gpu in gpus if self.memory[gpu])
        return ev.GpuHeld(id=id, gpus=held, note=f"held by {self.memory[held[0]]}") if held else ev.GpuFree(id=id)

    def _stopped(self, id: int, group: GroupId, incarnation: Incarnation) -> ev.Event:
        if self.alive.get(group) == incarnation:
            self._vanish(group)
        return ev.GroupGone(id=id, confirmed=True)

    def _vanish(self, group: GroupId) -> None:
        self.alive.pop(group, None)
        for holders in self.memory.values():
            holders.discard(group)
        if isinstance(group, GatewayId):
            gateway = self.gateways[group.pipeline]
            gateway.incarnation = None
            gateway.routes.clear()
            gateway.open.clear()
            self._requeue(group.pipeline, None)
        elif isinstance(group, EngineId):
            self._requeue(group.pipeline, group.rank)
        else:
            trainer = self.trainers[group.pipeline]
            trainer.place, trainer.incarnation = "dead", None
            trainer.waiting.clear()
            trainer.running.clear()

    def die(self, group: GroupId, code: int) -> None:
        """A member of the group ends by itself."""
        incarnation = self.alive.get(group)
        if incarnation is None:
            return
        self._vanish(group)
        self.feed(ev.MemberExited(group=group, incarnation=incarnation, member=0, code=code))

    # -- gateways: the fake gateway and the trainer's samples are one

    def _start_gateway(self, id: int, pipeline: PipelineId, incarnation: Incarnation, delay: float) -> None:
        self.alive[GatewayId(pipeline)] = incarnation
        self.gateways[pipeline].incarnation = incarnation
        self._answer(delay / 10, lambda: ev.GatewayReady(id=id))

    def _give_order(self, action: do.Action, delay: float) -> None:
        pipeline = _pipeline(action)
        gateway = self.gateways[pipeline]
        if gateway.incarnation is None:
            return
        match action:
            case do.Route(engine=engine, incarnation=incarnation, version=version):
                if self.versions.get(engine) != version and self.alive.get(engine) == incarnation:
                    raise Violation(f"{engine} is routed as version {version}, it has {self.versions.get(engine)}")
                gateway.routes[engine.rank] = (incarnation, version)
            case do.Unroute(engine=engine):
                gateway.routes.pop(engine.rank, None)
            case do.Drain(engine=engine) | do.Lost(engine=engine):
                gateway.routes.pop(engine.rank, None)
                self._requeue(pipeline, engine.rank)
            case do.OpenAtGateway(rollout=rollout, target=target):
                gateway.open[rollout] = target
            case do.CloseAtGateway(rollout=rollout):
                gateway.open.pop(rollout, None)
            case do.ForgetAtGateway():
                gateway.open.clear()
            case _:
                pass
        self._answer(delay, lambda: ev.Ordered(id=action.id) if gateway.incarnation is not None else None)

    def _requeue(self, pipeline: PipelineId, rank: int | None) -> None:
        trainer = self.trainers[pipeline]
        for sample, (engine, _) in tuple(trainer.running.items()):
            if rank is None or engine == rank:
                del trainer.running[sample]
                trainer.waiting.add(sample)

    def _pump(self, pipeline: PipelineId) -> None:
        """Dispatch and finish samples while a rollout is open."""
        trainer, gateway = self.trainers[pipeline], self.gateways[pipeline]
        if trainer.place != "generating" or trainer.incarnation is None:
            return
        if gateway.incarnation is not None and trainer.step in gateway.open and not self._condemned(pipeline):
            slots = self.scheduler.desk.fleet.pipelines[pipeline].spec.engine.slots
            for rank, (incarnation, version) in gateway.routes.items():
                if version != self.scheduler.desk.fleet.pipelines[pipeline].published:
                    raise Violation(f"{pipeline}/engine/{rank} serves version {version} of an old time")
                if self.alive.get(EngineId(pipeline, rank)) != incarnation:
                    continue
                running = sum(engine == rank for engine, _ in trainer.running.values())
                for sample in sorted(trainer.waiting)[: max(0, slots - running)]:
                    trainer.waiting.discard(sample)
                    self._run_sample(trainer, sample, rank, incarnation)
            self._report(pipeline)
        self.after(0.5, lambda: self._pump(pipeline))

    def _run_sample(self, trainer: FakeTrainer, sample: int, rank: int, incarnation: Incarnation) -> None:
        trainer.running[sample] = (rank, incarnation)
        life, step = trainer.incarnation, trainer.step

        def finish() -> None:
            if trainer.incarnation == life and trainer.step == step and trainer.running.get(sample) == (rank, incarnation):
                del trainer.running[sample]
                if sample in trainer.delivered:
                    raise Violation(f"sample {sample} of {trainer.pipeline} is delivered twice")
                trainer.delivered.add(sample)
                if len(trainer.delivered) == trainer.target and trainer.place == "generating":
                    self._next(trainer)

        self.after(self.random.expovariate(1 / 4.0), finish)

    def _report(self, pipeline: PipelineId) -> None:
        trainer, gateway = self.trainers[pipeline], self.gateways[pipeline]
        assert gateway.incarnation is not None
        rollouts = tuple(
            RolloutProgress(number, len(trainer.waiting), len(trainer.running), len(trainer.delivered)) for number in gateway.open
        )
        loads = tuple(
            EngineLoad(rank, incarnation, sum(e == rank for e, _ in trainer.running.values()), 0, 0)
            for rank, (incarnation, _) in gateway.routes.items()
        )
        self.feed(ev.GatewaySaid(pipeline=pipeline, incarnation=gateway.incarnation, progress=Progress(rollouts, loads)))

    # -- trainers

    def _start_trainer(self, action: do.StartTrainer, delay: float) -> None:
        trainer = self.trainers[action.pipeline]
        self.alive[TrainerId(action.pipeline)] = action.incarnation

        def started() -> ev.Event | None:
            if self.alive.get(TrainerId(action.pipeline)) != action.incarnation:
                return None
            self.after(0.01, lambda: self._begin(trainer, action))
            return ev.TrainerStarted(id=action.id)

        self._answer(delay, started)

    def _begin(self, trainer: FakeTrainer, action: do.StartTrainer) -> None:
        trainer.incarnation = action.incarnation
        trainer.step, trainer.calls, trainer.publishes = action.steps_done, 0, 0
        trainer.place = "restore" if action.restore else "init"
        self._say(trainer, say.RequestLease(call=0, roles=("init",)))

    def _say(self, trainer: FakeTrainer, message: say.TrainerMessage, rank: int = 0) -> None:
        if trainer.incarnation is not None:
            self.feed(ev.TrainerSaid(pipeline=trainer.pipeline, incarnation=trainer.incarnation, rank=rank, message=message))

    def _told(self, id: int, pipeline: PipelineId, incarnation: Incarnation, message: say.SupervisorMessage) -> ev.Event:
        trainer = self.trainers[pipeline]
        if trainer.incarnation == incarnation:
            self.after(self.random.uniform(0.0, 0.5), lambda: self._hear(trainer, incarnation, message))
        return ev.Told(id=id)

    def _hear(self, trainer: FakeTrainer, incarnation: Incarnation, message: say.SupervisorMessage) -> None:
        if trainer.incarnation != incarnation:
            return
        holder = TrainerId(trainer.pipeline)
        match message:
            case say.LeaseGranted(call=call, roles=roles):
                gpus = self.scheduler.desk.fleet.pipelines[trainer.pipeline].spec.trainer.gpus(roles)
                self.granted[holder] = gpus
                for gpu in gpus:
                    self.memory[gpu].add(holder)
                self.after(self.random.uniform(0.1, 8.0), lambda: self._work(trainer, incarnation, call))
            case say.LeaseEnded():
                if trainer.place in ("init", "restored"):
                    self._open(trainer)
                elif trainer.place == "trained":
                    self._say(trainer, say.Checkpoint(step=trainer.step, path="/nowhere"))
            case say.Published():
                trainer.place = "restored" if trainer.place == "restore" else "trained"
                self._leave(trainer)
            case say.CheckpointRecorded(step=step):
                trainer.completed[step] = len(trainer.delivered)
                trainer.step += 1
                if trainer.step >= trainer.steps:
                    self.after(0.1, lambda: self._finish(trainer))
                else:
                    self._open(trainer)
            case say.RolloutOpened():
                if trainer.place == "opening":
                    trainer.place = "generating"
                    trainer.waiting = set(range(trainer.target))
                    self._pump(trainer.pipeline)
            case say.RolloutClosed():
                trainer.place = "train"
                trainer.calls += 1
                self._say(trainer, say.RequestLease(call=trainer.calls, roles=("train",)))
            case say.Refused():
                raise Violation(f"{trainer.pipeline} in {trainer.place} is refused: {message}")
            case _:
                pass

    def _open(self, trainer: FakeTrainer) -> None:
        trainer.place = "opening"
        trainer.delivered, trainer.waiting, trainer.running = set(), set(), {}
        self._say(trainer, say.OpenRollout(rollout=trainer.step, target=trainer.target))

    def _next(self, trainer: FakeTrainer) -> None:
        trainer.place = "closing"
        self._say(trainer, say.CloseRollout(rollout=trainer.step))

    def _work(self, trainer: FakeTrainer, incarnation: Incarnation, call: int) -> None:
        if trainer.incarnation != incarnation:
            return
        if trainer.place in ("restore", "train"):
            self._say(trainer, say.Publish(call=trainer.publishes, name=f"w{trainer.publishes}"))
            trainer.publishes += 1
        else:
            self._leave(trainer)

    def _leave(self, trainer: FakeTrainer) -> None:
        for holders in self.memory.values():
            holders.discard(TrainerId(trainer.pipeline))
        call = trainer.calls
        for rank in range(trainer.world_size):
            self._say(trainer, say.Offloaded(call=call), rank)

    def _finish(self, trainer: FakeTrainer) -> None:
        incarnation = trainer.incarnation
        if incarnation is None:
            return
        trainer.place = "done"
        for rank in range(trainer.world_size):
            self.feed(ev.MemberExited(group=TrainerId(trainer.pipeline), incarnation=incarnation, member=rank, code=0))


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

"""The fakes of one pipeline: a gateway with its samples, and a trainer that follows the usual script step by step."""

from dataclasses import dataclass, field
from functools import partial

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import EngineLoad, Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GatewayId, GpuId, Incarnation, PipelineId, TrainerId, Version

from .world import Violation, World


@dataclass(slots=True)
class FakeTrainer:
    """A training script: rollout, lease, publish, checkpoint, in turn, until `steps`."""

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
    lease: int | None = None  # its call
    publishing: int = -1  # the call of the publish that it waits for
    published: int = 0  # what its pipeline was told last

    @property
    def wants(self) -> bool:
        """Return whether it has a rollout open, to its own knowledge."""
        return self.place in ("opening", "generating") and self.incarnation is not None


@dataclass(slots=True)
class FakeGateway:
    incarnation: Incarnation | None = None
    routes: dict[int, tuple[Incarnation, Version]] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)
    hung: bool = False


class FakePipeline:
    """What happens outside the supervisor for one pipeline. Delays come from the world's seeded chance."""

    def __init__(self, world: World, id: PipelineId, trainer: FakeTrainer) -> None:
        self.world = world
        self.id = id
        self.trainer = trainer
        self.gateway = FakeGateway()

    @property
    def condemned(self) -> bool:
        """Return whether the gateway is being killed: it may still hold routes; engines refuse it on their own side."""
        return not self.world.scheduler.pipelines[self.id].gateway.up

    def lose_gateway(self) -> None:
        self.gateway.incarnation = None
        self.gateway.routes.clear()
        self.gateway.open.clear()
        self.requeue(None)

    def lose_trainer(self) -> None:
        self.trainer.place, self.trainer.incarnation, self.trainer.lease = "dead", None, None
        self.trainer.waiting.clear()
        self.trainer.running.clear()

    # -- the gateway, and the samples that run through it

    def start_gateway(self, id: int, incarnation: Incarnation, delay: float) -> None:
        self.world.alive[GatewayId(self.id)] = incarnation
        self.gateway.incarnation, self.gateway.hung = incarnation, False
        self.world.answer(delay / 10, lambda: ev.GatewayReady(id=id))

    def order(self, action: do.Action, delay: float) -> None:
        gateway = self.gateway
        if gateway.incarnation is None or gateway.hung:
            return
        match action:
            case do.Route(engine=engine, incarnation=incarnation, version=version):
                if self.world.versions.get(engine) != version and self.world.alive.get(engine) == incarnation:
                    raise Violation(f"{engine} is routed as version {version}, it has {self.world.versions.get(engine)}")
                gateway.routes[engine.rank] = (incarnation, version)
            case do.Unroute(engine=engine):
                gateway.routes.pop(engine.rank, None)
            case do.Drain(engine=engine) | do.Lost(engine=engine):
                gateway.routes.pop(engine.rank, None)
                self.requeue(engine.rank)
            case do.OpenAtGateway(rollout=rollout, target=target):
                gateway.open[rollout] = target
            case do.CloseAtGateway(rollout=rollout):
                gateway.open.pop(rollout, None)
            case do.ForgetAtGateway():
                gateway.open.clear()
            case do.TellHopeless(reason=reason) if reason and self.trainer.place == "generating":
                self.world.after(0.1, lambda: self.world.die(TrainerId(self.id), 1))  # its requests are answered with a typed 503
            case _:
                pass
        self.world.answer(delay, lambda: ev.Ordered(id=action.id) if gateway.incarnation is not None else None)

    def requeue(self, rank: int | None) -> None:
        trainer = self.trainer
        for sample, (engine, _) in tuple(trainer.running.items()):
            if rank is None or engine == rank:
                del trainer.running[sample]
                trainer.waiting.add(sample)

    def _pump(self) -> None:
        """Dispatch and finish samples while a rollout is open."""
        trainer, gateway = self.trainer, self.gateway
        if trainer.place != "generating" or trainer.incarnation is None:
            return
        if gateway.incarnation is not None and trainer.step in gateway.open and not self.condemned and not gateway.hung:
            slots = self.world.scheduler.pipelines[self.id].spec.engine.slots
            for rank, (incarnation, version) in gateway.routes.items():
                if version < trainer.published:
                    raise Violation(f"{self.id}/engine/{rank} serves version {version} of an old time")
                if self.world.alive.get(EngineId(self.id, rank)) != incarnation:
                    continue
                running = sum(engine == rank for engine, _ in trainer.running.values())
                for sample in sorted(trainer.waiting)[: max(0, slots - running)]:
                    trainer.waiting.discard(sample)
                    self._run_sample(sample, rank, incarnation)
            self._report()
        self.world.after(0.5, self._pump)

    def _run_sample(self, sample: int, rank: int, incarnation: Incarnation) -> None:
        trainer = self.trainer
        trainer.running[sample] = (rank, incarnation)
        life, step = trainer.incarnation, trainer.step

        def finish() -> None:
            if trainer.incarnation == life and trainer.step == step and trainer.running.get(sample) == (rank, incarnation):
                del trainer.running[sample]
                if sample in trainer.delivered:
                    raise Violation(f"sample {sample} of {trainer.pipeline} is delivered twice")
                trainer.delivered.add(sample)
                if len(trainer.delivered) == trainer.target and trainer.place == "generating":
                    self._next()

        self.world.after(self.world.random.expovariate(1 / 4.0), finish)

    def _report(self) -> None:
        trainer, gateway = self.trainer, self.gateway
        assert gateway.incarnation is not None
        rollouts = tuple(
            RolloutProgress(number, len(trainer.waiting), len(trainer.running), len(trainer.delivered)) for number in gateway.open
        )
        loads = tuple(
            EngineLoad(rank, incarnation, sum(e == rank for e, _ in trainer.running.values()), 0, 0)
            for rank, (incarnation, _) in gateway.routes.items()
        )
        self.world.feed(ev.GatewaySaid(pipeline=self.id, incarnation=gateway.incarnation, progress=Progress(rollouts, loads)))

    # -- trainers

    def start_trainer(self, action: do.StartTrainer, delay: float) -> None:
        self.world.alive[TrainerId(action.pipeline)] = action.incarnation

        def started() -> ev.Event | None:
            if self.world.alive.get(TrainerId(action.pipeline)) != action.incarnation:
                return None
            self.world.after(0.01, lambda: self._begin(action))
            return ev.TrainerStarted(id=action.id)

        self.world.answer(delay, started)

    def _begin(self, action: do.StartTrainer) -> None:
        trainer = self.trainer
        trainer.incarnation = action.incarnation
        trainer.step, trainer.calls, trainer.publishes, trainer.publishing = action.steps_done, 0, 0, -1
        trainer.place = "restore" if action.restore else "init"
        for rank in range(trainer.world_size):
            self._send(say.Hello(rank), rank)
        self._send(say.RequestLease(call=0, roles=("init",)))

    def _send(self, message: say.TrainerMessage, rank: int = 0) -> None:
        trainer = self.trainer
        if trainer.incarnation is not None:
            self.world.feed(ev.TrainerSaid(pipeline=trainer.pipeline, incarnation=trainer.incarnation, rank=rank, message=message))

    def deliver(self, id: int, incarnation: Incarnation, message: say.SupervisorMessage) -> ev.Event:
        trainer = self.trainer
        if trainer.incarnation == incarnation:
            self.world.after(self.world.random.uniform(0.0, 0.5), lambda: self._react(incarnation, message))
        return ev.Told(id=id)

    def _react(self, incarnation: Incarnation, message: say.SupervisorMessage) -> None:  # noqa: C901 - a script, one case a message
        trainer = self.trainer
        if trainer.incarnation != incarnation:
            return
        match message:
            case say.LeaseGranted(call=call, roles=roles):
                trainer.lease = call
                for gpu in self._gpus(roles):
                    self.world.memory[gpu].add(TrainerId(self.id))
                self.world.after(self.world.random.uniform(0.1, 8.0), lambda: self._work(incarnation, call))
            case say.LeaseEnded():
                if trainer.place in ("init", "restored"):
                    self._open()
                elif trainer.place == "trained":
                    trainer.completed[trainer.step] = len(trainer.delivered)
                    self._send(say.Checkpoint(step=trainer.step, path="/nowhere"))
            case say.Published(call=call) if call != trainer.publishing:
                pass  # one that it did midway
            case say.Published():
                trainer.place = "restored" if trainer.place == "restore" else "trained"
                if trainer.place == "trained" and "critic" in self._roles and self.world.random.random() < 0.7:
                    self._exchange()
                else:
                    self._leave()
            case say.CheckpointRecorded():
                trainer.step += 1
                self._open()
            case say.RolloutOpened():
                if trainer.place == "opening":
                    trainer.place = "generating"
                    trainer.waiting = set(range(trainer.target))
                    if self.world.strikes(self.world.faults.midway):
                        self.world.after(self.world.random.uniform(0.0, 10.0), partial(self._midway, incarnation, trainer.step))
                    self._pump()
            case say.RolloutClosed():
                trainer.place = "train"
                trainer.calls += 1
                self._send(say.RequestLease(call=trainer.calls, roles=("train",)))
            case say.Refused(code="no_engine"):  # every engine has failed too often: what a script does that does not expect it
                self.world.die(TrainerId(self.id), 1)
            case say.Refused(about="publish", number=call):
                if call == trainer.publishing:  # the one midway is not recorded yet
                    self.world.after(1.0, lambda: self._work(incarnation, call))
            case say.Refused(code="would_wait"):
                self._leave()
            case say.Refused(code="stopping"):
                self.world.after(0.1, self._finish)
            case say.Stopping() if trainer.place == "generating":  # samples that are missing will not come, says the client
                self.world.after(0.1, self._finish)
            case say.Refused():
                raise Violation(f"{trainer.pipeline} in {trainer.place} is refused: {message}")
            case _:
                pass

    def _open(self) -> None:
        """Begin the next step, if there is one."""
        trainer = self.trainer
        if trainer.step >= trainer.steps:
            trainer.place = "ending"
            self.world.after(0.1, self._finish)
            return
        trainer.place = "opening"
        trainer.delivered, trainer.waiting, trainer.running = set(), set(), {}
        self._send(say.OpenRollout(rollout=trainer.step, target=trainer.target))

    def _midway(self, incarnation: Incarnation, step: int) -> None:
        """Publish new weights while samples run."""
        trainer = self.trainer
        if (trainer.incarnation, trainer.step, trainer.place) == (incarnation, step, "generating"):
            self._publish()

    def _next(self) -> None:
        trainer = self.trainer
        trainer.place = "closing"
        self._send(say.CloseRollout(rollout=trainer.step))

    def _work(self, incarnation: Incarnation, call: int) -> None:
        trainer = self.trainer
        if trainer.incarnation != incarnation:
            return
        if trainer.place in ("restore", "train"):
            trainer.publishing = trainer.publishes
            self._publish()
        else:
            self._leave()

    def _publish(self) -> None:
        trainer = self.trainer
        self._send(say.Publish(call=trainer.publishes, name=f"w{trainer.publishes}"))
        trainer.publishes += 1

    @property
    def _roles(self) -> dict[str, tuple[GpuId, ...]]:
        return self.world.scheduler.pipelines[self.id].spec.trainer.roles

    def _gpus(self, roles: tuple[str, ...]) -> tuple[GpuId, ...]:
        return self.world.scheduler.pipelines[self.id].spec.trainer.gpus(roles)

    def _exchange(self) -> None:
        """Go from training to the critic; what both use is kept."""
        trainer = self.trainer
        for gpu in set(self._gpus(("train",))) - set(self._gpus(("critic",))):
            self.world.memory[gpu].discard(TrainerId(self.id))
        trainer.calls += 1
        self._send(say.ExchangeLease(call=trainer.calls, roles=("critic",)))

    def _leave(self) -> None:
        trainer = self.trainer
        if trainer.incarnation is not None and self.world.strikes(self.world.faults.keeps):
            self.world.after(200.0, partial(self._let_go, trainer.incarnation))
        else:
            self._let_go(trainer.incarnation)
        call, trainer.lease = trainer.lease, None
        assert call is not None
        for rank in range(trainer.world_size):
            self._send(say.Offloaded(call=call), rank)

    def _let_go(self, incarnation: Incarnation | None) -> None:
        if self.trainer.incarnation == incarnation:
            for holders in self.world.memory.values():
                holders.discard(TrainerId(self.id))

    def _finish(self) -> None:
        trainer = self.trainer
        incarnation = trainer.incarnation
        if incarnation is None or trainer.place == "done":
            return
        trainer.place = "done"
        for rank in range(trainer.world_size):
            self.world.feed(ev.MemberExited(group=TrainerId(trainer.pipeline), incarnation=incarnation, member=rank, code=0))

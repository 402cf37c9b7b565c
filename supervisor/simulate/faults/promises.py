"""Promises are what must hold in the simulated world after every event, whatever the scheduler's own books say."""

from collections.abc import Mapping

from engines.lifecycle.state import EngineState
from supervisor.scheduler import actions as do
from supervisor.scheduler.planning.reservations import Request
from supervisor.scheduler.records import Pipeline, TrainerState
from supervisor.scheduler.spec import Limits, Priority
from trainers.protocol import trainer_messages as say
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId

from .fakes import FakePipeline
from .world import Violation, World

ANSWERS = (say.LeaseGranted, say.LeaseEnded, say.RolloutOpened, say.RolloutClosed, say.Published, say.CheckpointRecorded, say.Refused)


class Promises:
    """The promises are of safety, liveness and economy. `measured` are the GPUs seen empty since somebody last had them; `holders` who had each one before."""

    def __init__(self, world: World, fakes: Mapping[PipelineId, FakePipeline]) -> None:
        self.world = world
        self.fakes = fakes
        self.measured: set[GpuId] = set()
        self.holders: dict[GpuId, GroupId | None] = dict.fromkeys(world.box.gpus)
        self.asked = 0  # id of the newest action
        self.answered: set[tuple[PipelineId, int, str, int]] = set()
        self.refused: set[tuple[PipelineId, int, str, int]] = set()
        self.reserved: dict[tuple[PipelineId, int], float] = {}
        self.longest = patience(world.box.limits)

    def check_actions(self, actions: list[do.Action]) -> None:
        """Check the actions before they are performed. Raises Violation."""
        for action in actions:
            self._action(action)

    def check(self) -> None:
        """Check the state after an event. Raises Violation."""
        self._memory()
        self._leases()
        self._routes()
        self._starts()
        for pipeline in self.world.scheduler.pipelines.values():
            self._demand(pipeline)
        self._reservations()

    def check_end(self) -> None:
        """Check the end of a run: nothing lives, and nothing is held but by what could not be ended. Raises Violation."""
        scheduler = self.world.scheduler
        if self.world.alive:
            raise Violation(f"the run has ended, and {sorted(map(str, self.world.alive))} live")
        for lease in scheduler.leases.leases:
            if not isinstance(lease.holder, EngineId) or scheduler.engine(lease.holder).state is not EngineState.STUCK:
                raise Violation(f"the run has ended, and {lease.holder} holds GPU {lease.gpu}")

    def seen_empty(self, gpus: tuple[GpuId, ...]) -> None:
        """A measurement has seen them empty."""
        self.measured.update(gpus)

    # -- actions

    def _action(self, action: do.Action) -> None:
        if action.id <= self.asked:
            raise Violation(f"{action} has an id that was given before")
        self.asked = action.id
        alive = self.world.alive
        match action:
            case do.StartGroup(engine=group) if group in alive:
                raise Violation(f"{group} is started beside its life {alive[group]}")
            case do.TellTrainer(pipeline=pipeline, incarnation=incarnation, message=message) if isinstance(message, ANSWERS):
                self._answer(pipeline, incarnation, message)

    def _answer(self, pipeline: PipelineId, incarnation: int, message: say.SupervisorMessage) -> None:
        """Every call of a trainer is answered once."""
        number = next(getattr(message, name) for name in ("number", "call", "rollout", "step") if hasattr(message, name))
        kind = message.about if isinstance(message, say.Refused) else _ABOUT[type(message)]
        key = (pipeline, incarnation, kind, number)
        if key in self.answered:
            raise Violation(f"{pipeline}'s {kind} {number} is answered twice, now with {message}")
        self.answered.add(key)
        if isinstance(message, say.Refused):
            self.refused.add(key)
        fake = self.fakes[pipeline]
        if isinstance(message, say.Published):
            fake.trainer.published = message.version
        if isinstance(message, say.Published) and not fake.condemned:
            for rank, (life, version) in fake.gateway.routes.items():
                if version < message.version and self.world.alive.get(EngineId(pipeline, rank)) == life:
                    raise Violation(f"{pipeline}/engine/{rank} is routed with {version} when {message.version} is told to be published")

    # -- who holds what

    def _memory(self) -> None:
        book = self.world.scheduler.leases
        for gpu, holders in self.world.memory.items():
            if len(holders) > 1:
                raise Violation(f"GPU {gpu} holds memory of {sorted(map(str, holders))}")
            for holder in holders:
                lease = book.lease(gpu)
                if (lease is None or lease.holder != holder) and gpu not in book.fences and not self._ghost_of(holder, lease):
                    raise Violation(f"GPU {gpu} holds memory of {holder}, but is lent to {lease.holder if lease is not None else 'nobody'}")

    def _ghost_of(self, holder: GroupId | str, lease: object) -> bool:
        """Memory that stays when its process is gone: nobody else may have the GPU."""
        return isinstance(holder, str) and lease is not None and str(getattr(lease, "holder", "")) in holder

    def _leases(self) -> None:
        """Nobody gets a GPU that was not seen empty since somebody else had it."""
        book = self.world.scheduler.leases
        for gpu, before in self.holders.items():
            lease = book.lease(gpu)
            holder = lease.holder if lease is not None else None
            if holder == before:
                continue
            if holder is not None:
                if gpu not in self.measured:
                    raise Violation(f"GPU {gpu} is lent to {holder} and was not measured since it was used")
                self.measured.discard(gpu)
                for group, life in self._undead(gpu):
                    raise Violation(f"GPU {gpu} is lent to {holder}, and life {life} of {group} could not be ended there")
            self.holders[gpu] = holder

    def _undead(self, gpu: GpuId) -> list[tuple[EngineId, Incarnation]]:
        """Return the engines with this GPU of which the scheduler was told that they do not exit, and not yet that they have."""
        world = self.world
        return [
            (group, life)
            for (group, life), until in world.undead.items()
            if isinstance(group, EngineId) and until > world.now and gpu in world.scheduler.engine(group).gpus
        ]

    def _routes(self) -> None:
        world = self.world
        for pipeline, fake in self.fakes.items():
            if fake.condemned:
                continue
            for rank, (incarnation, _) in fake.gateway.routes.items():
                engine = EngineId(pipeline, rank)
                record = world.scheduler.engine(engine)
                dying = record.state in (EngineState.QUARANTINED, EngineState.STOPPING)
                if world.alive.get(engine) == incarnation and engine not in world.memory[record.gpus[0]] and not dying:
                    raise Violation(f"{engine} is routed while its memory is given back")

    def _starts(self) -> None:
        scheduler = self.world.scheduler
        starting = [engine.id for engine in scheduler.engines if engine.state is EngineState.STARTING]
        if len(starting) > scheduler.box.rules.max_starting:
            raise Violation(f"{len(starting)} engines start at once: {starting}")

    def _demand(self, pipeline: Pipeline) -> None:
        """Demand is durable: what a living trainer has opened, and not closed, is known."""
        fake = self.fakes[pipeline.id].trainer
        alive = pipeline.trainer.state is TrainerState.RUNNING and fake.incarnation == pipeline.trainer.incarnation
        refused = (pipeline.id, pipeline.trainer.incarnation, "open_rollout", fake.step) in self.refused
        if alive and fake.wants and not refused and fake.step not in pipeline.rollouts:
            raise Violation(f"{pipeline.id} has rollout {fake.step} open, and nobody knows of it")

    # -- reservations

    def _reservations(self) -> None:
        """No reservation outlives the possibility of its grant."""
        scheduler = self.world.scheduler
        now = self.world.now
        turn = self.world.scheduler.reservations().reserved
        waiting: dict[tuple[PipelineId, int], float] = {}
        for pipeline in scheduler.pipelines.values():
            request = pipeline.trainer.request
            if request is None:
                continue
            self._possible(pipeline, request, request in turn)
            key = (pipeline.id, request.call)
            waiting[key] = self.reserved.get(key, now) if request in turn else now
            if now - waiting[key] > self.longest:
                raise Violation(f"{pipeline.id} has had its turn for {now - waiting[key]:.0f} s, and GPUs {request.gpus} are not granted")
        self.reserved = waiting

    def _possible(self, pipeline: Pipeline, request: Request, turn: bool) -> None:
        """The trainer that asked lives, and nothing that cannot end is in the way of GPUs that are kept for it."""
        scheduler = self.world.scheduler
        trainer = pipeline.trainer
        if trainer.state is not TrainerState.RUNNING or self.world.alive.get(trainer.id) != trainer.incarnation:
            raise Violation(f"{trainer.id} is {trainer.state.value} and its request of GPUs {request.gpus} is still there")
        for gpu in request.keeps:
            lease = scheduler.leases.lease(gpu)
            if lease is None or lease.holder != trainer.id:
                raise Violation(f"{trainer.id} waits for an exchange that keeps GPU {gpu}, which it does not hold")
        if not turn:
            return
        for gpu in set(request.gpus) - request.keeps:
            lease = scheduler.leases.lease(gpu)
            if gpu in scheduler.leases.fences:
                raise Violation(f"GPUs {request.gpus} are reserved for {trainer.id}, and GPU {gpu} is fenced")
            for by in scheduler.leases.withheld.get(gpu, ()):
                if isinstance(by, EngineId) and scheduler.engine(by).state is EngineState.STUCK:
                    raise Violation(f"GPUs {request.gpus} are reserved for {trainer.id}, and {by}, which is stuck, withholds GPU {gpu}")
            if lease is not None and lease.priority is not Priority.ROLLOUT:
                raise Violation(f"GPUs {request.gpus} are reserved for {trainer.id}, and GPU {gpu} is {lease.holder}'s")
            if lease is not None and isinstance(lease.holder, EngineId) and scheduler.engine(lease.holder).state is EngineState.STUCK:
                raise Violation(f"GPUs {request.gpus} are reserved for {trainer.id}, and {lease.holder}, which is stuck, has GPU {gpu}")


def patience(limits: Limits) -> float:
    """Return the longest that an engine may take to leave, in seconds: a start that hangs, is killed, measured; or a drain and a pause that do."""
    leave = max(limits.start, limits.load + limits.drain + limits.pause + limits.release + 3 * limits.order)
    return leave + limits.order + limits.grace + 2 * limits.release + 2 * limits.order


_ABOUT = {
    say.LeaseGranted: "request_lease",
    say.LeaseEnded: "offloaded",
    say.RolloutOpened: "open_rollout",
    say.RolloutClosed: "close_rollout",
    say.Published: "publish",
    say.CheckpointRecorded: "checkpoint",
}

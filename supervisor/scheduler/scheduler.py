"""Everything that is decided is decided in `Scheduler.handle`: one synchronous, deterministic call without I/O."""

from typing import assert_never

from engines.lifecycle.state import EngineState
from supervisor.scheduler.groups.faults import Cause
from supervisor.scheduler.groups.lease_violations import intruders, only_theirs
from supervisor.scheduler.groups.trainer_leases import grant
from supervisor.scheduler.planning.planner import Plan, View, plan
from supervisor.scheduler.planning.reservations import Reservations, reserve
from supervisor.scheduler.planning.view import held_by_trainers, must_leave, view
from trainers.protocol.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation

from . import operators
from .actions import (
    Action,
    AdoptSnapshot,
    CloseAtGateway,
    Drain,
    DropSnapshot,
    ForgetAtGateway,
    LoadWeights,
    Lost,
    Measure,
    OpenAtGateway,
    Pause,
    PrepareModel,
    RecordCheckpoint,
    Route,
    StartGateway,
    StartGroup,
    StartTrainer,
    StopGroup,
    TellHopeless,
    TellTrainer,
    Unroute,
    Wake,
)
from .context import Desk
from .events import (
    ActionFailed,
    Answer,
    Event,
    GatewaySaid,
    GpuHeld,
    MemberExited,
    ModelReady,
    OperatorAsked,
    PeerFailed,
    ProbeFailed,
    Stop,
    Tick,
    TrainerSaid,
)
from .groups import engine_teardown, engines, gateways, trainer_stop, trainers
from .inflight import InFlight
from .invariants import check
from .leases import LeaseBook
from .records import Fleet, Pipeline, TrainerState, TrainerTurn
from .spec import BoxSpec

NOT_MEASURED = "not measured yet"
UNKNOWN_CODE = -255


def _exit(event: MemberExited) -> str:
    return f"{f'member {event.member}' if event.member >= 0 else 'a process of its tree'} {_ended(event)}"


def _ended(event: MemberExited) -> str:
    how = "" if event.code == UNKNOWN_CODE else f" with signal {-event.code}" if event.code < 0 else f" with exit code {event.code}"
    return f"ended{how}{': ' + event.note if event.note else ''}"


class Scheduler:
    """Who may hold which GPU, who is told what, who is started and ended.

    The runtime feeds it events and performs its actions; every action is answered by exactly one event.
    Raises AssertionError when an invariant is broken: a bug of ours.
    """

    def __init__(self, box: BoxSpec, now: float) -> None:
        self.desk = Desk(box, Fleet(box), LeaseBook(box.gpus), InFlight(), now)
        self._fence_op: int | None = None
        self._fence_looked: float | None = None
        self._seen: View | None = None
        self._wanted: Plan = frozenset()  # the plan of what was seen last
        for gpu in box.gpus:  # nobody gets a GPU that was never seen empty
            self.desk.leases.fence(gpu, NOT_MEASURED)

    @property
    def deadline(self) -> float | None:
        """When it wants a `Tick` at the latest."""
        times = [time for time in (self.desk.alarm, self.desk.inflight.deadline) if time is not None]
        return min(times, default=None)

    @property
    def finished(self) -> bool:
        """Every pipeline has ended and nothing of it lives."""
        return all(pipeline.settled for pipeline in self.desk.fleet.pipelines.values())

    def handle(self, event: Event, now: float) -> list[Action]:
        """Absorb the event, see what is overdue, start what is due. `now` never goes backwards."""
        desk = self.desk
        desk.now = max(desk.now, now)
        desk.alarm = None
        desk.notes.clear()
        desk.turns.clear()
        self._absorb(event)
        for action in desk.inflight.overdue(desk.now):
            late = ActionFailed(id=action.id, reason="no answer within its deadline", code="deadline")
            self._answer(action, late)
        self._settle()
        check(desk)
        return desk.inflight.take()

    # -- what happened

    def _absorb(self, event: Event) -> None:
        match event:
            case MemberExited(group=group, incarnation=incarnation):
                self._member_exited(group, incarnation, event)
            case PeerFailed(group=group, incarnation=incarnation, reason=reason):
                self._condemn(group, incarnation, Cause.PEER, reason)
            case ProbeFailed(group=group, incarnation=incarnation, reason=reason, silent_for=silent):
                self._condemn(group, incarnation, Cause.PROBE, reason, silent)
            case TrainerSaid():
                pipeline = self.desk.fleet.pipelines[event.pipeline]
                if event.incarnation == pipeline.trainer.incarnation:
                    self._trainer_said(pipeline, event)
            case GatewaySaid():
                pipeline = self.desk.fleet.pipelines[event.pipeline]
                # also before its GatewayReady, which comes another way: a gateway reports a change once, and is asked for nothing
                if event.incarnation == pipeline.gateway.incarnation and not pipeline.gateway.dying:
                    gateways.absorb(self.desk, pipeline, event.progress)
            case OperatorAsked():
                operators.asked(self.desk, event)
            case Stop(level=level):
                operators.stop(self.desk, level)
            case Tick():
                pass
            case _:
                action = self.desk.inflight.answered(event.id)
                if action is not None:
                    self._answer(action, event)

    def _answer(self, action: Action, answer: Answer) -> None:
        desk = self.desk
        match action:
            case StartGroup() | Pause() | Wake() | LoadWeights():
                self._engine_answer(action.engine, action, answer)
            case Route() | Unroute() | Drain() | Lost():
                self._engine_answer(action.engine, action, answer)
                if isinstance(answer, ActionFailed):  # a gateway that does not answer an order has failed
                    gateways.fail(desk, desk.fleet.pipelines[action.engine.pipeline], answer.reason)
            case OpenAtGateway() | CloseAtGateway() | ForgetAtGateway() | TellHopeless() | StartGateway():
                gateways.answered(desk, desk.fleet.pipelines[action.pipeline], action, answer)
            case StopGroup(group=group):
                self._group_answer(group, action, answer)
            case Measure():
                self._measured(action, answer)
            case StartTrainer() | AdoptSnapshot() | RecordCheckpoint():
                trainers.answered(desk, desk.fleet.pipelines[action.pipeline], action, answer)
            case PrepareModel():
                self._model(desk.fleet.pipelines[action.pipeline], answer)
            case TellTrainer() | DropSnapshot():
                pass  # a rank that does not read is reported by its descriptor
            case _:
                assert_never(action)

    def _engine_answer(self, id: EngineId, action: Action, answer: Answer) -> None:
        pipeline = self.desk.fleet.pipelines[id.pipeline]
        engines.answered(self.desk, pipeline, pipeline.engines[id.rank], action, answer)

    def _group_answer(self, group: GroupId, action: Action, answer: Answer) -> None:
        pipeline = self.desk.fleet.pipelines[group.pipeline]
        if isinstance(group, EngineId):
            engines.answered(self.desk, pipeline, pipeline.engines[group.rank], action, answer)
        elif isinstance(group, GatewayId):
            gateways.answered(self.desk, pipeline, action, answer)
        else:
            trainers.answered(self.desk, pipeline, action, answer)

    def _model(self, pipeline: Pipeline, answer: Answer) -> None:
        pipeline.model_op = None
        if isinstance(answer, ModelReady):
            pipeline.model_ready = True
            return
        assert isinstance(answer, ActionFailed)
        pipeline.failed = f"its model could not be made: {answer.reason}"
        self.desk.note("error", pipeline.id, pipeline.failed)
        pipeline.trainer.turn(TrainerTurn.STOP)

    def _measured(self, action: Measure, answer: Answer) -> None:
        """Whoever holds memory without a lease fails, wherever it is seen; while it is being ended, those who were measured wait for it."""
        found = intruders(self.desk.leases, answer) if isinstance(answer, GpuHeld) else []
        for holder in found:
            self._condemn(holder.group, holder.incarnation, Cause.INTRUDER, f"holds memory on GPU {holder.gpu}, of which it has no lease")
        if action.holder is None:
            self._fences_measured(action, answer)
        elif isinstance(answer, GpuHeld) and only_theirs(self.desk.fleet, answer, found):
            self._measure_again(action.holder)
        else:
            self._group_answer(action.holder, action, answer)

    def _measure_again(self, group: GroupId) -> None:
        pipeline = self.desk.fleet.pipelines[group.pipeline]
        if isinstance(group, EngineId):
            pipeline.engines[group.rank].op = None
            return
        pipeline.trainer.op = None
        if pipeline.trainer.grant is not None:
            pipeline.trainer.grant.measure = None

    def _fences_measured(self, action: Measure, answer: Answer) -> None:
        self._fence_op = None
        note = answer.note if isinstance(answer, GpuHeld) else answer.reason if isinstance(answer, ActionFailed) else ""
        held = set(answer.gpus) if isinstance(answer, GpuHeld) else set(action.gpus) if isinstance(answer, ActionFailed) else set()
        for gpu in action.gpus:
            if gpu not in held:
                self.desk.leases.clear(gpu)
            elif self.desk.leases.fenced(gpu) == NOT_MEASURED:
                self.desk.leases.fence(gpu, f"held by something that is not ours: {note}")
                self.desk.note("warning", gpu, f"fenced: {note}")

    def _member_exited(self, group: GroupId, incarnation: Incarnation, event: MemberExited) -> None:
        pipeline = self.desk.fleet.pipelines[group.pipeline]
        if isinstance(group, EngineId):
            engine = pipeline.engines[group.rank]
            if engine.incarnation == incarnation:
                engines.fail(self.desk, engine, Cause.EXIT, _exit(event), member=event.member if event.member >= 0 else None)
        elif isinstance(group, GatewayId):
            if pipeline.gateway.incarnation == incarnation:
                gateways.fail(self.desk, pipeline, _ended(event))
        elif pipeline.trainer.incarnation == incarnation:
            trainers.exited(self.desk, pipeline, event.member, event.code, event.note)

    def _trainer_said(self, pipeline: Pipeline, event: TrainerSaid) -> None:
        state = pipeline.trainer.state
        if state in (TrainerState.STARTING, TrainerState.RUNNING):
            trainers.said(self.desk, pipeline, event.rank, event.message)
        elif state is TrainerState.STOPPING:
            trainer_stop.said(self.desk, pipeline, event.rank, event.message)

    def _condemn(self, group: GroupId, incarnation: Incarnation, cause: Cause, reason: str, silent: float = 0.0) -> None:
        pipeline = self.desk.fleet.pipelines[group.pipeline]
        if isinstance(group, EngineId):
            engine = pipeline.engines[group.rank]
            if engine.incarnation == incarnation:
                engines.fail(self.desk, engine, cause, reason, silent=silent)
        elif isinstance(group, GatewayId):
            if pipeline.gateway.incarnation == incarnation:
                gateways.fail(self.desk, pipeline, reason)
        elif pipeline.trainer.incarnation == incarnation:
            trainers.fail(self.desk, pipeline, reason)

    # -- what is due

    def _settle(self) -> None:
        desk = self.desk
        self._look_at_fences()
        for pipeline in desk.fleet.pipelines.values():
            self._prepare(pipeline)
            gateways.step(desk, pipeline)
            trainers.step(desk, pipeline)
        blocked = self._grant()
        current = view(desk, blocked)
        if current != self._seen:
            self._seen, self._wanted = current, plan(current)
        wanted = self._wanted
        wanted_gpus = {gpu: id for id in sorted(wanted) for gpu in desk.fleet.engine(id).gpus}
        for pipeline in desk.fleet.pipelines.values():
            self._settle_engines(pipeline, wanted, wanted_gpus, blocked)
        for pipeline in desk.fleet.pipelines.values():  # what engines have just given up or taken may be what is waited for
            trainers.step(desk, pipeline)
            gateways.step(desk, pipeline)
            self._drop_snapshots(pipeline)

    def _prepare(self, pipeline: Pipeline) -> None:
        if not pipeline.model_ready and pipeline.model_op is None and not pipeline.ended and not self.desk.stopping:
            pipeline.model_op = self.desk.do(lambda id: PrepareModel(id=id, pipeline=pipeline.id), self.desk.box.limits.start)

    def _look_at_fences(self) -> None:
        """What is fenced is measured again now and then; a GPU that clears is lent again."""
        desk = self.desk
        fenced = tuple(sorted(desk.leases.fences))
        if not fenced or self._fence_op is not None or desk.stopping:
            return
        if self._fence_looked is None or desk.due(self._fence_looked + desk.box.limits.remeasure):
            self._fence_looked = desk.now
            limit = desk.box.limits.order
            self._fence_op = desk.do(lambda id: Measure(id=id, holder=None, gpus=fenced, within=0.0), limit)

    def reservations(self) -> Reservations:
        """Whose turn it is to have GPUs for more than a rollout. What is fenced, or withheld by a stuck engine, is reserved for nobody."""
        desk = self.desk
        pipelines = desk.fleet.pipelines.values()
        requests = [pipeline.trainer.request for pipeline in pipelines if pipeline.trainer.request is not None]
        stuck = {gpu for gpu, engines in desk.leases.withheld.items() if any(desk.fleet.state(by) is EngineState.STUCK for by in engines)}
        out = stuck | desk.leases.fences.keys()
        return reserve(requests, held_by_trainers(desk), out.__contains__, desk.now, desk.box.limits.ageing)

    def _grant(self) -> frozenset[GpuId]:
        """Grant every request whose turn it is and whose GPUs are free; returns the GPUs engines must leave."""
        desk = self.desk
        reserved = self.reservations()
        blocked = set(reserved.blocked)
        for request in reserved.turn:
            needed = set(request.gpus) - request.keeps
            if desk.leases.all_free(needed):
                grant(desk, desk.fleet.pipelines[request.pipeline], request)
                blocked -= needed
        return frozenset(blocked)

    def _settle_engines(
        self, pipeline: Pipeline, wanted: frozenset[EngineId], wanted_gpus: dict[GpuId, EngineId], blocked: frozenset[GpuId]
    ) -> None:
        desk = self.desk
        ending = engine_teardown.ending(desk, pipeline)
        for engine in pipeline.engines.values():
            if ending:
                engines.stop(desk, engine)
            eager = pipeline.spec.engine.eager and engine.state is EngineState.COLD and not pipeline.ended and not engine.restarts
            if engine.rests and not eager and not engine.drained and engine.id not in wanted:
                continue  # asleep and let asleep: most engines of a large box
            leave = must_leave(pipeline, engine, wanted, wanted_gpus, blocked)
            contested = any(gpu in blocked or wanted_gpus.get(gpu, engine.id) != engine.id for gpu in engine.gpus)
            awake = engine.id in wanted or (eager and not contested and not desk.stopping)
            engines.step(desk, pipeline, engine, wanted=awake, leave=leave)

    def _drop_snapshots(self, pipeline: Pipeline) -> None:
        """A snapshot lives until it is neither published nor being loaded."""
        if pipeline.snapshots <= {pipeline.published}:
            return
        loading = {
            awaited.action.version
            for awaited in self.desk.inflight.awaited
            if isinstance(awaited.action, Wake | LoadWeights) and awaited.action.engine.pipeline == pipeline.id
        }
        for version in sorted(pipeline.snapshots - loading - {pipeline.published}):
            pipeline.snapshots.discard(version)
            self.desk.do(
                lambda id, version=version: DropSnapshot(id=id, pipeline=pipeline.id, version=version),  # type: ignore[misc]
                self.desk.box.limits.order,
            )

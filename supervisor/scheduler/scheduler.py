"""`Scheduler.handle` takes every decision, in one synchronous, deterministic call without I/O. The rest of the class is read-only."""

from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from engines.lifecycle.state import EngineState
from supervisor.scheduler.groups.lease_violations import intruders, only_theirs
from supervisor.scheduler.groups.trainer_leases import grant
from supervisor.scheduler.planning.planner import Plan, View, must_leave, plan
from supervisor.scheduler.planning.reasons import Explanation
from supervisor.scheduler.planning.reservations import Reservations, reserve
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId

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
from .context import About, Context, FaultChange, Level
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
    RankLeft,
    Stop,
    Tick,
    TrainerSaid,
)
from .faults import Cause, Fault
from .groups import engine_teardown, engines, gateways, publishes, trainer_stop, trainers
from .inflight import Awaited, InFlight
from .invariants import check
from .leases import LeaseBook
from .planner_view import explain, held_by_trainers, view
from .records import Engine, Fleet, Gateway, Group, Pipeline, Trainer, TrainerState, TrainerTransition
from .spec import BoxSpec

NOT_MEASURED = "not measured yet"


class Scheduler:
    """The scheduler decides who may hold which GPU, who is told what, and who is started and stopped.

    The runtime feeds it events and performs its actions; every action is answered by exactly one event.
    Raises AssertionError when an invariant is broken: a bug of ours.
    """

    def __init__(self, box: BoxSpec, now: float) -> None:
        self._ctx = Context(box, Fleet(box), LeaseBook(box.gpus), InFlight(), now)
        self._fence_op: int | None = None
        self._fence_looked: float | None = None
        self._seen: View | None = None
        self._wanted: Plan = frozenset()  # the plan of what was seen last
        for gpu in box.gpus:  # nobody gets a GPU that was never seen empty
            self._ctx.leases.fence(gpu, NOT_MEASURED)

    # -- its face: what others may look at. They change nothing of it.

    @property
    def box(self) -> BoxSpec:
        return self._ctx.box

    @property
    def pipelines(self) -> Mapping[PipelineId, Pipeline]:
        return self._ctx.fleet.pipelines

    @property
    def engines(self) -> Iterable[Engine]:
        """Return the engines of all pipelines."""
        return self._ctx.fleet.engines

    def engine(self, id: EngineId) -> Engine:
        return self._ctx.fleet.engine(id)

    def group(self, id: GroupId) -> Group:
        return self._ctx.fleet.group(id)

    @property
    def leases(self) -> LeaseBook:
        return self._ctx.leases

    @property
    def awaited(self) -> list[Awaited]:
        """Return the actions in flight, with their deadlines."""
        return self._ctx.inflight.awaited

    @property
    def notes(self) -> Sequence[tuple[Level, About, str]]:
        """Return what the last event gave an operator to read: level, about whom, what."""
        return self._ctx.notes

    @property
    def fault_changes(self) -> Sequence[tuple[FaultChange, Fault]]:
        """Return the faults of engines that the last event opened ("failed") or closed (how), in order."""
        return self._ctx.fault_changes

    @property
    def faults(self) -> Sequence[Fault]:
        """Return the newest faults that are closed."""
        return self._ctx.faults

    @property
    def stopping(self) -> int:
        """Return the level of the operator's stop: 0 none, 1 graceful, 2 without draining, 3 kill."""
        return self._ctx.stopping

    @property
    def wanted(self) -> Plan:
        """Return the engines that should be awake."""
        return self._wanted

    @property
    def view(self) -> View:
        """Return what the last plan was made from. Raises AssertionError before the first event."""
        assert self._seen is not None, "nothing has been planned yet"
        return self._seen

    def explain(self, pipeline: PipelineId) -> Explanation:
        """Return why the pipeline has the engines that it has, and why it was not given more. To be asked between two events, after the first."""
        return explain(self._ctx, self._ctx.fleet.pipelines[pipeline], self.view, self.reservations())

    def refusal(self, event: OperatorAsked) -> str:
        """Return why an operator cannot ask for that at all; empty when it can be asked."""
        return operators.refusal(self._ctx, event)

    def preview(self, event: OperatorAsked) -> list[tuple[GroupId | PipelineId, str]]:
        """Return what the request would do to whom, in the order in which people read it. It must not be refused."""
        return operators.preview(self._ctx, event)

    @property
    def deadline(self) -> float | None:
        """Return when the scheduler wants a `Tick` at the latest; None: it waits for no moment."""
        times = [time for time in (self._ctx.alarm, self._ctx.inflight.deadline) if time is not None]
        return min(times, default=None)

    @property
    def finished(self) -> bool:
        """Return whether every pipeline has ended and nothing of any lives."""
        return all(pipeline.settled for pipeline in self._ctx.fleet.pipelines.values())

    def handle(self, event: Event, now: float) -> list[Action]:
        """Absorb the event, see what is overdue, start what is due. `now` never goes backwards."""
        ctx = self._ctx
        ctx.now = max(ctx.now, now)
        ctx.alarm = None
        ctx.notes.clear()
        ctx.fault_changes.clear()
        self._absorb(event)
        for action in ctx.inflight.overdue(ctx.now):
            late = ActionFailed(id=action.id, reason="no answer within its deadline", code="deadline")
            self._answer(action, late)
        self._settle()
        check(ctx)
        return ctx.inflight.take()

    # -- what happened

    def _absorb(self, event: Event) -> None:
        match event:
            case MemberExited():
                self._member_exited(event)
            case RankLeft():
                trainers.rank_left(self._ctx, event)
            case PeerFailed(group=group, incarnation=incarnation, reason=reason):
                self._condemn(group, incarnation, Cause.PEER, reason)
            case ProbeFailed(group=group, incarnation=incarnation, reason=reason, silent_for=silent):
                self._condemn(group, incarnation, Cause.PROBE, reason, silent)
            case TrainerSaid():
                if event.incarnation == (pipeline := self._ctx.fleet.pipelines[event.pipeline]).trainer.incarnation:
                    self._trainer_said(pipeline, event)
            case GatewaySaid():
                pipeline = self._ctx.fleet.pipelines[event.pipeline]
                # also before its GatewayReady, which comes another way: a gateway reports a change once, and is asked for nothing
                if event.incarnation == pipeline.gateway.incarnation and not pipeline.gateway.dying:
                    gateways.absorb(self._ctx, pipeline, event.progress)
            case OperatorAsked():
                operators.apply(self._ctx, event)
            case Stop(level=level):
                operators.stop(self._ctx, level)
            case Tick():
                pass
            case _:  # an answer
                action = self._ctx.inflight.answered(event.id)
                if action is not None:
                    self._answer(action, event)

    def _answer(self, action: Action, answer: Answer) -> None:
        ctx = self._ctx
        match action:
            case Route() | Unroute() | Drain() | Lost():
                self._group_answer(action.subject, action, answer)
                if isinstance(answer, ActionFailed):  # a gateway that does not answer an order has failed
                    gateways.fail(ctx, ctx.fleet.pipelines[action.engine.pipeline], answer.reason)
            case StartGroup() | Pause() | Wake() | LoadWeights() | StartTrainer() | AdoptSnapshot() | RecordCheckpoint() | StopGroup():
                self._group_answer(action.subject, action, answer)
            case OpenAtGateway() | CloseAtGateway() | ForgetAtGateway() | TellHopeless() | StartGateway():
                self._group_answer(action.subject, action, answer)
            case Measure():
                self._measured(action, answer)
            case PrepareModel():
                self._model(ctx.fleet.pipelines[action.pipeline], answer)
            case TellTrainer() | DropSnapshot():
                pass  # a rank that does not read is reported by its descriptor
            case _:
                assert_never(action)

    def _group_answer(self, group: GroupId, action: Action, answer: Answer) -> None:
        ctx = self._ctx
        pipeline, record = ctx.fleet.pipelines[group.pipeline], ctx.fleet.group(group)
        match record:
            case Engine():
                engines.answered(ctx, pipeline, record, action, answer)
            case Trainer():
                trainers.answered(ctx, pipeline, action, answer)
            case Gateway():
                gateways.answered(ctx, pipeline, action, answer)
            case _:
                assert_never(record)

    def _model(self, pipeline: Pipeline, answer: Answer) -> None:
        pipeline.model_op = None
        pipeline.model_ready = isinstance(answer, ModelReady)
        if not isinstance(answer, ActionFailed):
            return
        if (wait := pipeline.lose_maker(answer.code, self._ctx.now)) is not None:
            self._ctx.note("warning", pipeline.id, f"its model is made again in {wait:g} s: {answer.reason}")
        else:
            pipeline.failed = f"its model could not be made: {answer.reason}"
            self._ctx.note("error", pipeline.id, pipeline.failed)
            pipeline.trainer.transition(TrainerTransition.STOP)

    def _measured(self, action: Measure, answer: Answer) -> None:
        """A group that holds memory without a lease fails, wherever it is seen; while it is being ended, those who were measured wait for it."""
        found = intruders(self._ctx.leases, answer) if isinstance(answer, GpuHeld) else []
        for holder in found:
            self._condemn(holder.group, holder.incarnation, Cause.INTRUDER, f"holds memory on GPU {holder.gpu}, of which it has no lease")
        if action.holder is None:
            self._fences_measured(action, answer)
        elif isinstance(answer, GpuHeld) and only_theirs(self._ctx.fleet, answer, found):
            record = self._ctx.fleet.group(action.holder)
            record.op = None  # it is measured again
            if isinstance(record, Trainer) and record.grant is not None:
                record.grant.measure = None
        else:
            self._group_answer(action.holder, action, answer)

    def _fences_measured(self, action: Measure, answer: Answer) -> None:
        self._fence_op = None
        note = answer.note if isinstance(answer, GpuHeld) else answer.reason if isinstance(answer, ActionFailed) else ""
        held = set(answer.gpus) if isinstance(answer, GpuHeld) else set(action.gpus) if isinstance(answer, ActionFailed) else set()
        for gpu in action.gpus:
            if gpu not in held:
                self._ctx.leases.clear(gpu)
            elif self._ctx.leases.fenced(gpu) == NOT_MEASURED:
                self._ctx.leases.fence(gpu, f"held by something that is not ours: {note}")
                self._ctx.note("warning", gpu, f"fenced: {note}")

    def _member_exited(self, event: MemberExited) -> None:
        record, pipeline, ctx = self._ctx.fleet.group(event.group), self._ctx.fleet.pipelines[event.group.pipeline], self._ctx
        if record.incarnation != event.incarnation:
            return  # of a life before this one
        match record:
            case Engine():
                member = event.member if event.member >= 0 else None
                who = f"member {member}" if member is not None else "a process of its tree"
                engines.fail(ctx, record, Cause.EXIT, f"{who} {event.how}", member=member)
            case Trainer():
                trainers.rank_exited(ctx, pipeline, event)
            case Gateway():
                gateways.fail(ctx, pipeline, event.how)
            case _:
                assert_never(record)

    def _trainer_said(self, pipeline: Pipeline, event: TrainerSaid) -> None:
        state = pipeline.trainer.state
        if state in (TrainerState.STARTING, TrainerState.RUNNING):
            trainers.handle_message(self._ctx, pipeline, event.rank, event.message)
        elif state is TrainerState.STOPPING:
            trainer_stop.handle_message(self._ctx, pipeline, event.rank, event.message)

    def _condemn(self, group: GroupId, incarnation: Incarnation, cause: Cause, reason: str, silent: float = 0.0) -> None:
        record, pipeline, ctx = self._ctx.fleet.group(group), self._ctx.fleet.pipelines[group.pipeline], self._ctx
        if record.incarnation != incarnation:
            return  # a verdict about the dead
        match record:
            case Engine():
                engines.fail(ctx, record, cause, reason, silent=silent)
            case Trainer():
                trainers.fail(ctx, pipeline, reason)
            case Gateway():
                gateways.fail(ctx, pipeline, reason)
            case _:
                assert_never(record)

    # -- what is due

    def _settle(self) -> None:
        ctx = self._ctx
        self._look_at_fences()
        for pipeline in ctx.fleet.pipelines.values():
            self._prepare(pipeline)
            gateways.step(ctx, pipeline)
            trainers.step(ctx, pipeline)
        blocked = self._grant()
        current = view(ctx, blocked)
        if current != self._seen:
            self._seen, self._wanted = current, plan(current)
        wanted = self._wanted
        wanted_gpus = {gpu: id for id in sorted(wanted) for gpu in ctx.fleet.engine(id).gpus}
        for pipeline in ctx.fleet.pipelines.values():
            self._settle_engines(pipeline, wanted, wanted_gpus, blocked)
        for pipeline in ctx.fleet.pipelines.values():  # what engines have just given up or taken may be what is waited for
            trainers.step(ctx, pipeline)
            gateways.step(ctx, pipeline)
            publishes.drop_snapshots(ctx, pipeline)

    def _prepare(self, pipeline: Pipeline) -> None:
        if pipeline.lacks_model and not self._ctx.stopping and self._ctx.due(pipeline.model_not_before):
            pipeline.model_op = self._ctx.do(lambda id: PrepareModel(id=id, pipeline=pipeline.id), self._ctx.box.limits.start)

    def _look_at_fences(self) -> None:
        """Measure fenced GPUs again now and then; one that is empty is lent again."""
        ctx = self._ctx
        fenced = tuple(sorted(ctx.leases.fences))
        if not fenced or self._fence_op is not None or ctx.stopping:
            return
        if self._fence_looked is None or ctx.due(self._fence_looked + ctx.box.limits.remeasure):
            self._fence_looked = ctx.now
            self._fence_op = ctx.do(lambda id: Measure(id=id, holder=None, gpus=fenced, within=0.0), ctx.box.limits.order)

    def reservations(self) -> Reservations:
        """Return which trainers' requests come next, and the GPUs that are kept for them.

        A GPU that is fenced, or withheld by a stuck engine, is reserved for nobody.
        """
        ctx = self._ctx
        pipelines = ctx.fleet.pipelines.values()
        requests = [pipeline.trainer.request for pipeline in pipelines if pipeline.trainer.request is not None]
        stuck = {gpu for gpu, engines in ctx.leases.withheld.items() if any(ctx.fleet.state(by) is EngineState.STUCK for by in engines)}
        out = stuck | ctx.leases.fences.keys()
        return reserve(requests, held_by_trainers(ctx), out.__contains__, ctx.now, ctx.box.limits.ageing)

    def _grant(self) -> frozenset[GpuId]:
        """Grant every request that is next and whose GPUs are free; return the GPUs that engines must leave."""
        ctx = self._ctx
        reserved = self.reservations()
        blocked = set(reserved.blocked)
        for request in reserved.reserved:
            needed = set(request.gpus) - request.keeps
            if ctx.leases.all_free(needed):
                grant(ctx, ctx.fleet.pipelines[request.pipeline], request)
                blocked -= needed
        return frozenset(blocked)

    def _settle_engines(
        self, pipeline: Pipeline, wanted: frozenset[EngineId], wanted_gpus: dict[GpuId, EngineId], blocked: frozenset[GpuId]
    ) -> None:
        ctx = self._ctx
        ending = engine_teardown.pipeline_ends(ctx, pipeline)
        for engine in pipeline.engines.values():
            if ending:
                engines.stop(ctx, engine)
            eager = pipeline.spec.engine.eager and engine.state is EngineState.COLD and not pipeline.ended and not engine.restarts
            if engine.rests and not eager and not engine.drained and engine.id not in wanted:
                continue  # asleep and let asleep: most engines of a large box
            leave = engine.held or must_leave(engine.id, engine.gpus, wanted, wanted_gpus, blocked)
            contested = any(gpu in blocked or wanted_gpus.get(gpu, engine.id) != engine.id for gpu in engine.gpus)
            awake = engine.id in wanted or (eager and not contested and not ctx.stopping)
            engines.step(ctx, pipeline, engine, wanted=awake, leave=leave)

"""This module runs the life of an engine group up to its teardown. The table of its states is `engines.lifecycle.state`.

`answered` takes an answer, `step` looks at the record and starts the one action that brings it nearer to what the plan wants,
`fail` condemns it; `engine_teardown` ends its life then. A group has at most one action under way (`engine.op`).
"""

from engines.lifecycle.state import EngineState, Transition
from supervisor.scheduler.actions import Action, Drain, LoadWeights, Lost, Measure, Pause, Route, StartGroup, StopGroup, Unroute, Wake
from supervisor.scheduler.context import Context
from supervisor.scheduler.engine_life import Routing
from supervisor.scheduler.events import ActionFailed, Answer, GpuFree, GpuHeld, GroupGone, GroupReady, Ordered, Paused, Woken
from supervisor.scheduler.faults import Cause
from supervisor.scheduler.planning.reasons import Wait
from supervisor.scheduler.records import Engine, Pipeline
from supervisor.scheduler.spec import Priority
from trainers.protocol.ids import Version

from . import engine_teardown
from .lease_violations import fence_foreign_memory


def fail(ctx: Context, engine: Engine, cause: Cause, reason: str, *, member: int | None = None, silent: float = 0.0) -> None:
    """The whole group has failed, whatever the cause: out of the routes, killed, confirmed gone, and only then perhaps started again.

    `member` is the one whose fault it is, where that is known; `silent` the seconds since the last sign of life.
    """
    if not engine.can(Transition.FAIL) or engine.state is EngineState.STOPPING:  # an end that was asked for is no failure
        return
    ctx.open_fault(engine, cause, reason, member, silent)
    engine.failed_with = _weights_at_work(ctx, engine)
    _begin_teardown(ctx, engine, Transition.FAIL)
    engine.note, engine.failed_at, engine.by_operator = reason, ctx.now, cause is Cause.OPERATOR


def _weights_at_work(ctx: Context, engine: Engine) -> Version | None:
    """Return the published version that the engine is loading or computing with; None for the model's own weights, and for no weights at all."""
    match engine.state:
        case EngineState.WAKING | EngineState.LOADING:
            return ctx.fleet.pipelines[engine.id.pipeline].published or None
        case EngineState.SERVING | EngineState.DRAINING:
            return engine.version or None
        case _:
            return None


def forgive(ctx: Context, pipeline: Pipeline) -> None:
    """Give engines whose restart budget was spent on weights that a trainer had published another chance: newer ones are published now.

    Where another engine has answered requests with the same weights they are not to blame, and an operator decides as ever.
    """
    if any(engine.version == pipeline.published and engine.completed for engine in pipeline.engines.values()):
        return
    for engine in pipeline.engines.values():
        if engine.failed_with is not None and len(engine.budget.failures) >= engine.budget.limit:
            engine.budget.reset()
            engine.failed_with = None
            if engine.state is EngineState.RETIRED:
                engine.not_before = ctx.now
                engine.transition(Transition.RESET, ctx.now)
                ctx.note("warning", engine.id, "was retired with weights that are published no more: it may be started again")


def stop(ctx: Context, engine: Engine) -> None:
    """Stop the group: a healthy one is no longer needed, a failed one will not come back."""
    if engine.can(Transition.STOP):
        _begin_teardown(ctx, engine, Transition.STOP)
    elif engine.state is EngineState.COLD:
        ctx.close_fault(engine, "stopped")
    elif engine.state is EngineState.STUCK:
        ctx.close_fault(engine, "stuck")


def _begin_teardown(ctx: Context, engine: Engine, transition: Transition) -> None:
    """From here on its life can only end."""
    ctx.inflight.forget(engine.op)
    engine.op = engine.life.routing.ordered = None
    engine.transition(transition, ctx.now)
    engine.life.load.in_flight = 0  # what ran there goes on elsewhere


def answered(ctx: Context, pipeline: Pipeline, engine: Engine, action: Action, answer: Answer) -> None:
    """Take in the answer to an action for this engine."""
    if engine.op == action.id:
        engine.op = None
    if isinstance(action, Route):
        engine.life.routing.ordered = None
    match answer:
        case GroupReady(version=version):
            engine.life.version, engine.life.pids = version, answer.pids
            ctx.mark_fault(engine, "ready")
        case Woken(version=version):
            _woken(ctx, pipeline, engine, action, version)
        case Paused():
            engine.pausing.released = True
        case Ordered():
            _ordered(ctx, engine, action, answer.error)
        case GroupGone(confirmed=True):
            engine_teardown.processes_exited(ctx, engine)
        case GroupGone(note=note, pids=pids):
            engine.life.pids = pids
            engine_teardown.unconfirmed(ctx, engine, Cause.ACTION, note)
        case GpuFree():
            _measured_free(ctx, engine)
        case GpuHeld():
            _measured_held(ctx, engine, answer)
        case ActionFailed():
            _failed(ctx, engine, action, answer.reason)
        case _:
            raise AssertionError(f"{answer} does not answer {action}")


def _woken(ctx: Context, pipeline: Pipeline, engine: Engine, action: Action, version: Version) -> None:
    engine.life.version = version
    if isinstance(action, Wake | LoadWeights) and version != action.version:
        fail(ctx, engine, Cause.ACTION, f"was given version {action.version} and says that it has {version}")
    elif version == pipeline.published:
        engine.transition(Transition.CURRENT, ctx.now)
        _loaded(ctx, engine)
    else:
        engine.transition(Transition.STALE, ctx.now)  # another has been published meanwhile: load again, never route


def _ordered(ctx: Context, engine: Engine, action: Action, error: str) -> None:
    match action:
        case Route(version=version):
            if error:
                fail(ctx, engine, Cause.ACTION, f"its gateway refuses the route: {error}")
            else:
                engine.life.routing.version = version
                ctx.mark_fault(engine, "routed")
                ctx.close_fault(engine, "routed")
        case Unroute():
            engine.life.routing.version = None
        case Drain():
            engine.life.routing, engine.life.load.in_flight = Routing(), 0
        case Lost():
            ctx.mark_fault(engine, "unrouted")
        case _:
            raise AssertionError(f"{action} is no order about an engine")


def _failed(ctx: Context, engine: Engine, action: Action, reason: str) -> None:
    if isinstance(action, Lost):
        return
    if isinstance(action, Route | Unroute | Drain):
        if isinstance(action, Drain):
            engine.life.routing = Routing()
        engine.life.routing.version = None
        return  # the gateway's trouble: its own failure takes the route away, and the engine's side is carried out all the same
    if isinstance(action, StopGroup | Measure) and engine.state is not EngineState.PAUSING:
        engine_teardown.unconfirmed(ctx, engine, Cause.ACTION, reason)
    else:
        fail(ctx, engine, Cause.ACTION, f"{type(action).__name__} failed: {reason}")


def _measured_free(ctx: Context, engine: Engine) -> None:
    if engine.state is EngineState.PAUSING:
        engine.transition(Transition.EMPTY, ctx.now)
        engine.pauses += 1
        engine.life.attempt_until = None
        ctx.leases.release(engine.id)
        ctx.mark_fault(engine, "asleep")
        ctx.close_fault(engine, "asleep")
    else:
        engine_teardown.finish(ctx, engine)


def _measured_held(ctx: Context, engine: Engine, held: GpuHeld) -> None:
    if fence_foreign_memory(ctx, engine.id, held):
        _measured_free(ctx, engine)
    elif engine.state is EngineState.PAUSING:
        fail(ctx, engine, Cause.MEMORY, f"paused, but device memory is still held: {held.note}")
    elif engine.teardown.exited and set(held.gpus) < set(engine.gpus):
        engine_teardown.fence_what_stays(ctx, engine, held)
    else:
        engine_teardown.unconfirmed(ctx, engine, Cause.MEMORY, held.note)


def _take_back_route(ctx: Context, pipeline: Pipeline, engine: Engine) -> None:
    """A route that was ordered and is wrong by now is not waited for: orders keep their order, so its `Unroute` can follow at once."""
    routing = engine.life.routing
    if routing.ordered is not None and (routing.ordered != pipeline.published or not pipeline.trainer.restored):
        ctx.inflight.forget(engine.op)
        engine.op, routing.version, routing.ordered = None, routing.ordered, None


def step(ctx: Context, pipeline: Pipeline, engine: Engine, *, wanted: bool, leave: bool) -> None:
    """Start the next action, if one is due. `wanted`: the plan has it awake. `leave`: somebody needs its GPUs."""
    _take_back_route(ctx, pipeline, engine)
    if engine.op is not None:
        return
    match engine.state:
        case EngineState.STARTING:
            _after_start(ctx, pipeline, engine, wanted=wanted, leave=leave)
        case EngineState.LOADING:
            _load(ctx, pipeline, engine, leave=leave)
        case EngineState.SERVING:
            _serve(ctx, pipeline, engine, leave=leave)
        case EngineState.DRAINING:
            _drain(ctx, pipeline, engine)
        case EngineState.PAUSING:
            _pause(ctx, engine)
        case EngineState.QUARANTINED | EngineState.STOPPING:
            engine_teardown.tear_down(ctx, pipeline, engine)
        case EngineState.STUCK:
            if ctx.due(engine.since + ctx.box.limits.remeasure):
                engine.since = ctx.now
                engine_teardown.confirm_exit(ctx, engine, kill=True)
        case EngineState.PAUSED if engine.drained:
            stop(ctx, engine)
            engine_teardown.tear_down(ctx, pipeline, engine)
        case EngineState.PAUSED | EngineState.COLD:
            if wanted and not leave:
                _rise(ctx, pipeline, engine)
        case EngineState.WAKING | EngineState.RETIRED:
            pass  # an action is always under way; an operator decides


def waits_for(ctx: Context, pipeline: Pipeline, engine: Engine) -> Wait | None:
    """Return what keeps an engine that is cold or asleep, and wanted, from being started or woken now; None when nothing does."""
    if not ctx.leases.all_free(engine.gpus):
        return Wait.GPUS
    if engine.state is not EngineState.COLD:
        return None
    if sum(other.state is EngineState.STARTING for other in ctx.fleet.engines) >= ctx.box.rules.max_starting:
        return Wait.STARTING_LIMIT
    if not pipeline.model_ready:
        return Wait.MODEL
    return Wait.BACK_OFF if engine.not_before > ctx.now else None


def _rise(ctx: Context, pipeline: Pipeline, engine: Engine) -> None:
    limits = ctx.box.limits
    if (wait := waits_for(ctx, pipeline, engine)) is not None:
        if wait is Wait.BACK_OFF:
            ctx.look_again(engine.not_before)
        return
    if engine.state is EngineState.COLD:
        ctx.leases.grant(engine.gpus, engine.id, Priority.ROLLOUT, engine.incarnation)
        engine.transition(Transition.START, ctx.now)
        engine.life.attempt_until = ctx.now + limits.attempt
        ctx.mark_fault(engine, "started")
        limit = min(limits.start, limits.attempt)
        engine.op = ctx.do(lambda id: StartGroup(id=id, engine=engine.id, incarnation=engine.incarnation), limit)
        return
    ctx.leases.grant(engine.gpus, engine.id, Priority.ROLLOUT, engine.incarnation)
    engine.transition(Transition.WAKE, ctx.now)
    engine.wakes += 1
    version = pipeline.published
    engine.op = ctx.do(lambda id: Wake(id=id, engine=engine.id, incarnation=engine.incarnation, version=version), limits.wake)


def _after_start(ctx: Context, pipeline: Pipeline, engine: Engine, *, wanted: bool, leave: bool) -> None:
    if leave or not wanted:
        engine.transition(Transition.READY_UNWANTED, ctx.now)
        _pause(ctx, engine)
    elif engine.version == pipeline.published:
        engine.transition(Transition.CURRENT, ctx.now)
        _loaded(ctx, engine)
        _serve(ctx, pipeline, engine, leave=False)
    else:
        engine.transition(Transition.READY_WANTED, ctx.now)
        _load(ctx, pipeline, engine, leave=False)


def _loaded(ctx: Context, engine: Engine) -> None:
    engine.life.attempt_until = None
    ctx.mark_fault(engine, "loaded")


def _remaining(ctx: Context, engine: Engine, limit: float) -> float:
    """Return the limit of a step in seconds, or what remains of the attempt that it belongs to, if that is less."""
    until = engine.life.attempt_until
    return limit if until is None else max(0.0, min(limit, until - ctx.now))


def _load(ctx: Context, pipeline: Pipeline, engine: Engine, *, leave: bool) -> None:
    if engine.route is not None:
        _order_unroute(ctx, pipeline, engine)
    elif leave:
        engine.transition(Transition.DRAIN, ctx.now)
        _drain(ctx, pipeline, engine)
    else:
        version: Version = pipeline.published
        engine.op = ctx.do(
            lambda id: LoadWeights(id=id, engine=engine.id, incarnation=engine.incarnation, version=version),
            _remaining(ctx, engine, ctx.box.limits.load),
        )


def _serve(ctx: Context, pipeline: Pipeline, engine: Engine, *, leave: bool) -> None:
    if leave:
        engine.transition(Transition.DRAIN, ctx.now)
        _drain(ctx, pipeline, engine)
    elif engine.version != pipeline.published and pipeline.spec.on_publish == "finish" and (engine.route is not None or engine.in_flight):
        if engine.route is not None:  # its last figures come with the answer: what runs there ends under the weights it began with
            _order_unroute(ctx, pipeline, engine)
    elif engine.version != pipeline.published:
        engine.transition(Transition.STALE, ctx.now)
        _load(ctx, pipeline, engine, leave=False)
    elif not pipeline.trainer.restored:
        if engine.route is not None:
            _order_unroute(ctx, pipeline, engine)
    elif engine.route is None and pipeline.gateway.up and not ctx.stopping:
        version = pipeline.published
        engine.life.routing.used, engine.life.routing.ordered = True, version
        engine.op = ctx.do(lambda id: Route(id=id, engine=engine.id, incarnation=engine.incarnation, version=version), ctx.box.limits.order)


def _order_unroute(ctx: Context, pipeline: Pipeline, engine: Engine) -> None:
    if pipeline.gateway.up:
        published, limit = pipeline.published, ctx.box.limits.order
        engine.op = ctx.do(lambda id: Unroute(id=id, engine=engine.id, incarnation=engine.incarnation, published=published), limit)
    # else: the gateway's death has taken, or will take, the route away


def _drain(ctx: Context, pipeline: Pipeline, engine: Engine) -> None:
    if engine.in_flight_possible(pipeline):
        engine.op = ctx.do(lambda id: Drain(id=id, engine=engine.id, incarnation=engine.incarnation), ctx.box.limits.drain)
        return
    engine.transition(Transition.DRAINED, ctx.now)
    _pause(ctx, engine)


def _pause(ctx: Context, engine: Engine) -> None:
    limits = ctx.box.limits
    if not engine.pausing.released:
        limit = _remaining(ctx, engine, limits.pause)
        engine.op = ctx.do(lambda id: Pause(id=id, engine=engine.id, incarnation=engine.incarnation), limit)
    else:
        engine.op = ctx.do(
            lambda id: Measure(id=id, holder=engine.id, gpus=engine.gpus, within=limits.release), limits.release + limits.order
        )

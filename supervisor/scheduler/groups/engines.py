"""One engine group: what its answers mean and what it does next. The table of its states is `engines.lifecycle.state`.

`answered` takes an answer, `step` looks at the record and starts the one action that brings it nearer to what the plan wants,
`fail` condemns it; how it ends then: `endings`. A group has at most one action under way (`engine.op`).
"""

from engines.lifecycle.state import EngineState, Turn
from supervisor.scheduler.actions import Action, Drain, LoadWeights, Lost, Measure, Pause, Route, StartGroup, StopGroup, Unroute, Wake
from supervisor.scheduler.context import Desk
from supervisor.scheduler.events import ActionFailed, Answer, GpuFree, GpuHeld, GroupGone, GroupReady, Ordered, Paused, Woken
from supervisor.scheduler.records import Engine, Pipeline
from supervisor.scheduler.spec import Priority
from trainers.protocol.ids import Version

from . import engine_teardown, recoveries
from .faults import Cause
from .lease_violations import fence_strangers


def fail(desk: Desk, engine: Engine, cause: Cause, reason: str, *, member: int | None = None, silent: float = 0.0) -> None:
    """The whole group has failed, whatever the cause: out of the routes, killed, confirmed gone, and only then perhaps started again.

    `member` is the one whose fault it is, where that is known; `silent` the seconds since the last sign of life.
    """
    if not engine.can(Turn.FAIL) or engine.state is EngineState.STOPPING:  # an end that was asked for is no failure
        return
    recoveries.begin(desk, engine, cause, reason, member, silent)
    _leave(desk, engine, Turn.FAIL)
    engine.note, engine.failed_at, engine.asked = reason, desk.now, cause is Cause.OPERATOR


def stop(desk: Desk, engine: Engine) -> None:
    """A healthy group is no longer needed; a failed one will not come back."""
    if engine.can(Turn.STOP):
        _leave(desk, engine, Turn.STOP)
    elif engine.state is EngineState.COLD:
        recoveries.close(desk, engine, "stopped")
    elif engine.state is EngineState.STUCK:
        recoveries.close(desk, engine, "stuck")


def _leave(desk: Desk, engine: Engine, turn: Turn) -> None:
    """From here on its life can only end."""
    desk.inflight.forget(engine.op)
    engine.op = engine.routing_to = None
    engine.turn(turn, desk.now)
    engine.gone = engine.released = engine.told_lost = False
    engine.in_flight = 0  # what ran there goes on elsewhere


def answered(desk: Desk, pipeline: Pipeline, engine: Engine, action: Action, answer: Answer) -> None:
    """`answer` is the answer to an action for this engine."""
    if engine.op == action.id:
        engine.op = None
    if isinstance(action, Route):
        engine.routing_to = None
    match answer:
        case GroupReady(version=version):
            engine.version, engine.pids = version, answer.pids
            recoveries.mark(desk, engine, "ready")
        case Woken(version=version):
            _woken(desk, pipeline, engine, action, version)
        case Paused():
            engine.released = True
        case Ordered():
            _ordered(desk, engine, action, answer.error)
        case GroupGone(confirmed=True):
            engine_teardown.processes_gone(desk, engine)
        case GroupGone(note=note, pids=pids):
            engine.pids = pids
            engine_teardown.unconfirmed(desk, engine, Cause.ACTION, note)
        case GpuFree():
            _measured_free(desk, engine)
        case GpuHeld():
            _measured_held(desk, engine, answer)
        case ActionFailed():
            _failed(desk, engine, action, answer.reason)
        case _:
            raise AssertionError(f"{answer} does not answer {action}")


def _woken(desk: Desk, pipeline: Pipeline, engine: Engine, action: Action, version: Version) -> None:
    engine.version = version
    if isinstance(action, Wake | LoadWeights) and version != action.version:
        fail(desk, engine, Cause.ACTION, f"was given version {action.version} and says that it has {version}")
    elif version == pipeline.published:
        engine.turn(Turn.CURRENT, desk.now)
        _loaded(desk, engine)
    else:
        engine.turn(Turn.STALE, desk.now)  # another has been published meanwhile: load again, never route


def _ordered(desk: Desk, engine: Engine, action: Action, error: str) -> None:
    match action:
        case Route(version=version):
            if error:
                fail(desk, engine, Cause.ACTION, f"its gateway refuses the route: {error}")
            else:
                engine.route = version
                recoveries.mark(desk, engine, "routed")
                recoveries.close(desk, engine, "routed")
        case Unroute():
            engine.route = None
        case Drain():
            engine.route, engine.touched, engine.in_flight = None, False, 0
        case Lost():
            recoveries.mark(desk, engine, "unrouted")
        case _:
            raise AssertionError(f"{action} is no order about an engine")


def _failed(desk: Desk, engine: Engine, action: Action, reason: str) -> None:
    if isinstance(action, Lost):
        return
    if isinstance(action, Route | Unroute | Drain):
        engine.route = None
        engine.touched = engine.touched and not isinstance(action, Drain)
        return  # the gateway's trouble: its own failure takes the route away, and the engine's side is carried out all the same
    if isinstance(action, StopGroup | Measure) and engine.state is not EngineState.PAUSING:
        engine_teardown.unconfirmed(desk, engine, Cause.ACTION, reason)
    else:
        fail(desk, engine, Cause.ACTION, f"{type(action).__name__} failed: {reason}")


def _measured_free(desk: Desk, engine: Engine) -> None:
    if engine.state is EngineState.PAUSING:
        engine.turn(Turn.EMPTY, desk.now)
        engine.released = False
        engine.pauses += 1
        engine.attempt_until = None
        desk.leases.release(engine.id)
        recoveries.mark(desk, engine, "asleep")
        recoveries.close(desk, engine, "asleep")
    else:
        engine_teardown.gone(desk, engine)


def _measured_held(desk: Desk, engine: Engine, held: GpuHeld) -> None:
    if fence_strangers(desk, engine.id, held):
        _measured_free(desk, engine)
    elif engine.state is EngineState.PAUSING:
        fail(desk, engine, Cause.MEMORY, f"paused, but device memory is still held: {held.note}")
    else:
        engine_teardown.unconfirmed(desk, engine, Cause.MEMORY, held.note)


def _take_back_route(desk: Desk, pipeline: Pipeline, engine: Engine) -> None:
    """A route that was ordered and is wrong by now is not waited for: orders keep their order, so its `Unroute` can follow at once."""
    if engine.routing_to is not None and (engine.routing_to != pipeline.published or not pipeline.trainer.restored):
        desk.inflight.forget(engine.op)
        engine.op, engine.route, engine.routing_to = None, engine.routing_to, None


def step(desk: Desk, pipeline: Pipeline, engine: Engine, *, wanted: bool, leave: bool) -> None:
    """Start the next action, if one is due. `wanted`: the plan has it awake. `leave`: somebody needs its GPUs."""
    _take_back_route(desk, pipeline, engine)
    if engine.op is not None:
        return
    match engine.state:
        case EngineState.STARTING:
            _after_start(desk, pipeline, engine, wanted=wanted, leave=leave)
        case EngineState.LOADING:
            _load(desk, pipeline, engine, leave=leave)
        case EngineState.SERVING:
            _serve(desk, pipeline, engine, leave=leave)
        case EngineState.DRAINING:
            _drain(desk, pipeline, engine)
        case EngineState.PAUSING:
            _pause(desk, engine)
        case EngineState.QUARANTINED | EngineState.STOPPING:
            engine_teardown.end(desk, pipeline, engine)
        case EngineState.STUCK:
            if desk.due(engine.since + desk.box.limits.remeasure):
                engine.since = desk.now
                engine_teardown.confirm(desk, engine, kill=True)
        case EngineState.PAUSED if engine.drained:
            stop(desk, engine)
            engine_teardown.end(desk, pipeline, engine)
        case EngineState.PAUSED | EngineState.COLD:
            if wanted and not leave and desk.leases.all_free(engine.gpus):
                _rise(desk, pipeline, engine)
        case EngineState.WAKING | EngineState.RETIRED:
            pass  # an action is always under way; an operator decides


def _rise(desk: Desk, pipeline: Pipeline, engine: Engine) -> None:
    limits = desk.box.limits
    if engine.state is EngineState.COLD:
        starting = sum(other.state is EngineState.STARTING for other in desk.fleet.engines)
        if starting >= desk.box.rules.max_starting or not pipeline.model_ready or not desk.due(engine.not_before):
            return
        desk.leases.grant(engine.gpus, engine.id, Priority.ROLLOUT, engine.incarnation)
        engine.turn(Turn.START, desk.now)
        engine.attempt_until = desk.now + limits.attempt
        recoveries.mark(desk, engine, "started")
        limit = min(limits.start, limits.attempt)
        engine.op = desk.do(lambda id: StartGroup(id=id, engine=engine.id, incarnation=engine.incarnation), limit)
        return
    desk.leases.grant(engine.gpus, engine.id, Priority.ROLLOUT, engine.incarnation)
    engine.turn(Turn.WAKE, desk.now)
    engine.wakes += 1
    version = pipeline.published
    engine.op = desk.do(lambda id: Wake(id=id, engine=engine.id, incarnation=engine.incarnation, version=version), limits.wake)


def _after_start(desk: Desk, pipeline: Pipeline, engine: Engine, *, wanted: bool, leave: bool) -> None:
    if leave or not wanted:
        engine.turn(Turn.READY_UNWANTED, desk.now)
        _pause(desk, engine)
    elif engine.version == pipeline.published:
        engine.turn(Turn.CURRENT, desk.now)
        _loaded(desk, engine)
        _serve(desk, pipeline, engine, leave=False)
    else:
        engine.turn(Turn.READY_WANTED, desk.now)
        _load(desk, pipeline, engine, leave=False)


def _loaded(desk: Desk, engine: Engine) -> None:
    engine.attempt_until = None
    recoveries.mark(desk, engine, "loaded")


def _left(desk: Desk, engine: Engine, limit: float) -> float:
    """The limit of a step, or what is left of the attempt that it belongs to."""
    return limit if engine.attempt_until is None else max(0.0, min(limit, engine.attempt_until - desk.now))


def _load(desk: Desk, pipeline: Pipeline, engine: Engine, *, leave: bool) -> None:
    if engine.route is not None:
        _order_unroute(desk, pipeline, engine)
    elif leave:
        engine.turn(Turn.DRAIN, desk.now)
        _drain(desk, pipeline, engine)
    else:
        version: Version = pipeline.published
        engine.op = desk.do(
            lambda id: LoadWeights(id=id, engine=engine.id, incarnation=engine.incarnation, version=version),
            _left(desk, engine, desk.box.limits.load),
        )


def _serve(desk: Desk, pipeline: Pipeline, engine: Engine, *, leave: bool) -> None:
    if leave:
        engine.turn(Turn.DRAIN, desk.now)
        _drain(desk, pipeline, engine)
    elif engine.version != pipeline.published and pipeline.spec.on_publish == "finish" and (engine.route is not None or engine.in_flight):
        if engine.route is not None:  # its last figures come with the answer: what runs there ends under the weights it began with
            _order_unroute(desk, pipeline, engine)
    elif engine.version != pipeline.published:
        engine.turn(Turn.STALE, desk.now)
        _load(desk, pipeline, engine, leave=False)
    elif not pipeline.trainer.restored:
        if engine.route is not None:
            _order_unroute(desk, pipeline, engine)
    elif engine.route is None and pipeline.gateway.up and not desk.stopping:
        version = pipeline.published
        engine.touched, engine.routing_to = True, version
        engine.op = desk.do(
            lambda id: Route(id=id, engine=engine.id, incarnation=engine.incarnation, version=version), desk.box.limits.order
        )


def _order_unroute(desk: Desk, pipeline: Pipeline, engine: Engine) -> None:
    if pipeline.gateway.up:
        published, limit = pipeline.published, desk.box.limits.order
        engine.op = desk.do(lambda id: Unroute(id=id, engine=engine.id, incarnation=engine.incarnation, published=published), limit)
    # else: the gateway's death has taken, or will take, the route away


def _drain(desk: Desk, pipeline: Pipeline, engine: Engine) -> None:
    if engine.in_flight_possible(pipeline):
        engine.op = desk.do(lambda id: Drain(id=id, engine=engine.id, incarnation=engine.incarnation), desk.box.limits.drain)
        return
    engine.turn(Turn.DRAINED, desk.now)
    _pause(desk, engine)


def _pause(desk: Desk, engine: Engine) -> None:
    limits = desk.box.limits
    if not engine.released:
        limit = _left(desk, engine, limits.pause)
        engine.op = desk.do(lambda id: Pause(id=id, engine=engine.id, incarnation=engine.incarnation), limit)
    else:
        engine.op = desk.do(
            lambda id: Measure(id=id, holder=engine.id, gpus=engine.gpus, within=limits.release), limits.release + limits.order
        )

"""This module runs the life of a gateway. One that dies is replaced at once on the same socket, and is told again what it must know."""

from collections.abc import Collection

from engines.lifecycle.state import EngineState, Transition
from supervisor.scheduler.actions import (
    Action,
    CloseAtGateway,
    Drain,
    ForgetAtGateway,
    Lost,
    OpenAtGateway,
    Route,
    StartGateway,
    StopGroup,
    TellHopeless,
    Unroute,
)
from supervisor.scheduler.context import Context
from supervisor.scheduler.engine_life import Load, Routing
from supervisor.scheduler.events import ActionFailed, Answer, GatewayReady, GroupGone, Ordered
from supervisor.scheduler.records import Pipeline
from supervisor.scheduler.rollouts import Rollout
from trainers.protocol.gateway_messages import Progress
from trainers.protocol.ids import Incarnation

from . import trainers
from .rollout_requests import NO_ENGINE, closed, hopeless

ORDERS = (Route, Unroute, Drain, Lost, OpenAtGateway, CloseAtGateway, ForgetAtGateway, TellHopeless)
MAX_FAILURES = 10
"""Deaths in a row (without a minute of life between) after which the pipeline has failed: its gateway cannot live."""


def fail(ctx: Context, pipeline: Pipeline, reason: str, *, by_operator: bool = False) -> None:
    """The gateway has died or is condemned. Its routes end with it; what it was asked is carried out on the engines' side.

    `by_operator`: an operator wanted it, and has been told.
    """
    gateway = pipeline.gateway
    if gateway.dying:
        return
    if not by_operator:
        ctx.note("error", gateway.id, f"gateway failed: {reason}")
    gateway.note, gateway.failed_at, gateway.by_operator = reason, ctx.now, by_operator
    _forget_orders(ctx, pipeline)
    ctx.inflight.forget(gateway.op)
    gateway.op = None
    gateway.up, gateway.dying = False, True
    gateway.hopeless = ""
    pipeline.forget = False  # the next one starts empty
    for number in tuple(pipeline.closing):
        closed(ctx, pipeline, number)
    _count_implicit(pipeline)
    for rollout in pipeline.rollouts.values():
        rollout.gateway_lost(ctx.now)
    for engine in pipeline.engines.values():
        engine.life.routing, engine.life.load = Routing(), Load()


def _count_implicit(pipeline: Pipeline, still_open: Collection[int] = ()) -> None:
    """Count and remove the implicit rollouts that the gateway has closed."""
    for number, rollout in tuple(pipeline.rollouts.items()):
        if rollout.implicit and number not in still_open:
            pipeline.figures.samples += rollout.done
            del pipeline.rollouts[number]


def _forget_orders(ctx: Context, pipeline: Pipeline) -> None:
    for awaited in ctx.inflight.awaited:
        action = awaited.action
        if isinstance(action, Route | Unroute | Drain | Lost) and action.engine.pipeline == pipeline.id:
            ctx.inflight.forget(action.id)
            engine = pipeline.engines[action.engine.rank]
            if engine.op == action.id:
                engine.op = None
        elif isinstance(action, OpenAtGateway | CloseAtGateway | ForgetAtGateway | TellHopeless) and action.pipeline == pipeline.id:
            ctx.inflight.forget(action.id)


def answered(ctx: Context, pipeline: Pipeline, action: Action, answer: Answer) -> None:
    """Take in the answer to an action for this gateway. (Answers to orders about engines go to `engines.answered`.)"""
    gateway = pipeline.gateway
    if gateway.op == action.id:
        gateway.op = None
    match (action, answer):
        case (StartGateway(), GatewayReady(pids=pids)):
            gateway.up, gateway.pids = True, pids
        case (StartGateway(), ActionFailed(reason=reason)):
            fail(ctx, pipeline, f"did not start: {reason}")
        case (StopGroup(), GroupGone() | ActionFailed()):
            _count_implicit(pipeline)
            _next_life(ctx, pipeline)
        case (OpenAtGateway(rollout=number), Ordered()):
            if (rollout := pipeline.rollouts.get(number)) is not None:
                rollout.known = True
        case (CloseAtGateway(rollout=number), Ordered()):
            closed(ctx, pipeline, number)
        case (ForgetAtGateway() | TellHopeless(), Ordered()):
            pass
        case (_, ActionFailed(reason=reason)):
            fail(ctx, pipeline, f"does not carry out {type(action).__name__}: {reason}")
        case _:
            raise AssertionError(f"{answer} does not answer {action}")


def _next_life(ctx: Context, pipeline: Pipeline) -> None:
    gateway = pipeline.gateway
    gateway.dying, gateway.up = False, False
    gateway.pids = ()
    gateway.incarnation = Incarnation(gateway.incarnation + 1)
    if pipeline.ended:
        return
    lived = ctx.now - gateway.not_before
    gateway.failures = 1 if lived > 60.0 else gateway.failures + 1
    gateway.not_before = ctx.now + (0.0 if gateway.failures <= 2 else min(60.0, 2.0 ** (gateway.failures - 2)))
    if gateway.failures > MAX_FAILURES:
        pipeline.failed = f"its gateway died {MAX_FAILURES} times in a row"
        trainers.stop(ctx, pipeline)


def absorb(ctx: Context, pipeline: Pipeline, progress: Progress) -> None:
    """Take over the gateway's report: it names every rollout that is open there, and is the progress that the planner sees."""
    seen = set()
    for report in progress.rollouts:
        seen.add(report.rollout)
        rollout = pipeline.rollouts.get(report.rollout) or pipeline.closing.get(report.rollout)
        if rollout is None and report.implicit:
            rollout = Rollout(report.rollout, 0, ctx.now, implicit=True, known=True, ordered=True, announced=True)
            pipeline.rollouts[report.rollout] = rollout
        if rollout is not None:  # else it was closed here while the report was on its way
            rollout.absorb(report, ctx.now)
    if progress.rollouts:
        oldest = progress.rollouts[0]
        pipeline.pace.absorb(oldest.rollout, oldest.in_flight, oldest.done, ctx.now)
    _count_implicit(pipeline, seen)
    for load in progress.engines:
        engine = pipeline.engines.get(load.engine)
        if engine is not None and engine.incarnation == load.incarnation and engine.can(Transition.STOP):  # else its life is ending
            engine.life.load = Load(load.in_flight, load.completed, load.failures, load.tokens)
    reported = {load.engine for load in progress.engines}
    for rank, engine in pipeline.engines.items():
        if rank not in reported and engine.state is EngineState.SERVING and engine.route is None:
            engine.life.load.in_flight = 0  # unrouted, and the last request on it has ended


def step(ctx: Context, pipeline: Pipeline) -> None:
    """Start it, send it orders or stop it, whatever is due."""
    gateway = pipeline.gateway
    if gateway.op is not None:
        return
    if gateway.dying or (gateway.up and _no_longer_needed(pipeline)):
        gateway.up = False
        gateway.dying = True
        kill = ctx.stopping >= 2 or not pipeline.ended
        limit = ctx.box.limits.grace + ctx.box.limits.order
        gateway.op = ctx.do(lambda id: StopGroup(id=id, group=gateway.id, incarnation=gateway.incarnation, kill=kill), limit)
    elif gateway.up:
        _send_orders(ctx, pipeline)
    elif not pipeline.ended and not ctx.stopping and pipeline.model_ready and ctx.due(gateway.not_before):
        gateway.op = ctx.do(
            lambda id: StartGateway(id=id, pipeline=pipeline.id, incarnation=gateway.incarnation), ctx.box.limits.gateway_start
        )


def _no_longer_needed(pipeline: Pipeline) -> bool:
    return pipeline.ended and all(
        engine.state in (EngineState.COLD, EngineState.RETIRED, EngineState.STUCK) for engine in pipeline.engines.values()
    )


def _send_orders(ctx: Context, pipeline: Pipeline) -> None:
    limit = ctx.box.limits.order
    if pipeline.forget:
        pipeline.forget = False
        ctx.do(lambda id: ForgetAtGateway(id=id, pipeline=pipeline.id), limit)
    for rollout in pipeline.rollouts.values():
        if not rollout.ordered:
            rollout.ordered = True
            number, target = rollout.number, max(1, rollout.target - rollout.before)
            _open(ctx, pipeline, number, target)
    reason = NO_ENGINE[1] if hopeless(pipeline) else ""
    if reason != pipeline.gateway.hopeless:
        pipeline.gateway.hopeless = reason
        ctx.do(lambda id: TellHopeless(id=id, pipeline=pipeline.id, reason=reason), limit)


def _open(ctx: Context, pipeline: Pipeline, number: int, target: int) -> None:
    ctx.do(lambda id: OpenAtGateway(id=id, pipeline=pipeline.id, rollout=number, target=target), ctx.box.limits.order)

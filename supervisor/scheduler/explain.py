"""`explain` says why a pipeline has the engines that it has, and why it was not given more.

It plans again what was planned last, from the same view and by the same functions, and lets them write down their rules; it changes nothing.
"""

from supervisor.scheduler.groups.engines import waits_for
from supervisor.scheduler.planning.planner import View, plan
from supervisor.scheduler.planning.reasons import Denied, EngineReason, Explanation, Party, Trace, Wait
from supervisor.scheduler.planning.reservations import Reservations
from supervisor.scheduler.planning.view import closed_gpus, no_bundle, no_share

from .context import Context
from .records import Engine, Pipeline


def explain(ctx: Context, pipeline: Pipeline, seen: View, reservations: Reservations) -> Explanation:
    """Return the reasons of each engine. `seen` is the view of the last plan, `reservations` are those of now."""
    trace = Trace()
    plan(seen, trace)
    unfinished = pipeline.unfinished(ctx.now, ctx.box.limits.quiet_rollout)
    share = next((share for share in seen.shares if share.pipeline == pipeline.id), None)
    idle = (no_share(pipeline, unfinished) or Denied.CHANGING) if share is None else None
    reasons = tuple(_reason(ctx, pipeline, engine, trace, idle, reservations) for engine in pipeline.engines.values())
    return Explanation(pipeline.id, unfinished, share.cap if share is not None else 0, reasons)


def _reason(
    ctx: Context, pipeline: Pipeline, engine: Engine, trace: Trace, idle: Denied | None, reservations: Reservations
) -> EngineReason:
    if (given := trace.given.get(engine.id)) is not None:
        wait = None if engine.awake else _wait(ctx, pipeline, engine)
        by = _holders(ctx, engine) if wait is Wait.GPUS else ()
        return EngineReason(engine.id, engine.gpus, engine.awake, given=given, waits=wait, by=by)
    denied, by = _denied(ctx, engine, trace, idle, reservations)
    return EngineReason(engine.id, engine.gpus, engine.awake, denied=denied, by=by)


def _wait(ctx: Context, pipeline: Pipeline, engine: Engine) -> Wait:
    if not engine.rests:
        return Wait.PAUSING
    return waits_for(ctx, pipeline, engine) or Wait.CHANGING


def _denied(
    ctx: Context, engine: Engine, trace: Trace, idle: Denied | None, reservations: Reservations
) -> tuple[Denied, tuple[Party, ...]]:
    if idle is not None:
        return idle, ()
    if engine.id in trace.denied:
        return trace.denied[engine.id]
    if (unusable := no_bundle(engine, ctx.now)) is not None:
        return unusable, ()
    closed = closed_gpus(ctx, reservations.blocked)
    for gpu in engine.gpus:
        match closed.get(gpu):
            case None:
                continue
            case Denied.RESERVED:
                requests = (request for request in reservations.reserved if gpu in request.gpus)
                return Denied.RESERVED, tuple(ctx.fleet.pipelines[request.pipeline].trainer.id for request in requests)
            case Denied.WITHHELD:
                return Denied.WITHHELD, ctx.leases.withheld[gpu]
            case Denied.FENCED:
                return Denied.FENCED, ()
            case why:
                return why, _holders(ctx, engine)
    return Denied.CHANGING, ()


def _holders(ctx: Context, engine: Engine) -> tuple[Party, ...]:
    """Return the groups that hold its GPUs, each once."""
    leases = (ctx.leases.lease(gpu) for gpu in engine.gpus)
    return tuple(dict.fromkeys(lease.holder for lease in leases if lease is not None))

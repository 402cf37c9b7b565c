"""A teardown ends the life of an engine group: every process exits and its ports are free, then its GPUs measure empty; else it is *stuck*.

One that dies asleep has no lease, and its GPUs may be lent out by then. Those are measured when whoever has them leaves; the others are
withheld until they have been measured for it. Of a stuck group all are withheld: nobody comes after those who have them.
"""

from engines.lifecycle.state import EngineState, Transition
from supervisor.scheduler.actions import Lost, Measure, StopGroup
from supervisor.scheduler.context import Context
from supervisor.scheduler.events import GpuHeld
from supervisor.scheduler.faults import Cause
from supervisor.scheduler.records import Engine, Pipeline, TrainerState
from trainers.protocol.ids import GpuId


def pipeline_ends(ctx: Context, pipeline: Pipeline) -> bool:
    """Return whether no engine of the pipeline is to live on, or to come back."""
    return pipeline.ended or (ctx.stopping > 0 and pipeline.trainer.state is TrainerState.STOPPING)


def tear_down(ctx: Context, pipeline: Pipeline, engine: Engine) -> None:
    """Take the next step of the teardown of an engine that has failed or is not needed any more."""
    if not engine.teardown.lost_sent and pipeline.gateway.up:
        engine.teardown.lost_sent = True
        engine.life.routing.version = None  # from this order on, in the order of the gateway's own descriptor
        ctx.do(lambda id: Lost(id=id, engine=engine.id, incarnation=engine.incarnation), ctx.box.limits.order)
    asked = engine.fault is not None and engine.fault.cause is Cause.OPERATOR
    confirm_exit(ctx, engine, kill=(engine.state is EngineState.QUARANTINED and not asked) or ctx.stopping >= 3)


def confirm_exit(ctx: Context, engine: Engine, *, kill: bool) -> None:
    """See every process of it exit, then its GPUs measured empty."""
    limits = ctx.box.limits
    if not engine.teardown.exited:
        limit = limits.end + limits.release  # its ports are waited for as well
        engine.op = ctx.do(lambda id: StopGroup(id=id, group=engine.id, incarnation=engine.incarnation, kill=kill), limit)
    elif gpus := _to_measure(ctx, engine):
        engine.op = ctx.do(lambda id: Measure(id=id, holder=engine.id, gpus=gpus, within=limits.release), limits.release + limits.order)
    else:
        finish(ctx, engine)


def _to_measure(ctx: Context, engine: Engine) -> tuple[GpuId, ...]:
    """Return those of its GPUs that it holds or keeps from others. One that is lent to another, or fenced, is measured for that."""
    leases = ctx.leases
    held, fences = leases.held_by(engine.id), leases.fences
    return held or tuple(gpu for gpu in engine.gpus if leases.lease(gpu) is None and gpu not in fences)


def processes_exited(ctx: Context, engine: Engine) -> None:
    """Every process of it has exited, and its ports are free."""
    engine.teardown.exited = True
    engine.life.pids = ()
    ctx.mark_fault(engine, "gone")
    if engine.state is EngineState.STUCK:
        engine.since = ctx.now - ctx.box.limits.remeasure  # the measurement is next, now
    elif not ctx.leases.held_by(engine.id):  # it died asleep: what of its GPUs nobody has is nobody's until it is measured
        ctx.leases.withhold(engine.gpus, engine.id, f"{engine.id} has ended there")
    if not _to_measure(ctx, engine):
        finish(ctx, engine)


def finish(ctx: Context, engine: Engine) -> None:
    """The teardown is complete: nothing of it is on its GPUs, and the next life may begin."""
    failed = engine.state is not EngineState.STOPPING
    ctx.leases.release(engine.id)
    ctx.leases.lift(engine.id)
    engine.transition(Transition.GONE, ctx.now)
    ctx.mark_fault(engine, "empty")
    if not failed or pipeline_ends(ctx, ctx.fleet.pipelines[engine.id.pipeline]):
        return  # a failure that is open is closed by `groups.stop`
    if engine.fault is not None and engine.fault.cause is Cause.OPERATOR:
        return
    wait = engine.budget.fail(ctx.now, salt=engine.incarnation * 64 + engine.id.rank)
    if wait is None:
        engine.transition(Transition.GIVE_UP, ctx.now)
        ctx.close_fault(engine, "retired")
        ctx.note("error", engine.id, f"retired after {engine.budget.limit} restarts within {engine.budget.window:.0f} s: {engine.note}")
    else:
        engine.not_before = ctx.now + wait
        engine.restarts += 1


def fence_what_stays(ctx: Context, engine: Engine, held: GpuHeld) -> None:
    """Every process of it is gone, and some of its GPUs measure empty: only the others are kept from everybody (a card that is lost, say)."""
    for gpu in held.gpus:
        ctx.leases.fence(gpu, f"memory stays after {engine.id} is gone: {held.note}")
    ctx.note("error", engine.id, f"GPUs {list(held.gpus)} are fenced: {held.note}")
    finish(ctx, engine)


def unconfirmed(ctx: Context, engine: Engine, cause: Cause, note: str) -> None:
    """A process of it, or memory on its GPUs, is still there. A stop that was asked for has failed by that."""
    engine.note, engine.by_operator = note, False
    if engine.state is EngineState.STOPPING:
        engine.failed_at = ctx.now
        ctx.open_fault(engine, cause, f"was to end, and is not confirmed gone: {note}")
        engine.transition(Transition.FAIL, ctx.now)
    if engine.state is EngineState.QUARANTINED:
        engine.transition(Transition.UNCONFIRMED, ctx.now)
        ctx.note("error", engine.id, f"could not be confirmed gone; its GPUs {list(engine.gpus)} are withheld: {note}")
    engine.since = ctx.now
    ctx.leases.withhold(engine.gpus, engine.id, f"{engine.id} is stuck: {note}")

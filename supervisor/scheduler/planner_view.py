"""This module stands between the records and the planner: it makes the planner's view, and explains what came of it.

The view says which engines there are, what a move of each costs, which are too young to be taken (`minimum_hold`), what is free to share, and
who wants it. `explain` says why a pipeline has the engines that it has, and why it was not given more: it plans again what was planned
last, from the same view and by the same functions, lets them write down their rules, and changes nothing.
"""

from collections.abc import Iterable
from functools import lru_cache

from engines.lifecycle.state import EngineState
from supervisor.scheduler.groups.engines import waits_for
from supervisor.scheduler.planning.planner import Bundle, Share, View, plan
from supervisor.scheduler.planning.reasons import Denied, EngineReason, Explanation, Party, Trace, Wait
from supervisor.scheduler.planning.reservations import Reservations
from trainers.protocol.ids import GpuId

from .context import Context
from .records import Engine, Pipeline
from .rollouts import work
from .spec import Priority

MOMENT = 1.0
"""Seconds from the end of a training to the next rollout in which its GPUs are woken only for what pays for the move."""
IMMOVABLE = (EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK)
BEHIND = 2
"""Steps more than any other pipeline has to go: then its rollouts count as the oldest. Like pipelines stay within one step of each other."""


def held_by_trainers(ctx: Context) -> frozenset[GpuId]:
    return frozenset(lease.gpu for lease in ctx.leases.leases if lease.priority is not Priority.ROLLOUT)


def view(ctx: Context, blocked: frozenset[GpuId]) -> View:
    """Return what there is to share, and who wants it. `blocked` are the GPUs that are reserved for trainers."""
    gpus = frozenset(ctx.leases.gpus).difference(closed_gpus(ctx, blocked))
    length = _Lengths(ctx)
    shares = tuple(share for pipeline in ctx.fleet.pipelines.values() if (share := _share(ctx, pipeline, length)) is not None)
    return View(gpus, shares, ctx.box.rules.targets, _soon_wanted(ctx))


def closed_gpus(ctx: Context, blocked: Iterable[GpuId]) -> dict[GpuId, Denied]:
    """Return the GPUs that no engine can be given, each with the rule that keeps engines off."""
    closed = dict.fromkeys(blocked, Denied.RESERVED)
    closed.update(dict.fromkeys(held_by_trainers(ctx), Denied.TRAINING))
    closed.update((lease.gpu, Denied.LEAVING) for lease in ctx.leases.leases if ctx.fleet.state(lease.holder) in IMMOVABLE)
    closed.update(dict.fromkeys(ctx.leases.withheld, Denied.WITHHELD))
    closed.update(dict.fromkeys(ctx.leases.fences, Denied.FENCED))
    return closed


def no_share(pipeline: Pipeline, unfinished: int) -> Denied | None:
    """Return why the pipeline asks for no engine; None when it does."""
    if pipeline.ended:
        return Denied.PIPELINE_ENDED
    if pipeline.suspended:
        return Denied.PIPELINE_PAUSED
    if not pipeline.trainer.restored:
        return Denied.NOT_RESTORED
    return Denied.NOTHING_UNFINISHED if unfinished == 0 else None


def no_bundle(engine: Engine, now: float) -> Denied | None:
    """Return why the engine could not be awake soon; None when it could: it is alive and asked for nothing else, or it can be started."""
    state = engine.state
    if engine.held:
        return Denied.HELD
    if state is EngineState.PAUSED:
        return None  # most engines of a large box
    if state is EngineState.COLD and engine.not_before > now:
        return Denied.BACK_OFF
    if state in IMMOVABLE:
        return Denied.ENDING
    return Denied.RETIRED if state is EngineState.RETIRED else None


def _soon_wanted(ctx: Context) -> frozenset[GpuId]:
    """A trainer that has just left its lease opens its next rollout in a moment, and wants its GPUs for engines then."""
    soon: set[GpuId] = set()
    for pipeline in ctx.fleet.pipelines.values():
        ended = pipeline.trainer.lease_ended_at
        if ended is not None and not pipeline.rollouts and pipeline.trainer.request is None and not ctx.due(ended + MOMENT):
            soon.update(pipeline.spec.trainer.roles.get("train", ()))
    return frozenset(soon)


def _share(ctx: Context, pipeline: Pipeline, length: "_Lengths") -> Share | None:
    quiet = ctx.box.limits.quiet_rollout
    for rollout in pipeline.rollouts.values():
        if (at := rollout.quiet_at(quiet)) is not None:
            ctx.look_again(at)
    unfinished = pipeline.unfinished(ctx.now, quiet)
    if no_share(pipeline, unfinished) is not None:
        return None
    bundles = tuple([bundle for engine in pipeline.engines.values() if (bundle := _bundle(ctx, engine)) is not None])
    expected, longest = work(pipeline.rollouts.values(), ctx.now, quiet)
    return Share(
        pipeline.id,
        unfinished,
        pipeline.spec.engine.slots,
        pipeline.opened,
        bundles,
        weight=pipeline.spec.share,
        home=frozenset(pipeline.spec.trainer.roles.get("train", ())),
        expected=expected,
        longest=longest,
        behind=length.behind(pipeline),
        load=length.load(pipeline),
        pace=pipeline.pace.seconds,
    )


def _bundle(ctx: Context, engine: Engine) -> Bundle | None:
    """Return the engine as the planner sees it, or None. One on its way down counts as awake again when it has been woken."""
    why = no_bundle(engine, ctx.now)
    if why is not None:
        if why is Denied.BACK_OFF:
            ctx.look_again(engine.not_before)
        return None
    state = engine.state
    if state is EngineState.PAUSED or state is EngineState.COLD:
        return _asleep(engine.id.rank, engine.gpus, engine.cost.down + engine.cost.up)
    hold = max(ctx.box.rules.minimum_hold, engine.cost.up)
    young = state is not EngineState.SERVING or not ctx.due(engine.since + hold)
    cost = engine.cost.down + engine.cost.up
    return Bundle(engine.id.rank, frozenset(engine.gpus), engine.awake, engine.awake and young, engine.in_flight, cost)


@lru_cache(1 << 15)
def _asleep(rank: int, gpus: tuple[GpuId, ...], cost: float) -> Bundle:
    return Bundle(rank, frozenset(gpus), awake=False, cost=cost)


class _Lengths:
    """How far each pipeline is from its end, where that is known of all."""

    def __init__(self, ctx: Context) -> None:
        pipelines = ctx.fleet.pipelines.values()
        self._known = all(pipeline.spec.steps > 0 for pipeline in pipelines)
        self._longest = sorted((pipeline.steps_left for pipeline in pipelines), reverse=True)[:2]

    def behind(self, pipeline: Pipeline) -> bool:
        """By far the most steps still to go: what it waits for, the whole box waits for in the end."""
        left, others = pipeline.steps_left, self._longest[1:]
        return left == self._longest[0] and left >= max(others, default=left) + BEHIND

    def load(self, pipeline: Pipeline) -> float:
        """Work to its end, in engines' fills times GPUs, from which fair shares follow; 1 for all when nobody has said how many steps there are."""
        if not self._known:
            return 1.0
        engine = pipeline.spec.engine
        target = sum(rollout.target for rollout in pipeline.rollouts.values())
        return max(1, pipeline.steps_left) * max(1, target) * engine.tp / engine.slots


# -- why


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

"""The planner's view of the fleet: what is free to share, and who wants it."""

from functools import lru_cache

from engines.lifecycle.state import EngineState
from supervisor.scheduler.context import Context
from supervisor.scheduler.records import Engine, Pipeline
from supervisor.scheduler.rollouts import work
from supervisor.scheduler.spec import Priority
from trainers.protocol.ids import GpuId

from .planner import Bundle, Share, View

MOMENT = 1.0
"""Seconds from the end of a training to the next rollout in which its GPUs are woken only for what pays for the move."""
IMMOVABLE = (EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK)
BEHIND = 2
"""Steps more than any other pipeline has to go: then its rollouts count as the oldest. Like pipelines stay within one step of each other."""


def held_by_trainers(ctx: Context) -> frozenset[GpuId]:
    return frozenset(lease.gpu for lease in ctx.leases.leases if lease.priority is not Priority.ROLLOUT)


def view(ctx: Context, blocked: frozenset[GpuId]) -> View:
    """GPUs that are neither a trainer's, nor reserved for one, nor fenced, nor held or withheld by an engine that cannot be asked to leave."""
    withheld = {*blocked, *held_by_trainers(ctx), *ctx.leases.fences, *ctx.leases.withheld}
    withheld.update(lease.gpu for lease in ctx.leases.leases if ctx.fleet.state(lease.holder) in IMMOVABLE)
    gpus = frozenset(ctx.leases.gpus) - withheld
    length = _Lengths(ctx)
    shares = tuple(share for pipeline in ctx.fleet.pipelines.values() if (share := _share(ctx, pipeline, length)) is not None)
    return View(gpus, shares, ctx.box.rules.targets, _soon_wanted(ctx))


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
    if unfinished == 0 or pipeline.ended or pipeline.suspended or not pipeline.trainer.restored:
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
    """None unless it could be awake soon: alive and asked for nothing else, or startable. One on its way down counts again when it is there."""
    state = engine.state
    if engine.held:
        return None
    if state is EngineState.PAUSED or (state is EngineState.COLD and ctx.due(engine.not_before)):
        return _asleep(engine.id.rank, engine.gpus, engine.cost.down + engine.cost.up)
    if state in (EngineState.COLD, EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK, EngineState.RETIRED):
        return None
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

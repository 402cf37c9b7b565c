"""The planner's view of the fleet: what is free to share, and who wants it."""

from functools import lru_cache

from engines.lifecycle.state import EngineState
from supervisor.scheduler.context import Desk
from supervisor.scheduler.groups.rollouts import work
from supervisor.scheduler.records import Engine, Pipeline
from supervisor.scheduler.spec import Priority
from trainers.protocol.ids import EngineId, GpuId

from .planner import Bundle, Share, View

MOMENT = 1.0
"""Seconds from the end of a training to the next rollout in which its GPUs are woken only for what pays for the move."""
IMMOVABLE = (EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK)
BEHIND = 2
"""Steps more than any other pipeline has to go: then its rollouts count as the oldest. Like pipelines stay within one step of each other."""


def held_by_trainers(desk: Desk) -> frozenset[GpuId]:
    return frozenset(lease.gpu for lease in desk.leases.leases if lease.priority is not Priority.ROLLOUT)


def view(desk: Desk, blocked: frozenset[GpuId]) -> View:
    """GPUs that are neither a trainer's, nor reserved for one, nor fenced, nor held or withheld by an engine that cannot be asked to leave."""
    withheld = {*blocked, *held_by_trainers(desk), *desk.leases.fences, *desk.leases.withheld}
    withheld.update(lease.gpu for lease in desk.leases.leases if desk.fleet.state(lease.holder) in IMMOVABLE)
    gpus = frozenset(desk.leases.gpus) - withheld
    length = _Lengths(desk)
    shares = tuple(share for pipeline in desk.fleet.pipelines.values() if (share := _share(desk, pipeline, length)) is not None)
    return View(gpus, shares, desk.box.rules.targets, _soon_wanted(desk))


def _soon_wanted(desk: Desk) -> frozenset[GpuId]:
    """A trainer that has just left its lease opens its next rollout in a moment, and wants its GPUs for engines then."""
    soon: set[GpuId] = set()
    for pipeline in desk.fleet.pipelines.values():
        left = pipeline.trainer.left
        if left is not None and not pipeline.rollouts and pipeline.trainer.request is None and not desk.due(left + MOMENT):
            soon.update(pipeline.spec.trainer.roles.get("train", ()))
    return frozenset(soon)


def _share(desk: Desk, pipeline: Pipeline, length: "_Lengths") -> Share | None:
    quiet = desk.box.limits.quiet_rollout
    for rollout in pipeline.rollouts.values():
        if (at := rollout.quiet_at(quiet)) is not None:
            desk.look_again(at)
    unfinished = pipeline.unfinished(desk.now, quiet)
    if unfinished == 0 or pipeline.ended or pipeline.suspended or not pipeline.trainer.restored:
        return None
    bundles = tuple([bundle for engine in pipeline.engines.values() if (bundle := _bundle(desk, engine)) is not None])
    expected, longest = work(pipeline.rollouts.values(), desk.now, quiet)
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


def _bundle(desk: Desk, engine: Engine) -> Bundle | None:
    """None unless it could be awake soon: alive and asked for nothing else, or startable. One on its way down counts again when it is there."""
    state = engine.state
    if engine.held:
        return None
    if state is EngineState.PAUSED or (state is EngineState.COLD and desk.due(engine.not_before)):
        return _asleep(engine.id.rank, engine.gpus, engine.cost.down + engine.cost.up)
    if state in (EngineState.COLD, EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK, EngineState.RETIRED):
        return None
    hold = max(desk.box.rules.minimum_hold, engine.cost.up)
    young = state is not EngineState.SERVING or not desk.due(engine.since + hold)
    cost = engine.cost.down + engine.cost.up
    return Bundle(engine.id.rank, frozenset(engine.gpus), engine.awake, engine.awake and young, engine.in_flight, cost)


@lru_cache(1 << 15)
def _asleep(rank: int, gpus: tuple[GpuId, ...], cost: float) -> Bundle:
    return Bundle(rank, frozenset(gpus), awake=False, cost=cost)


def must_leave(
    pipeline: Pipeline, engine: Engine, wanted: frozenset[EngineId], wanted_gpus: dict[GpuId, EngineId], blocked: frozenset[GpuId]
) -> bool:
    """A pause is paid only when somebody needs the GPU: a trainer, or another engine of the plan."""
    if engine.held or any(gpu in blocked for gpu in engine.gpus):
        return True
    if engine.id in wanted:
        return False
    return any(gpu in wanted_gpus for gpu in engine.gpus)


class _Lengths:
    """How far each pipeline is from its end, where that is known of all."""

    def __init__(self, desk: Desk) -> None:
        pipelines = desk.fleet.pipelines.values()
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

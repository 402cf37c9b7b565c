"""The planner's view of the fleet: what is free to share, and who wants it."""

from engines.ids import EngineId, GpuId
from engines.state import EngineState

from .desk import Desk
from .fleet import Engine, Pipeline
from .planner import Bundle, Share, View
from .spec import Priority

BEHIND = 2
"""Steps more than any other pipeline has to go: then its rollouts count as the oldest. Like pipelines stay within one step of each other."""


def held_by_trainers(desk: Desk) -> frozenset[GpuId]:
    return frozenset(lease.gpu for lease in desk.leases.leases if lease.priority is not Priority.ROLLOUT)


def view(desk: Desk, blocked: frozenset[GpuId]) -> View:
    """GPUs that are neither a trainer's, nor reserved for one, nor fenced, nor held by an engine that cannot be asked to leave."""
    withheld = set(blocked) | held_by_trainers(desk) | set(desk.leases.fences)
    for engine in desk.fleet.engines:
        if engine.state in (EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK):
            withheld |= set(desk.leases.held_by(engine.id))
    gpus = frozenset(desk.leases.gpus) - withheld
    shares = tuple(share for pipeline in desk.fleet.pipelines.values() if (share := _share(desk, pipeline)) is not None)
    return View(gpus, shares, desk.box.rules.targets)


def _share(desk: Desk, pipeline: Pipeline) -> Share | None:
    quiet = desk.box.limits.quiet_rollout
    for rollout in pipeline.rollouts.values():
        if (at := rollout.quiet_at(quiet)) is not None:
            desk.look_again(at)
    unfinished = pipeline.unfinished(desk.now, quiet)
    if unfinished == 0 or pipeline.ended or pipeline.suspended or not pipeline.trainer.restored:
        return None
    bundles = tuple(_bundle(desk, engine) for engine in pipeline.engines.values() if _available(desk, engine))
    home = frozenset(pipeline.spec.trainer.roles.get("train", ()))
    rollouts = pipeline.rollouts.values()
    known = all(rollout.expected > 0.0 for rollout in rollouts)
    expected = sum(rollout.expected for rollout in rollouts) if known else 0.0
    longest = max(rollout.longest for rollout in rollouts) if known else 0.0
    slots = pipeline.spec.engine.slots
    behind, load = _behind(desk, pipeline), _load(desk, pipeline)
    return Share(pipeline.id, unfinished, slots, pipeline.opened, bundles, pipeline.spec.share, home, expected, longest, behind, load)


def _available(desk: Desk, engine: Engine) -> bool:
    """Could be awake soon: alive and asked for nothing else, or startable. One on its way down counts again when it is there."""
    if engine.held or engine.state in (EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK, EngineState.RETIRED):
        return False
    return engine.state is not EngineState.COLD or desk.due(engine.not_before)


def _bundle(desk: Desk, engine: Engine) -> Bundle:
    young = engine.state is not EngineState.SERVING or not desk.due(engine.since + desk.box.rules.minimum_hold)
    return Bundle(engine.id.rank, frozenset(engine.gpus), engine.awake, engine.awake and young, engine.in_flight)


def must_leave(
    pipeline: Pipeline, engine: Engine, wanted: frozenset[EngineId], wanted_gpus: dict[GpuId, EngineId], blocked: frozenset[GpuId]
) -> bool:
    """A pause is paid only when somebody needs the GPU: a trainer, or another engine of the plan."""
    if engine.held or any(gpu in blocked for gpu in engine.gpus):
        return True
    if engine.id in wanted:
        return False
    return any(gpu in wanted_gpus for gpu in engine.gpus)


def _behind(desk: Desk, pipeline: Pipeline) -> bool:
    """By far the most steps still to go: what it waits for, the whole box waits for in the end."""
    others = (other.steps_left for other in desk.fleet.pipelines.values() if other is not pipeline)
    return pipeline.steps_left >= max(others, default=pipeline.steps_left) + BEHIND


def _load(desk: Desk, pipeline: Pipeline) -> float:
    """Work to its end, in engines' fills times GPUs, from which fair shares follow; 1 for all when nobody has said how many steps there are."""
    if any(other.spec.steps == 0 for other in desk.fleet.pipelines.values()):
        return 1.0
    engine = pipeline.spec.engine
    target = sum(rollout.target for rollout in pipeline.rollouts.values())
    return max(1, pipeline.steps_left) * max(1, target) * engine.tp / engine.slots

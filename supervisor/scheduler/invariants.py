"""Invariants hold after every event and are checked in production, too: it is cheap, and a broken promise must be loud.

Few engines of a large box hold anything: what is leased is looked at lease by lease, and of an engine at rest only that it rests.
"""

from engines.lifecycle.state import HOLDS_MEMORY, EngineState
from trainers.protocol.ids import EngineId, GpuId, GroupId

from .context import Context
from .records import Engine, Pipeline, TrainerState
from .spec import Priority

ENDING = (EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK)
ROUTABLE = (EngineState.SERVING, EngineState.LOADING, EngineState.DRAINING)


def check(ctx: Context) -> None:
    """Look at everything that is leased or routed. Raises AssertionError naming what is broken."""
    leased: dict[GroupId, set[GpuId]] = {}
    for lease in ctx.leases.leases:
        leased.setdefault(lease.holder, set()).add(lease.gpu)
        if isinstance(lease.holder, EngineId):
            engine = ctx.fleet.engine(lease.holder)
            assert not engine.rests, f"{engine.id} is {engine.state.value} and holds GPU {lease.gpu}"
            assert lease.incarnation == engine.incarnation, f"{engine.id} holds GPU {lease.gpu} for its life {lease.incarnation}"
            assert lease.priority is Priority.ROLLOUT, f"{engine.id} holds GPU {lease.gpu} at priority {lease.priority}"
    for gpu, groups in ctx.leases.withheld.items():
        for by in groups:
            assert ctx.fleet.state(by) in ENDING, f"GPU {gpu} is withheld by {by}, whose life is not ending"
    for pipeline in ctx.fleet.pipelines.values():
        _check_trainer(pipeline, leased.get(pipeline.trainer.id, set()))
        for engine in pipeline.engines.values():
            if engine.op is not None:
                assert ctx.inflight.awaits(engine.op), f"{engine.id} waits for action {engine.op}, which nobody performs"
            if engine.route is not None:
                _check_route(ctx, pipeline, engine)
            if not engine.rests:
                held = leased.get(engine.id, set())
                assert not held or held == set(engine.gpus), f"{engine.id} holds {held}, a part of its bundle {engine.gpus}"
                assert held or engine.state not in HOLDS_MEMORY, f"{engine.id} is {engine.state.value} without a lease"
            if engine.state is EngineState.STUCK:
                for gpu in engine.gpus:
                    assert engine.id in ctx.leases.withheld.get(gpu, ()), f"{engine.id} is stuck, and GPU {gpu} is not withheld"


def _check_trainer(pipeline: Pipeline, held: set[GpuId]) -> None:
    trainer = pipeline.trainer
    if trainer.state is TrainerState.RUNNING:
        granted = set(trainer.grant.gpus) | set(trainer.grant.leaving_gpus) if trainer.grant is not None else set()
        assert held == granted, f"{trainer.id} holds {held}, granted {granted}"
    if trainer.state in (TrainerState.COLD, TrainerState.FINISHED, TrainerState.RETIRED):
        assert not held, f"{trainer.id} is {trainer.state.value} and holds {held}"


def _check_route(ctx: Context, pipeline: Pipeline, engine: Engine) -> None:
    assert pipeline.gateway.up, f"{engine.id} is routed by a gateway that is not up"
    assert engine.state in ROUTABLE, f"{engine.id} is routed while {engine.state.value}"
    if engine.state is EngineState.SERVING and engine.op is None and pipeline.trainer.restored and not ctx.stopping:
        assert engine.route == pipeline.published, f"{engine.id} is routed with {engine.route}, published {pipeline.published}"

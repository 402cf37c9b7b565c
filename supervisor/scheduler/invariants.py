"""What must hold after every event, in production too: it is cheap, and a broken promise must be loud."""

from engines.state import HOLDS_MEMORY, EngineState

from .desk import Desk
from .fleet import TrainerState
from .spec import Priority


def check(desk: Desk) -> None:
    """Raises AssertionError naming what is broken."""
    for engine in desk.fleet.engines:
        held = set(desk.leases.held_by(engine.id))
        assert not held or held == set(engine.gpus), f"{engine.id} holds {held}, a part of its bundle {engine.gpus}"
        if engine.state in HOLDS_MEMORY:
            assert held, f"{engine.id} is {engine.state.value} without a lease"
        if engine.state in (EngineState.COLD, EngineState.PAUSED, EngineState.RETIRED):
            assert not held, f"{engine.id} is {engine.state.value} and holds {held}"
        for gpu in held:
            lease = desk.leases.lease(gpu)
            assert lease is not None
            assert lease.incarnation == engine.incarnation, f"{engine.id} holds GPU {gpu} for its life {lease.incarnation}"
            assert lease.priority is Priority.ROLLOUT
        assert engine.op is None or desk.inflight.awaits(engine.op), f"{engine.id} waits for action {engine.op}, which nobody performs"
    for pipeline in desk.fleet.pipelines.values():
        trainer = pipeline.trainer
        held = set(desk.leases.held_by(trainer.id))
        if trainer.state is TrainerState.RUNNING:
            granted = set(trainer.grant.gpus) | set(trainer.grant.leaving_gpus) if trainer.grant is not None else set()
            assert held == granted, f"{trainer.id} holds {held}, granted {granted}"
        if trainer.state in (TrainerState.COLD, TrainerState.FINISHED, TrainerState.RETIRED):
            assert not held, f"{trainer.id} is {trainer.state.value} and holds {held}"
        for engine in pipeline.engines.values():
            if engine.route is not None:
                assert pipeline.gateway.up, f"{engine.id} is routed by a gateway that is not up"
                assert engine.state in (EngineState.SERVING, EngineState.LOADING, EngineState.DRAINING), (
                    f"{engine.id} is routed while {engine.state.value}"
                )
                if engine.state is EngineState.SERVING and engine.op is None and trainer.restored and not desk.stopping:
                    assert engine.route == pipeline.published, f"{engine.id} is routed with {engine.route}, published {pipeline.published}"

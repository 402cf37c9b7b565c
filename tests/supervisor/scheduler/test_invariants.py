"""What `check` says to a broken fleet is what looking at everything says: it only skips what cannot be wrong."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.lifecycle.state import HOLDS_MEMORY, EngineState
from supervisor.scheduler.context import Context
from supervisor.scheduler.inflight import InFlight
from supervisor.scheduler.invariants import check
from supervisor.scheduler.leases import LeaseBook
from supervisor.scheduler.records import Fleet, Grant, TrainerState
from supervisor.scheduler.spec import BoxSpec, EngineSpec, PipelineSpec, Priority, TrainerSpec
from tests.harness.defaults import default_limits, default_rules
from trainers.protocol.ids import EngineId, GpuId, Incarnation, PipelineId, TrainerId, Version

GPUS = tuple(map(GpuId, range(4)))
NAMES = ("a", "b")


def context() -> Context:
    specs = tuple(PipelineSpec(PipelineId(name), EngineSpec(GPUS, 2, 16), TrainerSpec({"train": GPUS[:2]}, 1, 7200.0)) for name in NAMES)
    box = BoxSpec(GPUS, specs, default_limits(), default_rules())
    return Context(box, Fleet(box), LeaseBook(GPUS), InFlight(), 0.0)


def everything(ctx: Context) -> Iterator[bool]:
    """The same promises, engine by engine, without a short cut."""
    for engine in ctx.fleet.engines:
        held = set(ctx.leases.held_by(engine.id))
        yield not held or held == set(engine.gpus)
        yield bool(held) or engine.state not in HOLDS_MEMORY
        yield not held or engine.state not in (EngineState.COLD, EngineState.PAUSED, EngineState.RETIRED)
        for gpu in held:
            lease = ctx.leases.lease(gpu)
            yield lease is not None and lease.incarnation == engine.incarnation and lease.priority is Priority.ROLLOUT
        yield engine.op is None or ctx.inflight.awaits(engine.op)
        withheld = [gpu for gpu, groups in ctx.leases.withheld.items() if engine.id in groups]
        yield engine.state is not EngineState.STUCK or set(withheld) == set(engine.gpus)
        yield not withheld or engine.state in (EngineState.QUARANTINED, EngineState.STOPPING, EngineState.STUCK)
    for pipeline in ctx.fleet.pipelines.values():
        trainer = pipeline.trainer
        held = set(ctx.leases.held_by(trainer.id))
        granted = set(trainer.grant.gpus) | set(trainer.grant.leaving_gpus) if trainer.grant is not None else set()
        yield trainer.state is not TrainerState.RUNNING or held == granted
        yield not held or trainer.state not in (TrainerState.COLD, TrainerState.FINISHED, TrainerState.RETIRED)
        for engine in pipeline.engines.values():
            if engine.route is not None:
                yield pipeline.gateway.up
                yield engine.state in (EngineState.SERVING, EngineState.LOADING, EngineState.DRAINING)
                settled = engine.state is EngineState.SERVING and engine.op is None and trainer.restored
                yield not settled or engine.route == pipeline.published


HOLDERS = st.sampled_from([None, *(EngineId(PipelineId(n), r) for n in NAMES for r in (0, 1)), *(TrainerId(PipelineId(n)) for n in NAMES)])


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_it_catches_what_looking_at_everything_catches(data: st.DataObject) -> None:
    box = context()
    for gpu in GPUS:
        if (holder := data.draw(HOLDERS)) is not None:
            priority = data.draw(st.sampled_from([Priority.ROLLOUT, Priority.ROLLOUT, Priority.ACTOR_TRAINING]))
            box.leases.grant([gpu], holder, priority, Incarnation(data.draw(st.sampled_from([1, 1, 1, 2]))))
    for pipeline in box.fleet.pipelines.values():
        pipeline.gateway.up = data.draw(st.booleans())
        pipeline.trainer.state = data.draw(st.sampled_from(list(TrainerState)))
        if data.draw(st.booleans()):
            pipeline.trainer.grant = Grant(1, ("train",), GPUS[:2], Priority.ACTOR_TRAINING, 0.0)
        for engine in pipeline.engines.values():
            engine.state = data.draw(st.sampled_from(list(EngineState)))
            engine.life.routing.version = data.draw(st.sampled_from([None, None, Version(0), Version(1)]))
            engine.op = data.draw(st.sampled_from([None, None, None, 7]))
            if data.draw(st.booleans()) is (engine.state is EngineState.STUCK):
                box.leases.withhold(engine.gpus[data.draw(st.sampled_from([0, 0, 0, 1])) :], engine.id, "")
    if all(everything(box)):
        check(box)
    else:
        with pytest.raises(AssertionError):
            check(box)

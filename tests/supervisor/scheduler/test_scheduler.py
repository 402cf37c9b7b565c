"""`Scheduler.handle` under any sequence of events whatever: it never raises, and no promise about GPUs breaks."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from supervisor.scheduler import Scheduler
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.simulate.faults.simulation import Simulation
from supervisor.simulate.faults.world import Faults
from tests.harness.boxes import box, pipeline, seed_topology
from tests.harness.checked_scheduler import well
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import EngineLoad, Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GatewayId, GroupId, Incarnation, PipelineId, TrainerId, Version

BOX = box(4, pipeline("p1", [0, 1], [0, 1, 2, 3], critic=[1, 2]), pipeline("p2", [2, 3], [0, 1, 2, 3], critic=[3]))
PIPELINES = [spec.id for spec in BOX.pipelines]
GROUPS: list[GroupId] = [
    *(EngineId(p, rank) for p in PIPELINES for rank in range(4)),
    *(TrainerId(p) for p in PIPELINES),
    *(GatewayId(p) for p in PIPELINES),
]
lives = st.integers(1, 3).map(Incarnation)
numbers = st.integers(0, 3)
roles = st.lists(st.sampled_from(["init", "train", "critic", "rollout"]), min_size=1, max_size=2).map(tuple)
messages = st.one_of(
    st.builds(say.Hello, numbers),
    st.builds(say.OpenRollout, numbers, st.integers(1, 50)),
    st.builds(say.CloseRollout, numbers),
    st.builds(say.RequestLease, numbers, roles),
    st.builds(say.ExchangeLease, numbers, roles),
    st.builds(say.Offloaded, numbers),
    st.builds(say.Publish, numbers, st.just("w")),
    st.builds(say.Checkpoint, numbers, st.just("/c")),
    st.builds(say.Report, numbers, st.just({"reward": 0.5})),
)
progress = st.builds(
    Progress,
    st.lists(st.builds(RolloutProgress, st.integers(-2, 3), numbers, numbers, numbers, st.booleans()), max_size=3).map(tuple),
    st.lists(st.builds(EngineLoad, numbers, lives, numbers, numbers, numbers), max_size=2).map(tuple),
)
unasked = st.one_of(
    st.builds(
        ev.MemberExited, group=st.sampled_from(GROUPS), incarnation=lives, member=st.integers(0, 1), code=st.sampled_from([0, 1, -9])
    ),
    st.builds(ev.PeerFailed, group=st.sampled_from(GROUPS), incarnation=lives, reason=st.just("a test")),
    st.builds(ev.ProbeFailed, group=st.sampled_from(GROUPS), incarnation=lives, reason=st.just("a test")),
    st.builds(ev.TrainerSaid, pipeline=st.sampled_from(PIPELINES), incarnation=lives, rank=st.integers(0, 1), message=messages),
    st.builds(ev.GatewaySaid, pipeline=st.sampled_from(PIPELINES), incarnation=lives, progress=progress),
    st.builds(
        ev.OperatorAsked,
        verb=st.sampled_from(["pause", "drain", "resume", "restart", "reset", "stop"]),
        pipeline=st.sampled_from(PIPELINES),
        rank=st.none() | st.integers(0, 3),
    ),
    st.builds(ev.Tick),
)


def answer(action: do.Action, outcome: int, version: int) -> ev.Event:
    """An answer that the runtime could give to this action."""
    if outcome == 0 and not isinstance(action, do.StopGroup | do.TellTrainer | do.DropSnapshot):
        return ev.ActionFailed(id=action.id, reason="a test")
    match well(action):
        case ev.GroupGone() as gone:
            return msgspec.structs.replace(gone, confirmed=outcome != 0)
        case ev.GpuFree() if isinstance(action, do.Measure) and outcome == 1:
            return ev.GpuHeld(id=action.id, gpus=action.gpus[:1], note="a test")
        case ev.Woken() as woken if outcome <= 1:
            return msgspec.structs.replace(woken, version=Version(version))
        case ev.Ordered() as ordered if outcome == 1:
            return msgspec.structs.replace(ordered, error="a test")
        case good:
            return good


steps = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.integers(0, 30), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.just("event"), unasked),
        st.tuples(st.just("twice"), st.integers(0, 30), st.integers(0, 9), st.integers(0, 3)),
    ),
    min_size=30,
    max_size=160,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(steps, st.lists(st.floats(0.0, 30.0), min_size=160, max_size=160))
def test_no_sequence_of_events_breaks_it(script: list[tuple[Any, ...]], pauses: list[float]) -> None:
    scheduler = Scheduler(BOX, 0.0)
    waiting: list[do.Action] = []
    now = 0.0

    def feed(event: ev.Event) -> None:
        waiting.extend(scheduler.handle(event, now))
        while at_once := [action for action in waiting if isinstance(action, do.TellTrainer | do.PrepareModel | do.StartGateway)]:
            waiting.remove(at_once[0])  # else nothing would ever get going
            waiting.extend(scheduler.handle(answer(at_once[0], 9, 0), now))

    feed(ev.Tick())
    for index, (kind, *rest) in enumerate(script):
        now += pauses[index % len(pauses)] if kind == "event" else 0.01
        if kind == "event":
            feed(rest[0])
        elif waiting:
            which, outcome, version = rest
            action = waiting[which % len(waiting)]
            if kind == "answer":
                waiting.remove(action)
            feed(answer(action, outcome, version))
        holders = [lease.gpu for lease in scheduler.leases.leases]
        assert len(holders) == len(set(holders))
        assert scheduler.deadline is None or scheduler.deadline > now or scheduler.finished or waiting


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    gpus=st.integers(1, 6),
    shapes=st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63), st.sampled_from([1, 1, 2])), min_size=1, max_size=4),
    faulty=st.booleans(),
)
@example(
    seed=17757, gpus=6, shapes=[(17, 49, 1), (45, 0, 1), (12, 46, 1), (0, 0, 1)], faulty=True
)  # a publish while a route's answer was late
def test_everything_is_granted_and_nothing_lost_in_the_end(seed: int, gpus: int, shapes: list[tuple[int, int, int]], faulty: bool) -> None:
    def chosen(mask: int, least: int) -> list[int]:
        picked = [gpu for gpu in range(gpus) if mask >> gpu & 1]
        return picked if len(picked) >= least else list(range(max(least, 1)))

    specs = []
    for index, (train, infer, tp) in enumerate(shapes):
        tp = min(tp, gpus)  # noqa: PLW2901 - a bundle no wider than the box
        mapping = chosen(infer, tp)
        specs.append(pipeline(f"p{index}", chosen(train, 1), mapping[: len(mapping) // tp * tp], tp=tp, ranks=1))
    faults = Faults(never=0.02, twice=0.05, late=0.02, dies=0.02, fails=0.02) if faulty else Faults()
    world = Simulation(box(gpus, *specs), seed, steps=2, target=12, faults=faults)
    world.run()
    for trainer in world.trainers.values():
        record = world.scheduler.pipelines[trainer.pipeline]
        assert record.failed or trainer.completed == {0: 12, 1: 12}
        assert record.failed or record.published >= 2


@pytest.mark.parametrize("early", ["p1", "p2", None])
def test_the_topology_on_which_the_incumbent_hung(early: str | None) -> None:
    """Both pipelines at zero engines after a training, demand signalled from inside the rollout only; one may finish early."""
    for seed in range(10):
        world = Simulation(seed_topology(), seed, steps=5, target=256)
        if early is not None:
            world.trainers[PipelineId(early)].steps = 2
        world.run()
        for trainer in world.trainers.values():
            assert trainer.completed == dict.fromkeys(range(trainer.steps), 256)

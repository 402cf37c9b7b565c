"""Moves cost: what is measured, where it counts, and that alternating demand does not make engines fly."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.lifecycle.state import Transition
from supervisor.scheduler.context import Context
from supervisor.scheduler.inflight import InFlight
from supervisor.scheduler.leases import LeaseBook
from supervisor.scheduler.planner_view import MOMENT, view
from supervisor.scheduler.planning.costs import ENOUGH, NEWEST, MoveCost, Pace
from supervisor.scheduler.planning.planner import Bundle, Share, View, plan
from supervisor.scheduler.records import Fleet
from supervisor.scheduler.rollouts import Rollout
from supervisor.scheduler.spec import BoxSpec, EngineSpec, PipelineSpec, TrainerSpec
from supervisor.simulate.workloads.box import Box
from supervisor.simulate.workloads.production import Production
from supervisor.simulate.workloads.scenario import PipelineLoad, Scenario
from tests.harness.defaults import default_limits, default_rules
from trainers.protocol.ids import EngineId, GpuId, PipelineId

GPUS = tuple(map(GpuId, range(8)))


def share(name: str, awake: bool, **more: object) -> Share:
    bundles = tuple(Bundle(r, frozenset([GPUS[r]]), awake, cost=4.0 if awake else 3.0) for r in range(8))
    fields: dict[str, object] = {"unfinished": 64, "slots": 8, "opened": 1.0, **more}
    return Share(PipelineId(name), bundles=bundles, **fields)  # type: ignore[arg-type]


def held(shares: list[Share]) -> dict[str, int]:
    wanted = plan(View(frozenset(GPUS), tuple(shares)))
    return {s.pipeline: sum(id.pipeline == s.pipeline for id in wanted) for s in shares}


def test_a_move_is_measured_from_the_decision_to_its_end() -> None:
    cost = MoveCost()
    for transition, at in (
        (Transition.WAKE, 1.0),
        (Transition.STALE, 3.0),
        (Transition.CURRENT, 6.0),
        (Transition.DRAIN, 10.0),
        (Transition.DRAINED, 11.0),
        (Transition.EMPTY, 12.0),
    ):
        cost.observe(transition, at)
    assert (cost.up, cost.down) == (5.0, 2.0)
    cost.observe(Transition.WAKE, 20.0)
    cost.observe(Transition.CURRENT, 21.0)
    assert cost.up == pytest.approx(5.0 + NEWEST * (1.0 - 5.0))


@pytest.mark.parametrize("transition", [Transition.FAIL, Transition.STOP, Transition.START])
def test_what_is_broken_off_teaches_nothing(transition: Transition) -> None:
    cost = MoveCost()
    for each, at in (
        (Transition.WAKE, 1.0),
        (transition, 3.0),
        (Transition.CURRENT, 99.0),
        (Transition.STALE, 100.0),
        (Transition.CURRENT, 120.0),
    ):
        cost.observe(each, at)
    assert cost.up == 0.0


def test_the_pace_is_the_mean_time_of_a_sample() -> None:
    """Two at a time, 5 seconds each."""
    pace = Pace()
    for step in range(300):
        pace.absorb(0, 2, 2 * step, 5.0 * step)
        assert pace.seconds == (pytest.approx(5.0) if 2 * step >= ENOUGH else 0.0)


def test_an_engine_is_taken_only_for_more_work_than_the_move_costs() -> None:
    young = share("young", True, opened=5.0)
    assert held([young, share("old", False)]) == {"young": 4, "old": 4}, "nothing is known of its work"
    assert held([young, share("old", False, pace=30.0)]) == {"young": 4, "old": 4}
    assert held([young, share("old", False, pace=2.0)]) == {"young": 6, "old": 2}, (
        "2 engines: 8 s of work each, 3: 5 s, and a move costs 7 s"
    )
    assert held([young, share("old", False, pace=0.01)]) == {"young": 7, "old": 1}, "a first engine always"
    assert held([replace(young, bundles=young.bundles[:2]), share("old", False, pace=0.01)]) == {"young": 2, "old": 6}, "and what is free"


def test_the_scheduler_measures_what_the_box_takes() -> None:
    work = ((20.0,) * 32,) * 3
    loads = tuple(PipelineLoad(f"p{n}", (2 * n, 2 * n + 1), (0, 1, 2, 3), 1, 8, 10.0, work) for n in range(2))
    box = Box(Scenario("costs", 4, 1.5, 6.0, loads))
    policy = Production(box, default_rules())
    box.run(policy)
    costs = [engine.cost for engine in policy.scheduler.engines if engine.cost.up and engine.cost.down]
    assert len(costs) >= 6
    assert all(cost.up == pytest.approx(6.0) and cost.down == pytest.approx(1.5) for cost in costs)
    assert all(p.step == 2 for p in policy.scheduler.pipelines.values()), "the newest rollout says how far it is"
    assert all(p.pace.seconds == pytest.approx(20.0, rel=0.15) for p in policy.scheduler.pipelines.values())


def test_a_trainer_that_has_just_left_is_waited_for_a_moment() -> None:
    spec = PipelineSpec(PipelineId("a"), EngineSpec(GPUS, 1, 16), TrainerSpec({"train": GPUS[:2]}, 1, 7200.0))
    box = BoxSpec(GPUS, (spec,), default_limits(), default_rules())
    ctx = Context(box, Fleet(box), LeaseBook(GPUS), InFlight(), 5.5)
    pipeline = ctx.fleet.pipelines[spec.id]
    assert view(ctx, frozenset()).soon == frozenset()
    pipeline.trainer.lease_ended_at = 5.0
    assert view(ctx, frozenset()).soon == frozenset(GPUS[:2])
    assert ctx.alarm == 5.0 + MOMENT
    pipeline.rollouts[0] = Rollout(0, 8, 5.6)
    assert view(ctx, frozenset()).soon == frozenset(), "there it is"
    pipeline.rollouts.clear()
    ctx.now = 5.0 + MOMENT
    assert view(ctx, frozenset()).soon == frozenset(), "it takes its time"


HOLD_S = 10.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=30, max_size=60), st.booleans())
def test_alternating_demand_does_not_make_engines_fly(demand: list[tuple[int, int]], flip: bool) -> None:
    """Every second another demand, and another of the two has the older rollout: an engine moves once in `HOLD_S` at most, but for a first one."""
    names = ("a", "b")
    since: dict[EngineId, float] = {}  # awake -> since when
    moves = firsts = 0
    for now, (a, b) in enumerate(demand):
        unfinished = {"a": a, "b": b} if not flip or now % 2 else {"a": b, "b": a}
        shares = []
        for name in names:
            ids = [EngineId(PipelineId(name), rank) for rank in range(8)]
            bundles = tuple(
                Bundle(id.rank, frozenset([GPUS[id.rank]]), id in since, id in since and now - since[id] < HOLD_S) for id in ids
            )
            shares.append(Share(PipelineId(name), unfinished[name], 8, float((now + (name == "a")) % 2), bundles))
        wanted = plan(View(frozenset(GPUS), tuple(shares)))
        owner = {GPUS[id.rank] for id in wanted}
        lost = [id for id in since if id not in wanted and GPUS[id.rank] in owner]
        idle = [
            id
            for id in lost
            if not unfinished[id.pipeline] or _cap(unfinished[id.pipeline]) <= sum(w.pipeline == id.pipeline for w in wanted)
        ]
        firsts += sum(not any(id.pipeline == name for id in since) and any(id.pipeline == name for id in wanted) for name in names)
        moves += len(lost) - len(idle)
        for id in lost:
            del since[id]
        since.update({id: float(now) for id in wanted if id not in since})
    assert moves <= firsts + 8 * (len(demand) / HOLD_S + 1)


def _cap(unfinished: int) -> int:
    return min(8, -(-unfinished // 8))

"""The reasons that the planner writes down agree with its plan, each is reached by a small view, and asking for them changes nothing."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings

from engines.lifecycle.state import EngineState
from supervisor.attempt.state_codec import plain
from supervisor.scheduler import Scheduler
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.planning.planner import View, plan
from supervisor.scheduler.planning.reasons import Denied, EngineReason, Given, Trace, Wait
from supervisor.scheduler.rollouts import Rollout
from supervisor.scheduler.spec import Priority
from supervisor.simulate.faults.simulation import Simulation
from tests.harness.boxes import BOXES, FAULTS
from tests.harness.planner_views import share, view, views
from tests.harness.scheduler_bench import FIRST, Bench, one, serving, spec
from trainers.protocol import trainer_messages as say
from trainers.protocol.ids import EngineId, GpuId, PipelineId, TrainerId

EVERY = list(range(8))
ALL_AWAKE = tuple(EVERY)


def traced(box: View) -> Trace:
    trace = Trace()
    plan(box, trace)
    return trace


def denied(box: View, name: str) -> dict[int, Denied]:
    return {engine.rank: why for engine, (why, _) in traced(box).denied.items() if engine.pipeline == name}


def given_to(box: View, name: str) -> dict[int, Given]:
    return {engine.rank: why for engine, why in traced(box).given.items() if engine.pipeline == name}


@settings(max_examples=400, deadline=None)
@given(views())
def test_the_reasons_agree_with_the_plan(box: View) -> None:
    trace = traced(box)
    wanted = plan(box)
    assert set(trace.given) == wanted, "it says that an engine is given, and the plan does not have it, or the other way round"
    used = {gpu for s in box.shares for b in s.bundles if EngineId(s.pipeline, b.rank) in wanted for gpu in b.gpus}
    for each in box.shares:
        for bundle in each.bundles:
            engine = EngineId(each.pipeline, bundle.rank)
            if engine in wanted or each.unfinished == 0 or not bundle.gpus <= box.gpus:
                assert engine not in trace.denied
                continue
            why, by = trace.denied[engine]
            owners = {s.pipeline for s in box.shares for b in s.bundles if EngineId(s.pipeline, b.rank) in wanted and b.gpus & bundle.gpus}
            if bundle.gpus.isdisjoint(used):
                assert why is Denied.CAP, "its GPUs are free, and it could fill them"
            elif why in (Denied.OTHERS_FIRST_ENGINE, Denied.EARLIER_BID) and not set(by) & {each.pipeline}:
                assert by
                assert why is not Denied.OTHERS_FIRST_ENGINE or set(by) <= owners


def test_why_an_engine_is_given() -> None:
    young = share("young", EVERY, awake=ALL_AWAKE, opened=5)
    old = share("old", EVERY, opened=1)
    assert set(given_to(view(8, old, young), "old").values()) == {Given.FIRST_ENGINE, Given.TAKEN}
    assert set(given_to(view(8, old, young), "young").values()) == {Given.FIRST_ENGINE, Given.KEPT}
    assert set(given_to(view(8, old), "old").values()) == {Given.FIRST_ENGINE, Given.FREE}
    wide = share("wide", EVERY, tp=4, awake=(0, 1), unfinished=16, opened=5)
    wide = replace(wide, bundles=tuple(replace(bundle, cost=100.0) for bundle in wide.bundles))
    modest = share("modest", [8, 4, 5], awake=(0,), unfinished=24, opened=1, pace=0.01)
    taker = share("taker", [9, 6, 7], awake=(0,), unfinished=24, opened=2)
    found = given_to(view(10, wide, modest, taker), "modest")
    assert found == {0: Given.FIRST_ENGINE, 1: Given.LEFTOVER, 2: Given.LEFTOVER}, "it would not have moved the wide engine for them"


def _young_keeps(**more: object) -> View:
    """The old rollout bids for GPUs on which all engines of the young one are awake."""
    return view(8, share("young", EVERY, awake=ALL_AWAKE, opened=5), share("old", EVERY, opened=1, **more))  # type: ignore[arg-type]


def test_no_more_than_its_samples_fill() -> None:
    assert set(denied(view(8, share("a", EVERY, unfinished=9)), "a").values()) == {Denied.CAP}


def test_another_pipelines_first_engine_comes_first() -> None:
    trace = traced(view(1, share("a", [0], opened=1), share("b", [0], opened=2)))
    assert trace.denied == {EngineId(PipelineId("b"), 0): (Denied.OTHERS_FIRST_ENGINE, (PipelineId("a"),))}


def test_an_earlier_bid_keeps_its_engines() -> None:
    box = view(8, share("old", EVERY, awake=ALL_AWAKE, opened=1), share("young", EVERY, opened=5, weight=9.0))
    assert Denied.EARLIER_BID in denied(box, "young").values()


def test_an_engine_woken_just_now_is_kept() -> None:
    young = share("young", EVERY, awake=ALL_AWAKE, opened=5)
    young = replace(young, bundles=tuple(replace(bundle, fresh=True) for bundle in young.bundles))
    assert Denied.MINIMUM_HOLD in denied(view(8, young, share("old", EVERY, opened=1)), "old").values()


def test_a_move_that_does_not_pay_is_not_made() -> None:
    box = _young_keeps(pace=4.0)
    costly = replace(box, shares=tuple(replace(s, bundles=tuple(replace(b, cost=100.0) for b in s.bundles)) for s in box.shares))
    assert set(denied(costly, "old").values()) == {Denied.MOVE_COST, Denied.OTHERS_FIRST_ENGINE}
    wide = share("wide", EVERY, tp=4, awake=(0, 1), unfinished=16, opened=5)
    wide = replace(wide, bundles=tuple(replace(bundle, cost=100.0) for bundle in wide.bundles))
    modest = share("modest", [8, 4, 5], awake=(0,), unfinished=24, opened=1, pace=0.01)
    trace = traced(view(9, wide, modest))
    assert trace.denied[EngineId(PipelineId("modest"), 1)] == (Denied.MOVE_COST, (PipelineId("wide"),)), "its own wake costs nothing"


def test_a_few_samples_take_nothing_from_others() -> None:
    assert Denied.LITTLE_WORK in denied(_young_keeps(unfinished=9), "old").values()


def test_more_engines_do_not_end_its_longest_sample_sooner() -> None:
    assert Denied.LONGEST_SAMPLE in denied(_young_keeps(expected=1600.0, longest=100.0), "old").values()


def test_its_fair_share_is_all_that_it_takes() -> None:
    assert Denied.FAIR_SHARE in denied(_young_keeps(), "old").values()


def test_what_a_trainer_wants_for_its_engines_in_a_moment_is_not_woken_for_little() -> None:
    old = share("old", EVERY, awake=(0, 1, 2, 3), unfinished=59, opened=1)
    rich = View(frozenset(map(GpuId, EVERY)), (old,), "oldest-first", frozenset(map(GpuId, (4, 5, 6, 7))))
    assert set(denied(rich, "old").values()) == {Denied.SOON_TRAINING}


# -- the whole scheduler


def reason(bench: Bench, name: str, rank: int = 0) -> EngineReason:
    return bench.scheduler.explain(PipelineId(name)).engines[rank]


def contended() -> Bench:
    """Two pipelines with the same two GPUs; `a` trains on the first, `b` on the second."""
    return Bench(2, spec("a", [0], [0, 1]), spec("b", [1], [0, 1]))


def test_who_asks_for_nothing_is_told_so() -> None:
    bench = one()
    assert reason(bench, "a").denied is Denied.NOTHING_UNFINISHED
    bench.open("a")
    found = bench.scheduler.explain(PipelineId("a"))
    assert (found.unfinished, found.cap, found.held, found.given, found.gap) == (640, 2, 2, 2, 0)
    bench.feed(ev.OperatorAsked(verb="pause", pipeline=PipelineId("a")))
    assert reason(bench, "a").denied is Denied.PIPELINE_PAUSED
    bench.feed(ev.OperatorAsked(verb="resume", pipeline=PipelineId("a")))
    bench.scheduler.pipelines[PipelineId("a")].trainer.restored = False
    bench.later(1.0)
    assert reason(bench, "a").denied is Denied.NOT_RESTORED
    bench.feed(ev.OperatorAsked(verb="stop", pipeline=PipelineId("a")))
    assert reason(bench, "a").denied is Denied.PIPELINE_ENDED


def test_an_engine_that_cannot_run_says_why() -> None:
    bench = serving()
    bench.feed(ev.OperatorAsked(verb="drain", pipeline=PipelineId("a"), rank=0))
    assert reason(bench, "a").denied is Denied.HELD
    bench.feed(ev.OperatorAsked(verb="resume", pipeline=PipelineId("a"), rank=0))
    bench.hold = lambda action: isinstance(action, do.StopGroup)
    bench.die(EngineId(PipelineId("a"), 1))
    assert reason(bench, "a", 1).denied is Denied.ENDING
    bench.release()
    for life in range(2, 5):
        bench.die(EngineId(PipelineId("a"), 1), life=life)
        if life == 2:
            assert reason(bench, "a", 1).denied is Denied.BACK_OFF
        bench.wait(5.0)
    assert bench.scheduler.engine(EngineId(PipelineId("a"), 1)).state is EngineState.RETIRED
    assert reason(bench, "a", 1).denied is Denied.RETIRED


def test_a_gpu_that_no_engine_may_have_says_whose_it_is() -> None:
    bench = contended()
    bench.open("b")
    bench.lease("a")
    found = reason(bench, "b")
    assert (found.denied, found.by) == (Denied.TRAINING, (TrainerId(PipelineId("a")),))
    bench.say("a", say.Offloaded(call=0))
    bench.hold = lambda action: isinstance(action, do.Drain)
    bench.lease("a", 1)
    found = reason(bench, "b")
    assert (found.denied, found.by) == (Denied.RESERVED, (TrainerId(PipelineId("a")),))
    bench.release()
    bench.say("a", say.Offloaded(call=1))
    bench.scheduler.leases.fence(GpuId(0), "a test")
    bench.hold = lambda action: isinstance(action, do.Measure)
    bench.later(1.0)
    assert reason(bench, "b").denied is Denied.FENCED


def test_a_gpu_of_an_engine_that_is_ending_says_so() -> None:
    bench = contended()
    bench.open("a")
    bench.hold = lambda action: isinstance(action, do.StopGroup)
    bench.die(EngineId(PipelineId("a"), 0))
    bench.open("b")
    found = reason(bench, "b")
    assert (found.denied, found.by) == (Denied.LEAVING, (EngineId(PipelineId("a"), 0),))
    bench.rule = lambda action: ev.GroupGone(id=action.id, confirmed=False) if isinstance(action, do.StopGroup) else None
    held, bench.held, bench.hold = bench.held, [], lambda _: False
    bench.feed(*(ev.GroupGone(id=action.id, confirmed=False) for action in held))
    found = reason(bench, "b")
    assert (found.denied, found.by) == (Denied.WITHHELD, (EngineId(PipelineId("a"), 0),))


def test_an_engine_of_the_plan_that_is_not_awake_says_what_it_waits_for() -> None:
    bench = contended()
    bench.open("a")
    bench.hold = lambda action: isinstance(action, do.Drain | do.Pause)
    bench.open("b")
    waiting = [each for each in bench.scheduler.explain(PipelineId("b")).engines if each.waits is not None]
    assert [(each.given, each.waits, each.by) for each in waiting] == [
        (Given.FIRST_ENGINE, Wait.GPUS, (EngineId(PipelineId("a"), each.engine.rank),)) for each in waiting
    ]
    assert waiting


def test_the_starting_limit_the_model_and_its_own_pause_are_waited_for() -> None:
    bench = one()
    a = bench.record("a")
    bench.hold = lambda action: isinstance(action, do.StartGroup)
    for engine in a.engines.values():
        engine.state = EngineState.COLD
    rules = replace(bench.scheduler.box.rules, max_starting=1)
    limited = Scheduler(replace(bench.scheduler.box, rules=rules), 0.0)
    for gpu in limited.leases.gpus:
        limited.leases.clear(gpu)
    record = limited.pipelines[PipelineId("a")]
    record.model_ready, record.rollouts[0] = True, Rollout(0, 64, 0.0)
    limited.handle(ev.Tick(), 0.0)
    assert [each.waits for each in limited.explain(PipelineId("a")).engines] == [None, Wait.STARTING_LIMIT]
    for state, ready, expected in (
        (EngineState.PAUSED, True, Wait.CHANGING), (EngineState.PAUSING, True, Wait.PAUSING), (EngineState.COLD, False, Wait.MODEL),
    ):  # fmt: skip
        for engine in record.engines.values():
            engine.state = EngineState.PAUSED
        limited.leases.release(EngineId(PipelineId("a"), 0))
        record.engines[1].state, record.model_ready = state, ready
        assert limited.explain(PipelineId("a")).engines[1].waits is expected
        limited.leases.grant([GpuId(0)], EngineId(PipelineId("a"), 0), Priority.ROLLOUT, FIRST)


def _explained(scheduler: Scheduler) -> Iterator[EngineReason]:
    for pipeline in scheduler.pipelines:
        found = scheduler.explain(pipeline)
        assert {each.engine for each in found.engines if each.given is not None} == {
            id for id in scheduler.wanted if id.pipeline == pipeline
        }
        for each in found.engines:
            assert (each.given is None) != (each.denied is None), each
            assert each.awake is scheduler.engine(each.engine).awake
            assert each.waits is None or (each.given is not None and not each.awake)
        yield from found.engines


@pytest.mark.parametrize("name", BOXES)
def test_in_a_run_with_faults_everything_has_a_reason_and_asking_changes_nothing(name: str) -> None:
    world = Simulation(BOXES[name](), 7, steps=2, faults=FAULTS)
    handle = world.handle
    counted: dict[object, int] = {}

    def explained(event: ev.Event, now: float) -> list[do.Action]:
        actions = handle(event, now)
        before, deadline = plain(world.scheduler), world.scheduler.deadline
        for each in _explained(world.scheduler):
            counted[each.given or each.denied] = counted.get(each.given or each.denied, 0) + 1
        if world.events % 50 == 0:
            assert plain(world.scheduler) == before
        assert world.scheduler.deadline == deadline
        return actions

    world.handle = explained
    world.run()
    assert counted.get(Denied.CHANGING, 0) <= sum(counted.values()) / 100

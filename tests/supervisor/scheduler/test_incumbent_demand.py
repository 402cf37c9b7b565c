"""Each test would fail on a demand bug of the incumbent scheduler: rollouts that it forgot, hid, counted twice or pinned to GPUs."""

import pytest

from engines.lifecycle.state import EngineState
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.planning.planner import Bundle, Share, View, plan
from tests.harness.scheduler_bench import FIRST, Bench, spec
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import Progress, RolloutProgress
from trainers.protocol.ids import GatewayId, GpuId, Incarnation, PipelineId, TrainerId


def two() -> Bench:
    """The overlapping pools on which the incumbent hung."""
    return Bench(4, spec("a", [0, 1], [0, 1, 2, 3]), spec("b", [2, 3], [0, 1, 2, 3]))


@pytest.mark.parametrize("name", ["a", "b"])
def test_b13_the_second_rollout_starts_from_nobody_awake_and_no_report(name: str) -> None:
    """Demand is what was opened, not what has been asked of engines that are not there."""
    bench = two()
    bench.open("a")
    bench.open("b")
    for call, each in enumerate(("a", "b")):
        bench.say(each, say.CloseRollout(rollout=0))
        bench.train(each, call)
    bench.lease("a", 5)
    bench.lease("b", 5)  # every GPU trains: nobody is awake
    assert bench.awake("a") == bench.awake("b") == []
    bench.say(name, say.Offloaded(call=5))
    bench.open(name, 1)
    assert bench.awake(name)
    assert say.RolloutOpened(1) in bench.heard[name]
    for _ in range(20):
        bench.later(3.0)
    assert bench.awake(name), "it is still wanted, although nobody has asked for a sample yet"


def test_b13a_who_has_finished_holds_nothing() -> None:
    bench = two()
    bench.open("a")
    bench.say("a", say.CloseRollout(rollout=0))
    bench.die(TrainerId(PipelineId("a")), code=0)
    assert bench.record("a").settled
    assert not any(lease.holder.pipeline == "a" for lease in bench.scheduler.leases.leases)
    bench.open("b")
    assert len(bench.awake("b")) == 4


def test_pr16_1_requests_alone_are_demand_and_a_report_of_nothing_is_not() -> None:
    bench = two()
    bench.feed(progress("a", RolloutProgress(-1, 3, 0, 0, True)))
    assert bench.awake("a"), "a script that only sends requests is served"
    bench.feed(progress("a"))
    assert bench.unfinished("a") == 0, "and forgotten when the gateway has closed its rollout"
    bench.feed(progress("b", RolloutProgress(7, 3, 0, 0)))
    assert bench.unfinished("b") == 0, "nobody has opened that"


def test_0d5fd0a_s12_nemo27_the_first_rollout_needs_no_estimate() -> None:
    bench = two()
    bench.open("a", target=1)
    assert bench.awake("a") == [0], "no sample, no expectation, no report: it is demand all the same"
    assert say.RolloutOpened(0) in bench.heard["a"]


def test_e589866_one_engine_is_enough_to_begin() -> None:
    bench = two()
    bench.hold = lambda action: isinstance(action, do.StartGroup) and action.engine.rank != 0
    bench.open("a")
    assert bench.awake("a") == [0]
    assert say.RolloutOpened(0) in bench.heard["a"]


def test_f8_1_a_rollout_after_the_first_lease_is_served() -> None:
    bench = two()
    bench.train("a", 0, "init")
    bench.open("a")
    assert len(bench.awake("a")) == 4


def test_s12_demand_is_not_counted_twice_while_a_rollout_goes_on() -> None:
    bench = two()
    bench.open("a", target=100)
    seen = [bench.unfinished("a")]
    for done in (0, 40, 100):
        bench.progress("a", done, target=100)
        seen.append(bench.unfinished("a"))
    assert seen == [100, 100, 60, 0]
    bench.feed(progress("a", RolloutProgress(0, 5, 5, 100)))
    assert bench.unfinished("a") == 10, "never nothing while a request waits or runs"


def test_units_the_unit_of_demand_is_the_sample() -> None:
    """Two with as many samples have the same share, however these are grouped: 16 prompts of 8 are 128."""
    gpus = frozenset(map(GpuId, range(4)))
    bundles = tuple(Bundle(rank, frozenset([GpuId(rank)]), awake=False) for rank in range(4))
    shares = tuple(Share(PipelineId(name), 16 * 8, 8, 0.0, bundles) for name in "ab")
    for targets in ("proportional", "oldest-first"):
        wanted = plan(View(gpus, shares, targets))
        assert [sum(id.pipeline == name for id in wanted) for name in "ab"] == [2, 2]


def test_d455b0c_who_lost_every_engine_to_an_initialization_comes_back() -> None:
    bench = Bench(2, spec("a", [0], [0, 1]), spec("b", [0, 1], [0, 1]))
    bench.open("a")
    bench.lease("b", 0, "init")
    assert bench.awake("a") == []
    bench.say("b", say.Offloaded(call=0))
    assert bench.awake("a") == [0, 1], "with no report and no request between"


def test_nemo32_and_again_after_every_preemption() -> None:
    bench = Bench(2, spec("a", [0], [0, 1]), spec("b", [0, 1], [0, 1]))
    bench.open("a")
    for call in range(4):
        bench.lease("b", call)
        assert bench.awake("a") == []
        bench.say("b", say.Offloaded(call=call))
        assert bench.awake("a") == [0, 1]


def test_f9_what_one_report_said_wrong_the_next_says_right() -> None:
    """A report is the whole picture: one that is lost costs nothing once the next has come."""
    bench = two()
    bench.open("a", target=100)
    bench.feed(progress("a", RolloutProgress(0, 0, 0, 96)))
    assert bench.unfinished("a") == 4
    bench.progress("a", 20, target=100)
    assert bench.unfinished("a") == 80


def test_f9_a_dead_gateway_forgets_nothing_that_was_opened() -> None:
    bench = two()
    bench.open("a", target=100)
    bench.progress("a", 60, target=100)
    bench.done.clear()
    bench.die(GatewayId(PipelineId("a")))
    assert bench.unfinished("a") == 40
    opened = [action for action in bench.done if isinstance(action, do.OpenAtGateway)]
    assert [(action.rollout, action.target) for action in opened] == [(0, 40)]
    kinds = [type(action) for action in bench.done]
    assert kinds.index(do.StopGroup) < kinds.index(do.StartGateway) < kinds.index(do.Route)
    assert len(bench.told("a", say.RolloutOpened)) == 1, "told once"


def test_f9_hooks_a_trainer_that_dies_without_closing_leaves_no_demand_behind() -> None:
    bench = two()
    bench.open("a")
    bench.open("b")
    bench.hold = lambda action: isinstance(action, do.StartTrainer)
    bench.done.clear()
    bench.die(TrainerId(PipelineId("a")))
    assert bench.unfinished("a") == 0
    forgets = [index for index, action in enumerate(bench.done) if isinstance(action, do.ForgetAtGateway)]
    starts = [index for index, action in enumerate(bench.done) if isinstance(action, do.StartTrainer)]
    assert forgets
    assert starts
    assert forgets[0] < starts[0], "nothing of the past life may reach the next"
    assert len(bench.awake("b")) == 4


def test_a_quiet_rollout_keeps_one_engine_and_no_more() -> None:
    """A client that thinks for minutes between two requests holds as little as can be, and is not forgotten."""
    bench = Bench(4, spec("a", [0], [0, 1, 2, 3]), spec("b", [1], [0, 1, 2, 3]))
    bench.open("a")
    bench.later(61.0)
    assert bench.unfinished("a") == 1
    bench.open("b")
    assert len(bench.awake("a")) == 1
    assert len(bench.awake("b")) == 3
    bench.progress("a", 0)
    assert bench.unfinished("a") == 640


def test_a_rollout_is_opened_when_its_gateway_has_it_and_an_engine_is_routed() -> None:
    bench = two()
    bench.hold = lambda action: isinstance(action, do.OpenAtGateway)
    bench.open("a")
    assert bench.awake("a")
    assert not bench.told("a", say.RolloutOpened)
    bench.release()
    assert len(bench.told("a", say.RolloutOpened)) == 1
    bench.hold = lambda action: isinstance(action, do.Route)
    bench.open("b")
    assert not bench.told("b", say.RolloutOpened)
    bench.release()
    assert len(bench.told("b", say.RolloutOpened)) == 1


def test_engines_that_stay_awake_between_rollouts_are_not_woken_again() -> None:
    bench = two()
    bench.open("a")
    bench.say("a", say.CloseRollout(rollout=0))
    bench.done.clear()
    bench.open("a", 1)
    assert not [action for action in bench.done if isinstance(action, do.Pause | do.Wake | do.StartGroup | do.LoadWeights)]
    assert all(engine.state is EngineState.SERVING for engine in bench.record("a").engines.values())


def progress(name: str, *rollouts: RolloutProgress) -> ev.Event:
    return ev.GatewaySaid(pipeline=PipelineId(name), incarnation=FIRST, progress=Progress(rollouts))


def test_demand_that_is_told_before_its_gateway_is_ready_counts() -> None:
    """A gateway reports a change once. Its first figures may overtake the news that it is ready, which comes by way of its process."""
    bench = Bench(1, spec("a", [0], [0]))
    bench.hold = lambda action: isinstance(action, do.StartGateway)
    bench.die(GatewayId(PipelineId("a")))
    bench.wait(5.0)
    assert [type(action) for action in bench.held] == [do.StartGateway]
    bench.feed(ev.GatewaySaid(pipeline=PipelineId("a"), incarnation=Incarnation(2), progress=Progress((implicit(8),))))
    bench.release()
    bench.wait(60.0)
    assert bench.awake("a") == [0]


def implicit(waiting: int) -> RolloutProgress:
    return RolloutProgress(-1, waiting, 0, 0, implicit=True)


def test_figures_of_a_gateway_that_dies_before_it_is_ready_go_with_it() -> None:
    bench = Bench(1, spec("a", [0], [0]))
    bench.hold = lambda action: isinstance(action, do.StartGateway)
    bench.die(GatewayId(PipelineId("a")))
    bench.feed(ev.GatewaySaid(pipeline=PipelineId("a"), incarnation=Incarnation(2), progress=Progress((implicit(8),))))
    assert bench.unfinished("a") == 8
    bench.die(GatewayId(PipelineId("a")), life=2)
    assert bench.unfinished("a") == 0


def test_the_last_figures_of_plain_requests_count_though_the_trainer_has_ended() -> None:
    """A script that only sends requests may exit at once after its last answer, before its gateway has reported it."""
    bench = Bench(1, spec("a", [0], [0]))
    bench.hold = lambda action: isinstance(action, do.ForgetAtGateway | do.StopGroup)
    bench.feed(ev.GatewaySaid(pipeline=PipelineId("a"), incarnation=FIRST, progress=Progress((implicit(32),))))
    bench.feed(ev.MemberExited(group=TrainerId(PipelineId("a")), incarnation=FIRST, member=0, code=0))
    last = RolloutProgress(-1, 0, 0, 32, implicit=True)
    bench.feed(ev.GatewaySaid(pipeline=PipelineId("a"), incarnation=FIRST, progress=Progress((last,))))
    bench.feed(ev.GatewaySaid(pipeline=PipelineId("a"), incarnation=FIRST, progress=Progress(())))
    bench.release()
    pipeline = bench.scheduler.pipelines[PipelineId("a")]
    assert (pipeline.figures.samples, dict(pipeline.rollouts)) == (32, {})

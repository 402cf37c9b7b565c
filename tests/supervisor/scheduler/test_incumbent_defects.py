"""Each test would fail on one of sixteen defects, RB-D1 to RB-D16, that the incumbent scheduler was seen to have."""

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.planning.planner import Bundle, Share, View, plan
from supervisor.scheduler.planning.reservations import Request, reserve
from supervisor.scheduler.records import TrainerState
from supervisor.scheduler.spec import Priority
from tests.harness.checked_scheduler import well
from tests.harness.scheduler_bench import FIRST, Bench, spec
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GpuId, PipelineId


def test_d1_a_release_is_told_when_the_engines_have_left_not_before() -> None:
    bench = Bench(2, spec("a", [0, 1], [0, 1]), spec("b", [0, 1], [0, 1]))
    bench.open("a")
    bench.hold = lambda action: isinstance(action, do.Pause)
    bench.lease("b")
    assert not bench.granted("b")
    bench.hold = lambda action: isinstance(action, do.Measure)
    bench.feed(*(well(action) for action in bench.held))
    assert not bench.granted("b"), "asked to pause is not left"
    bench.release()
    bench.feed(ev.Tick())
    assert bench.granted("b")


def test_d2_a_training_that_cannot_be_granted_yet_pauses_nobody() -> None:
    bench = Bench(3, spec("a", [0, 1], [0, 1]), spec("b", [1, 2], [1, 2]), spec("c", [2], [2]))
    bench.lease("a")
    bench.open("c")
    assert bench.awake("c") == [0]
    before = len(bench.done)
    bench.lease("b")  # needs GPU 1, on which a trains
    for _ in range(5):
        bench.later(1.0)
    assert bench.awake("c") == [0]
    assert not any(isinstance(action, do.Pause | do.Drain) for action in bench.done[before:])


def test_d3_a_request_for_an_unknown_role_is_refused_and_harms_nobody() -> None:
    bench = Bench(2, spec("a", [0], [0]), spec("b", [1], [1]))
    bench.lease("a", 0, "no such role")
    assert bench.refused("a") == ["unknown_role"]
    bench.lease("b")
    assert bench.granted("b")


def test_d4_a_refused_exchange_has_released_nothing() -> None:
    bench = Bench(2, spec("a", [0], [0], critic=[1]), spec("b", [1], [1]))
    bench.lease("b")
    bench.lease("a")
    bench.say("a", say.ExchangeLease(call=1, roles=("critic",)))
    assert bench.refused("a") == ["would_wait"]
    assert [lease.gpu for lease in bench.scheduler.leases.leases if lease.holder.pipeline == "a"] == [0]


def test_d5_who_has_no_demand_pins_no_gpu() -> None:
    bench = Bench(4, spec("a", [0], [0, 1, 2, 3]), spec("b", [1], [0, 1, 2, 3]))
    bench.open("a")
    bench.say("a", say.CloseRollout(rollout=0))
    assert len(bench.awake("a")) == 4, "nobody wants them: they stay awake"
    bench.open("b")
    assert len(bench.awake("b")) == 4


def test_d6_a_hung_pause_delays_nobody_whose_gpus_are_free_and_ends_as_a_failure() -> None:
    bench = Bench(3, spec("a", [0], [0]), spec("b", [0], [1]), spec("c", [1], [1, 2]))
    bench.open("a")
    bench.hold = lambda action: isinstance(action, do.Pause)
    bench.lease("b")  # a's engine must leave GPU 0, and hangs
    bench.open("c")
    assert bench.awake("c") == [0, 1]
    bench.later(200.0)
    bench.release()
    for _ in range(3):
        bench.later(5.0)
    assert bench.granted("b")


def test_d7_a_rollout_that_cannot_be_served_stops_no_rebalancing() -> None:
    bench = Bench(4, spec("a", [0], [0, 1, 2]), spec("b", [1], [0, 1, 2]), spec("stale", [3], [3]), spec("t", [3], [3]))
    bench.lease("t")
    bench.open("stale")  # its only engine is where t trains
    bench.open("a")
    bench.open("b")
    assert len(bench.awake("b")) == 1
    bench.progress("a", 636)
    assert len(bench.awake("b")) == 2, "a's tail fills one engine only"


def test_d8_an_engine_that_wakes_late_holds_nothing_for_a_pipeline_that_ended() -> None:
    bench = Bench(1, spec("a", [0], [0]), spec("b", [0], [0]))
    bench.hold = lambda action: isinstance(action, do.Wake | do.StartGroup)
    bench.open("a")
    bench.feed(ev.OperatorAsked(verb="stop", pipeline=PipelineId("a")))
    bench.release()
    assert bench.scheduler.leases.leases == []
    bench.open("b")
    assert bench.awake("b") == [0]


def test_d9_a_wide_training_is_not_overtaken_by_narrow_ones_for_ever() -> None:
    def request(name: str, gpus: list[int], since: float, priority: Priority = Priority.ACTOR_TRAINING) -> Request:
        return Request(PipelineId(name), 0, ("train",), tuple(map(GpuId, gpus)), priority, since)

    wide, narrow = request("wide", [0, 1, 2, 3], 1.0), request("narrow", [2], 2.0)
    held = frozenset({GpuId(0)})
    found = reserve([narrow, wide], held, lambda _: False, 3.0, 60.0)
    assert found.reserved == ()
    assert found.blocked == frozenset(), "engines may go on meanwhile: nobody is paused in vain"
    assert reserve([narrow, wide], frozenset(), lambda _: False, 3.0, 60.0).reserved == (wide,)
    higher = request("higher", [2], 2.0, Priority.INITIALIZATION)
    assert reserve([higher, wide], frozenset(), lambda _: False, 3.0, 60.0).reserved == (higher,)
    assert reserve([request("late", [2], 119.0, Priority.INITIALIZATION), wide], frozenset(), lambda _: False, 121.0, 60.0).reserved == (
        wide,
    )
    assert reserve([narrow, wide], frozenset(), lambda gpu: gpu == 3, 3.0, 60.0).reserved == (narrow,), (
        "what needs a fenced GPU reserves nothing"
    )


def test_d10_a_failed_pause_is_the_failure_of_one_group() -> None:
    bench = Bench(2, spec("a", [0], [0]), spec("b", [0], [1]))
    bench.open("a")
    bench.hold = lambda action: isinstance(action, do.Pause)
    bench.lease("b")
    pause = bench.held.pop()
    bench.hold = lambda _: False
    bench.feed(ev.ActionFailed(id=pause.id, reason="the engine answered 500"))
    assert bench.granted("b")
    trainers = [pipeline.trainer.state for pipeline in bench.scheduler.pipelines.values()]
    assert trainers == [TrainerState.RUNNING] * 2
    assert bench.scheduler.engine(EngineId(PipelineId("a"), 0)).restarts == 1


def bundles(gpus: list[int], tp: int = 1, awake: tuple[int, ...] = ()) -> tuple[Bundle, ...]:
    return tuple(Bundle(r, frozenset(map(GpuId, gpus[r * tp : r * tp + tp])), r in awake) for r in range(len(gpus) // tp))


def test_d11_no_number_of_engines_is_too_many() -> None:
    every = list(range(1024))
    shares = tuple(Share(PipelineId(f"p{i}"), 10_000, 8, 0.0, bundles(every)) for i in range(8))
    assert len(plan(View(frozenset(map(GpuId, every)), shares))) == 1024


def test_d12_no_usable_gpu_stays_idle() -> None:
    four = frozenset(map(GpuId, range(4)))
    three = tuple(Share(PipelineId(name), 100, 8, 0.0, bundles([0, 1, 2, 3])) for name in "abc")
    assert len(plan(View(four, three))) == 4, "rounding"
    eight = frozenset(map(GpuId, range(8)))
    capped = (Share(PipelineId("a"), 100, 8, 0.0, bundles([0, 1])), Share(PipelineId("b"), 100, 8, 0.0, bundles(list(range(8)))))
    assert len(plan(View(eight, capped))) == 8, "mappings"
    mixed = (Share(PipelineId("a"), 100, 8, 0.0, bundles(list(range(8)), 4)), Share(PipelineId("b"), 100, 8, 0.0, bundles(list(range(8)))))
    used = {gpu for id in plan(View(eight, mixed)) for s in mixed if s.pipeline == id.pipeline for gpu in s.bundles[id.rank].gpus}
    assert used == eight, "packing"
    finished = (Share(PipelineId("a"), 0, 8, 0.0, bundles([0], 1, (0,))), Share(PipelineId("b"), 8, 8, 0.0, bundles([0])))
    assert plan(View(four, finished)) == {EngineId(PipelineId("b"), 0)}


def test_d13_a_second_request_while_one_holds_a_lease_is_answered() -> None:
    bench = Bench(1, spec("a", [0], [0]))
    bench.lease("a")
    bench.lease("a", 1)
    assert bench.refused("a") == ["nested_lease"]


def test_d14_samples_that_start_again_do_not_undo_progress() -> None:
    bench = Bench(1, spec("a", [0], [0]))
    bench.open("a", target=100)
    bench.progress("a", 90, target=100)
    report = RolloutProgress(0, 10, 0, 90)  # all that ran were drained and wait again
    bench.feed(ev.GatewaySaid(pipeline=PipelineId("a"), incarnation=FIRST, progress=Progress((report,))))
    assert bench.scheduler.pipelines[PipelineId("a")].unfinished(bench.now, 60.0) == 10


def test_d15_a_late_report_of_a_closed_rollout_is_no_demand() -> None:
    bench = Bench(1, spec("a", [0], [0]))
    bench.open("a")
    bench.say("a", say.CloseRollout(rollout=0))
    bench.progress("a", 5)
    assert bench.scheduler.pipelines[PipelineId("a")].unfinished(bench.now, 60.0) == 0


def test_d16_leaving_a_lease_that_is_gone_changes_nothing() -> None:
    bench = Bench(1, spec("a", [0], [0]))
    bench.lease("a")
    bench.say("a", say.Offloaded(call=0))
    bench.say("a", say.Offloaded(call=0))
    bench.say("a", say.Offloaded(call=7))
    assert bench.scheduler.pipelines[PipelineId("a")].trainer.state is TrainerState.RUNNING
    bench.lease("a", 1)
    assert sum(isinstance(message, say.LeaseGranted) for message in bench.heard["a"]) == 2

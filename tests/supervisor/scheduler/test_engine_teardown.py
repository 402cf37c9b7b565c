"""How groups end: what is withheld until they are seen gone, the deadlines of it, and that each failure is told twice."""

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.lifecycle.state import EngineState
from supervisor.observe.status import Snapshot
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.groups.faults import Cause
from supervisor.views.metrics import Metrics
from tests.supervisor.scheduler.test_engines import ENGINE, LIFE, LIMITS, P1, Desk, serving
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import EngineLoad, Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GpuId, TrainerId, Version

GPU = GpuId(0)
FAR = 4 * (LIMITS.end + LIMITS.release)


def unended(note: str = "pid 7 does not end", pids: tuple[int, ...] = ()) -> Callable[[do.Action], ev.Event | None]:
    """No engine's processes can be ended."""
    return lambda action: (
        ev.GroupGone(id=action.id, confirmed=False, note=note, pids=pids)
        if isinstance(action, do.StopGroup) and isinstance(action.group, EngineId)
        else None
    )


def held(note: str = "4 MiB", strangers: tuple[GpuId, ...] = ()) -> Callable[[do.Action], ev.Event | None]:
    """Engine 0's GPU is not empty, whoever asks."""
    return lambda action: (
        ev.GpuHeld(id=action.id, gpus=(GPU,), note=note, strangers=strangers)
        if isinstance(action, do.Measure) and GPU in action.gpus and not isinstance(action.holder, TrainerId)
        else None
    )


def granted(desk: Desk, call: int) -> bool:
    return any(isinstance(action, do.TellTrainer) and action.message == say.LeaseGranted(call, ("train",)) for action in desk.done)


def asleep() -> Desk:
    """Engine 0 has given way to a training that is over: nobody has its GPU."""
    desk = training()
    desk.say(say.Offloaded(1))
    assert desk.scheduler.desk.leases.is_free(GPU)
    return desk


def training() -> Desk:
    """Engine 0 sleeps, its GPU is the trainer's."""
    desk = serving()
    desk.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert granted(desk, 1)
    assert desk.engine().state is EngineState.PAUSED
    return desk


# -- what is withheld


def test_f6_one_that_died_asleep_and_is_stuck_withholds_its_free_gpu() -> None:
    desk = asleep()
    desk.rule = unended()
    desk.die()
    assert desk.engine().state is EngineState.STUCK
    assert desk.scheduler.desk.leases.fenced(GPU) == "p1/engine/0 is stuck: pid 7 does not end"
    desk.say(say.RequestLease(2, ("train",)))
    desk.wait(FAR)
    assert not granted(desk, 2)
    desk.rule = lambda action: None
    desk.wait(2 * LIMITS.remeasure)
    assert granted(desk, 2)


def test_f6_one_that_died_asleep_and_is_stuck_withholds_a_gpu_that_is_lent_out_when_it_comes_back() -> None:
    desk = training()
    desk.rule = unended()
    desk.die()
    assert desk.engine().state is EngineState.STUCK
    lease = desk.scheduler.desk.leases.lease(GPU)
    assert lease is not None, "who has it keeps it"
    assert lease.holder == TrainerId(P1)
    desk.say(say.Offloaded(1), say.RequestLease(2, ("train",)))
    desk.wait(FAR)
    assert desk.scheduler.desk.leases.lease(GPU) is None
    assert not granted(desk, 2)
    desk.rule = lambda action: None
    desk.wait(2 * LIMITS.remeasure)
    assert granted(desk, 2)


def test_f5_the_gpu_of_one_that_died_asleep_is_measured_before_anybody_has_it() -> None:
    desk = asleep()
    desk.rule = held()
    desk.done.clear()
    desk.die()
    assert [type(action) for action in desk.done][:3] == [do.Lost, do.StopGroup, do.Measure]
    assert desk.engine().state is EngineState.STUCK
    desk.say(say.RequestLease(2, ("train",)))
    desk.wait(60.0)
    assert not granted(desk, 2)
    desk.rule = lambda action: None
    desk.wait(2 * LIMITS.remeasure)
    assert granted(desk, 2)


def test_f5_nobody_has_it_while_it_is_measured() -> None:
    desk = asleep()
    desk.deaf = (do.Measure,)
    desk.die()
    desk.say(say.RequestLease(2, ("train",)))
    assert not granted(desk, 2)
    assert desk.engine().state is EngineState.QUARANTINED
    measured = next(action for action in reversed(desk.done) if isinstance(action, do.Measure))
    assert (measured.holder, measured.gpus) == (ENGINE, (GPU,))
    desk.feed(ev.GpuFree(id=measured.id))
    assert granted(desk, 2)


@pytest.mark.parametrize("first", ["ends", "stuck"])
def test_f5_what_others_hold_on_a_lent_gpu_is_not_taken_for_the_dead_ones(first: str) -> None:
    desk = training()
    desk.rule = held("the trainer's")
    desk.done.clear()
    if first == "stuck":
        desk.rule = unended()
    desk.die()
    if first == "stuck":
        assert desk.engine().state is EngineState.STUCK
        desk.rule = held("the trainer's")
        desk.wait(2 * LIMITS.remeasure)
    assert not [action for action in desk.done if isinstance(action, do.Measure) and action.holder == ENGINE]
    assert desk.engine().state is EngineState.COLD


def test_a_drained_one_that_does_not_end_is_withheld_too() -> None:
    desk = asleep()
    desk.rule = unended()
    desk.feed(ev.OperatorAsked(verb="drain", pipeline=P1, rank=0))
    assert desk.engine().state is EngineState.STUCK
    desk.say(say.RequestLease(2, ("train",)))
    desk.wait(60.0)
    assert not granted(desk, 2)


# -- deadlines of the recovery's own steps


@pytest.mark.parametrize(("deaf", "limit"), [(do.StopGroup, LIMITS.end + LIMITS.release), (do.Measure, LIMITS.release + LIMITS.order)])
def test_f6_an_end_that_nobody_answers_is_stuck_at_its_deadline_and_asked_for_again(deaf: type, limit: float) -> None:
    desk = serving()
    desk.deaf = (deaf,)
    desk.die()
    assert desk.engine().state is EngineState.QUARANTINED
    desk.wait(limit - 1)
    assert desk.engine().state is EngineState.QUARANTINED
    desk.wait(2)
    assert desk.engine().state is EngineState.STUCK
    assert desk.engine().note == "no answer within its deadline"
    desk.deaf = ()
    desk.wait(limit + LIMITS.remeasure)
    assert desk.engine().state is EngineState.SERVING


def test_f12_a_pause_whose_measurement_nobody_answers_has_failed_at_its_deadline() -> None:
    desk = serving()
    desk.deaf = (do.Measure,)
    desk.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert desk.engine().state is EngineState.PAUSING
    desk.wait(LIMITS.release + LIMITS.order + 1)
    assert desk.asked(do.StopGroup)[0].kill
    assert not granted(desk, 1)


# -- each failure is told twice


def words(desk: Desk) -> list[str]:
    """Of engine 0, in order."""
    return [word for word, fault in desk.turns if fault.engine == ENGINE]


def test_the_collateral_is_known_before_anything_is_ready() -> None:
    desk = Desk()
    desk.deaf = (do.StartGroup,)
    desk.open()
    assert desk.engine().state is EngineState.STARTING
    desk.die(member=1)
    fault = desk.engine().fault
    assert fault is not None
    assert fault.collateral == (0, 2, 3)


def test_a_stop_while_it_waits_to_be_started_again_ends_the_failure() -> None:
    desk = serving()
    desk.die()
    desk.die()
    assert desk.engine().state is EngineState.COLD
    assert words(desk) == ["failed", "routed", "failed"]
    desk.feed(ev.Stop(level=1))
    desk.wait(60.0)
    assert words(desk) == ["failed", "routed", "failed", "stopped"]
    assert desk.faults[-1].outcome == "stopped"
    assert desk.scheduler.finished


def test_a_stop_while_it_is_started_again_ends_the_failure() -> None:
    desk = serving()
    desk.deaf = (do.StartGroup,)
    desk.die()
    assert desk.engine().state is EngineState.STARTING
    desk.feed(ev.Stop(level=1))
    desk.wait(60.0)
    assert words(desk) == ["failed", "stopped"]


def test_a_stop_while_it_is_killed_ends_the_failure_and_costs_no_restart() -> None:
    desk = serving()
    desk.deaf = (do.StopGroup,)
    desk.die()
    desk.feed(ev.Stop(level=1))
    assert words(desk) == ["failed"]
    asked = desk.asked(do.StopGroup)[-1]
    desk.deaf = ()
    desk.feed(ev.GroupGone(id=asked.id, confirmed=True))
    desk.wait(60.0)
    assert words(desk) == ["failed", "stopped"]
    assert desk.engine().restarts == 0


def test_one_that_is_stuck_at_the_end_of_the_run_is_told_as_that() -> None:
    desk = serving()
    desk.rule = unended()
    desk.die()
    desk.feed(ev.Stop(level=1))
    desk.wait(60.0)
    assert words(desk) == ["failed", "stuck"]
    assert desk.scheduler.finished
    for rank in (0, 1):
        assert desk.engine(rank).state is EngineState.STUCK
        assert desk.engine(rank).fault is None


def test_one_that_nobody_wants_by_then_is_well_when_it_sleeps() -> None:
    desk = serving()
    desk.deaf = (do.StartGroup,)
    desk.die()
    start = desk.asked(do.StartGroup)[-1]
    desk.deaf = ()
    desk.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    desk.feed(ev.GroupReady(id=start.id, version=Version(0)))
    assert desk.engine().state is EngineState.PAUSED
    assert words(desk) == ["failed", "asleep"]
    assert desk.faults[-1].seconds.keys() == {"unrouted", "gone", "empty", "started", "ready", "asleep"}


@pytest.mark.parametrize("what", ["processes", "no answer"])
def test_a_gentle_end_that_is_not_confirmed_is_a_failure(what: str) -> None:
    desk = serving()
    if what == "no answer":
        desk.deaf = (do.StopGroup,)
    else:
        desk.rule = unended()
    desk.feed(ev.OperatorAsked(verb="drain", pipeline=P1, rank=0))
    desk.wait(LIMITS.end + LIMITS.release + 1)
    engine = desk.engine()
    assert engine.state is EngineState.STUCK
    assert words(desk) == ["failed"]
    assert engine.fault is not None
    assert engine.fault.cause is Cause.ACTION
    desk.rule, desk.deaf = (lambda action: None), ()
    desk.wait(FAR)
    assert engine.state is EngineState.COLD
    assert engine.restarts == 1
    desk.feed(ev.OperatorAsked(verb="resume", pipeline=P1, rank=0))
    assert engine.state is EngineState.SERVING
    assert words(desk) == ["failed", "routed"]


def test_memory_that_stays_after_a_gentle_end_is_a_failure_of_that_cause() -> None:
    desk = asleep()
    desk.rule = held()
    desk.feed(ev.OperatorAsked(verb="drain", pipeline=P1, rank=0))
    assert desk.engine().state is EngineState.STUCK
    assert words(desk) == ["failed"]
    fault = desk.engine().fault
    assert fault is not None
    assert fault.cause is Cause.MEMORY


# -- the record says what is


def test_of_a_stuck_one_those_pids_are_shown_that_do_not_end_and_nothing_runs_on_it() -> None:
    desk = serving()
    load = EngineLoad(0, 1, 8, 5, 2, 40)
    report = ev.GatewaySaid(pipeline=P1, incarnation=LIFE, progress=Progress((RolloutProgress(0, 8, 8, 0),), (load,)))
    desk.feed(report)
    assert desk.engine().in_flight == 8
    desk.rule = unended(pids=(12,))
    desk.deaf = (do.Lost,)
    desk.die()
    desk.feed(report)  # it was on its way
    assert desk.engine().state is EngineState.STUCK
    assert desk.engine().pids == (12,)
    assert desk.engine().in_flight == 0


def test_a_failure_is_counted_when_it_happens_and_its_recovery_when_it_is_over() -> None:
    desk = serving()
    metrics = Metrics()

    def look() -> dict[str, float]:
        page = metrics.page(desk.scheduler, Snapshot(run="r", started_at=0.0, uptime_s=0.0), 0.0).decode()
        return {sample.name: sample.value for family in text_string_to_metric_families(page) for sample in family.samples}

    handle = desk.scheduler.handle

    def told(event: ev.Event, now: float) -> list[do.Action]:
        actions = handle(event, now)
        metrics.observe(event, actions, desk.scheduler, now)
        return actions

    desk.scheduler.handle = told  # type: ignore[method-assign]
    desk.rule = unended()
    desk.feed(ev.ProbeFailed(group=ENGINE, incarnation=LIFE, reason="silent", silent_for=40.0))
    assert desk.engine().state is EngineState.STUCK
    found = look()
    assert found["trainshed_engine_failures_total"] == 1
    assert found["trainshed_engine_detection_seconds_sum"] == 40.0
    assert "trainshed_engine_recovery_seconds_count" not in found
    desk.rule = lambda action: None
    desk.wait(2 * LIMITS.remeasure)
    found = look()
    assert found["trainshed_engine_failures_total"] == 1
    assert found["trainshed_engine_detection_seconds_count"] == 1
    assert found["trainshed_engine_recovery_seconds_count"] == 1


# -- memory of strangers


def test_r18_a_strangers_memory_fails_nobody_and_fences_the_gpu() -> None:
    desk = serving()
    desk.rule = held("200 MiB not of our groups", strangers=(GPU,))
    desk.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    engine = desk.engine()
    assert (engine.state, engine.incarnation, engine.restarts) == (EngineState.PAUSED, LIFE, 0)
    assert words(desk) == []
    assert desk.scheduler.desk.leases.fences == {GPU: "held by something that is not ours: 200 MiB not of our groups"}
    desk.wait(600.0)
    assert not granted(desk, 1)
    desk.rule = lambda action: None
    desk.wait(2 * LIMITS.remeasure)
    assert granted(desk, 1)


def test_r18_beside_memory_that_may_be_its_own_it_fails_all_the_same() -> None:
    desk = serving()
    desk.rule = held("200 MiB, whosever", strangers=())
    desk.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert words(desk)[:1] == ["failed"]


def test_r18_a_strangers_memory_makes_no_dead_group_stuck() -> None:
    desk = serving()
    desk.rule = held("200 MiB not of our groups", strangers=(GPU,))
    desk.die()
    assert desk.engine().state is EngineState.COLD
    assert GPU in desk.scheduler.desk.leases.fences
    desk.rule = lambda action: None
    desk.wait(2 * LIMITS.remeasure)
    assert desk.engine().state is EngineState.SERVING
    assert words(desk) == ["failed", "routed"]


def test_r18_a_strangers_memory_is_no_fault_of_the_trainer_that_leaves() -> None:
    """Its lease is over, and nobody gets the GPU before it is empty."""
    desk = serving()
    desk.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert granted(desk, 1)
    answer = {"gpus": (GPU,), "note": "200 MiB not of our groups", "strangers": (GPU,)}
    desk.rule = lambda action: ev.GpuHeld(id=action.id, **answer) if isinstance(action, do.Measure) else None  # type: ignore[arg-type]
    desk.say(say.Offloaded(1))
    trainer = desk.scheduler.desk.fleet.pipelines[P1].trainer
    assert (trainer.grant, trainer.restarts, trainer.note) == (None, 0, "")
    assert [action.message for action in desk.done if isinstance(action, do.TellTrainer)][-1] == say.LeaseEnded(1)
    assert GPU in desk.scheduler.desk.leases.fences
    desk.open(number=1)
    desk.wait(600.0)
    assert desk.engine().state is not EngineState.SERVING
    desk.rule = lambda action: None
    desk.wait(2 * LIMITS.remeasure)
    assert desk.engine().state is EngineState.SERVING

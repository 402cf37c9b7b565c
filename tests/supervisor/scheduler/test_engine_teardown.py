"""How groups end: what is withheld until they are seen gone, the deadlines of it, and that each failure is told twice."""

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.lifecycle.state import EngineState
from supervisor.observe.status import Status
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.faults import Cause
from supervisor.views.metrics import Metrics
from tests.harness.scheduler_driver import ENGINE, LIFE, LIMITS, P1, Driver, serving
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


def granted(driver: Driver, call: int) -> bool:
    return any(isinstance(action, do.TellTrainer) and action.message == say.LeaseGranted(call, ("train",)) for action in driver.done)


def asleep() -> Driver:
    """Engine 0 has given way to a training that is over: nobody has its GPU."""
    driver = training()
    driver.say(say.Offloaded(1))
    assert driver.scheduler.leases.is_free(GPU)
    return driver


def training() -> Driver:
    """Engine 0 sleeps, its GPU is the trainer's."""
    driver = serving()
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert granted(driver, 1)
    assert driver.engine().state is EngineState.PAUSED
    return driver


# -- what is withheld


def test_f6_one_that_died_asleep_and_is_stuck_withholds_its_free_gpu() -> None:
    driver = asleep()
    driver.rule = unended()
    driver.die()
    assert driver.engine().state is EngineState.STUCK
    assert driver.scheduler.leases.fenced(GPU) == "p1/engine/0 is stuck: pid 7 does not end"
    driver.say(say.RequestLease(2, ("train",)))
    driver.wait(FAR)
    assert not granted(driver, 2)
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    assert granted(driver, 2)


def test_f6_one_that_died_asleep_and_is_stuck_withholds_a_gpu_that_is_lent_out_when_it_comes_back() -> None:
    driver = training()
    driver.rule = unended()
    driver.die()
    assert driver.engine().state is EngineState.STUCK
    lease = driver.scheduler.leases.lease(GPU)
    assert lease is not None, "who has it keeps it"
    assert lease.holder == TrainerId(P1)
    driver.say(say.Offloaded(1), say.RequestLease(2, ("train",)))
    driver.wait(FAR)
    assert driver.scheduler.leases.lease(GPU) is None
    assert not granted(driver, 2)
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    assert granted(driver, 2)


def test_f5_the_gpu_of_one_that_died_asleep_is_measured_before_anybody_has_it() -> None:
    driver = asleep()
    driver.rule = held()
    driver.done.clear()
    driver.die()
    assert [type(action) for action in driver.done][:3] == [do.Lost, do.StopGroup, do.Measure]
    assert driver.engine().state is EngineState.STUCK
    driver.say(say.RequestLease(2, ("train",)))
    driver.wait(60.0)
    assert not granted(driver, 2)
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    assert granted(driver, 2)


def test_f5_nobody_has_it_while_it_is_measured() -> None:
    driver = asleep()
    driver.deaf = (do.Measure,)
    driver.die()
    driver.say(say.RequestLease(2, ("train",)))
    assert not granted(driver, 2)
    assert driver.engine().state is EngineState.QUARANTINED
    measured = next(action for action in reversed(driver.done) if isinstance(action, do.Measure))
    assert (measured.holder, measured.gpus) == (ENGINE, (GPU,))
    driver.feed(ev.GpuFree(id=measured.id))
    assert granted(driver, 2)


@pytest.mark.parametrize("first", ["ends", "stuck"])
def test_f5_what_others_hold_on_a_lent_gpu_is_not_taken_for_the_dead_ones(first: str) -> None:
    driver = training()
    driver.rule = held("the trainer's")
    driver.done.clear()
    if first == "stuck":
        driver.rule = unended()
    driver.die()
    if first == "stuck":
        assert driver.engine().state is EngineState.STUCK
        driver.rule = held("the trainer's")
        driver.wait(2 * LIMITS.remeasure)
    assert not [action for action in driver.done if isinstance(action, do.Measure) and action.holder == ENGINE]
    assert driver.engine().state is EngineState.COLD


def test_a_drained_one_that_does_not_end_is_withheld_too() -> None:
    driver = asleep()
    driver.rule = unended()
    driver.feed(ev.OperatorAsked(verb="drain", pipeline=P1, rank=0))
    assert driver.engine().state is EngineState.STUCK
    driver.say(say.RequestLease(2, ("train",)))
    driver.wait(60.0)
    assert not granted(driver, 2)


# -- deadlines of the recovery's own steps


@pytest.mark.parametrize(("deaf", "limit"), [(do.StopGroup, LIMITS.end + LIMITS.release), (do.Measure, LIMITS.release + LIMITS.order)])
def test_f6_an_end_that_nobody_answers_is_stuck_at_its_deadline_and_asked_for_again(deaf: type, limit: float) -> None:
    driver = serving()
    driver.deaf = (deaf,)
    driver.die()
    assert driver.engine().state is EngineState.QUARANTINED
    driver.wait(limit - 1)
    assert driver.engine().state is EngineState.QUARANTINED
    driver.wait(2)
    assert driver.engine().state is EngineState.STUCK
    assert driver.engine().note == "no answer within its deadline"
    driver.deaf = ()
    driver.wait(limit + LIMITS.remeasure)
    assert driver.engine().state is EngineState.SERVING


def test_f12_a_pause_whose_measurement_nobody_answers_has_failed_at_its_deadline() -> None:
    driver = serving()
    driver.deaf = (do.Measure,)
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert driver.engine().state is EngineState.PAUSING
    driver.wait(LIMITS.release + LIMITS.order + 1)
    assert driver.asked(do.StopGroup)[0].kill
    assert not granted(driver, 1)


# -- each failure is told twice


def words(driver: Driver) -> list[str]:
    """Of engine 0, in order."""
    return [word for word, fault in driver.fault_changes if fault.engine == ENGINE]


def test_the_collateral_is_known_before_anything_is_ready() -> None:
    driver = Driver()
    driver.deaf = (do.StartGroup,)
    driver.open()
    assert driver.engine().state is EngineState.STARTING
    driver.die(member=1)
    fault = driver.engine().fault
    assert fault is not None
    assert fault.collateral == (0, 2, 3)


def test_a_stop_while_it_waits_to_be_started_again_ends_the_failure() -> None:
    driver = serving()
    driver.die()
    driver.die()
    assert driver.engine().state is EngineState.COLD
    assert words(driver) == ["failed", "routed", "failed"]
    driver.feed(ev.Stop(level=1))
    driver.wait(60.0)
    assert words(driver) == ["failed", "routed", "failed", "stopped"]
    assert driver.faults[-1].outcome == "stopped"
    assert driver.scheduler.finished


def test_a_stop_while_it_is_started_again_ends_the_failure() -> None:
    driver = serving()
    driver.deaf = (do.StartGroup,)
    driver.die()
    assert driver.engine().state is EngineState.STARTING
    driver.feed(ev.Stop(level=1))
    driver.wait(60.0)
    assert words(driver) == ["failed", "stopped"]


def test_a_stop_while_it_is_killed_ends_the_failure_and_costs_no_restart() -> None:
    driver = serving()
    driver.deaf = (do.StopGroup,)
    driver.die()
    driver.feed(ev.Stop(level=1))
    assert words(driver) == ["failed"]
    asked = driver.asked(do.StopGroup)[-1]
    driver.deaf = ()
    driver.feed(ev.GroupGone(id=asked.id, confirmed=True))
    driver.wait(60.0)
    assert words(driver) == ["failed", "stopped"]
    assert driver.engine().restarts == 0


def test_one_that_is_stuck_at_the_end_of_the_run_is_told_as_that() -> None:
    driver = serving()
    driver.rule = unended()
    driver.die()
    driver.feed(ev.Stop(level=1))
    driver.wait(60.0)
    assert words(driver) == ["failed", "stuck"]
    assert driver.scheduler.finished
    for rank in (0, 1):
        assert driver.engine(rank).state is EngineState.STUCK
        assert driver.engine(rank).fault is None


def test_one_that_nobody_wants_by_then_is_well_when_it_sleeps() -> None:
    driver = serving()
    driver.deaf = (do.StartGroup,)
    driver.die()
    start = driver.asked(do.StartGroup)[-1]
    driver.deaf = ()
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    driver.feed(ev.GroupReady(id=start.id, version=Version(0)))
    assert driver.engine().state is EngineState.PAUSED
    assert words(driver) == ["failed", "asleep"]
    assert driver.faults[-1].seconds.keys() == {"unrouted", "gone", "empty", "started", "ready", "asleep"}


@pytest.mark.parametrize("what", ["processes", "no answer"])
def test_a_gentle_end_that_is_not_confirmed_is_a_failure(what: str) -> None:
    driver = serving()
    if what == "no answer":
        driver.deaf = (do.StopGroup,)
    else:
        driver.rule = unended()
    driver.feed(ev.OperatorAsked(verb="drain", pipeline=P1, rank=0))
    driver.wait(LIMITS.end + LIMITS.release + 1)
    engine = driver.engine()
    assert engine.state is EngineState.STUCK
    assert words(driver) == ["failed"]
    assert engine.fault is not None
    assert engine.fault.cause is Cause.ACTION
    driver.rule, driver.deaf = (lambda action: None), ()
    driver.wait(FAR)
    assert engine.state is EngineState.COLD
    assert engine.restarts == 1
    driver.feed(ev.OperatorAsked(verb="resume", pipeline=P1, rank=0))
    assert engine.state is EngineState.SERVING
    assert words(driver) == ["failed", "routed"]


def test_memory_that_stays_after_a_gentle_end_is_a_failure_of_that_cause() -> None:
    driver = asleep()
    driver.rule = held()
    driver.feed(ev.OperatorAsked(verb="drain", pipeline=P1, rank=0))
    assert driver.engine().state is EngineState.STUCK
    assert words(driver) == ["failed"]
    fault = driver.engine().fault
    assert fault is not None
    assert fault.cause is Cause.MEMORY


# -- the record says what is


def test_of_a_stuck_one_those_pids_are_shown_that_do_not_end_and_nothing_runs_on_it() -> None:
    driver = serving()
    load = EngineLoad(0, 1, 8, 5, 2, 40)
    report = ev.GatewaySaid(pipeline=P1, incarnation=LIFE, progress=Progress((RolloutProgress(0, 8, 8, 0),), (load,)))
    driver.feed(report)
    assert driver.engine().in_flight == 8
    driver.rule = unended(pids=(12,))
    driver.deaf = (do.Lost,)
    driver.die()
    driver.feed(report)  # it was on its way
    assert driver.engine().state is EngineState.STUCK
    assert driver.engine().pids == (12,)
    assert driver.engine().in_flight == 0


def test_a_failure_is_counted_when_it_happens_and_its_recovery_when_it_is_over() -> None:
    driver = serving()
    metrics = Metrics()

    def look() -> dict[str, float]:
        page = metrics.page(driver.scheduler, Status(run="r", started_at=0.0, uptime_s=0.0), 0.0).decode()
        return {sample.name: sample.value for family in text_string_to_metric_families(page) for sample in family.samples}

    handle = driver.scheduler.handle

    def told(event: ev.Event, now: float) -> list[do.Action]:
        actions = handle(event, now)
        metrics.observe(event, actions, driver.scheduler, now)
        return actions

    driver.scheduler.handle = told  # type: ignore[method-assign]
    driver.rule = unended()
    driver.feed(ev.ProbeFailed(group=ENGINE, incarnation=LIFE, reason="silent", silent_for=40.0))
    assert driver.engine().state is EngineState.STUCK
    found = look()
    assert found["trainshed_engine_failures_total"] == 1
    assert found["trainshed_engine_detection_seconds_sum"] == 40.0
    assert "trainshed_engine_recovery_seconds_count" not in found
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    found = look()
    assert found["trainshed_engine_failures_total"] == 1
    assert found["trainshed_engine_detection_seconds_count"] == 1
    assert found["trainshed_engine_recovery_seconds_count"] == 1


# -- memory of strangers


def test_r18_a_strangers_memory_fails_nobody_and_fences_the_gpu() -> None:
    driver = serving()
    driver.rule = held("200 MiB not of our groups", strangers=(GPU,))
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    engine = driver.engine()
    assert (engine.state, engine.incarnation, engine.restarts) == (EngineState.PAUSED, LIFE, 0)
    assert words(driver) == []
    assert driver.scheduler.leases.fences == {GPU: "held by something that is not ours: 200 MiB not of our groups"}
    driver.wait(600.0)
    assert not granted(driver, 1)
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    assert granted(driver, 1)


def test_r18_beside_memory_that_may_be_its_own_it_fails_all_the_same() -> None:
    driver = serving()
    driver.rule = held("200 MiB, whosever", strangers=())
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert words(driver)[:1] == ["failed"]


def test_r18_a_strangers_memory_makes_no_dead_group_stuck() -> None:
    driver = serving()
    driver.rule = held("200 MiB not of our groups", strangers=(GPU,))
    driver.die()
    assert driver.engine().state is EngineState.COLD
    assert GPU in driver.scheduler.leases.fences
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    assert driver.engine().state is EngineState.SERVING
    assert words(driver) == ["failed", "routed"]


def test_r18_a_strangers_memory_is_no_fault_of_the_trainer_that_leaves() -> None:
    """Its lease is over, and nobody gets the GPU before it is empty."""
    driver = serving()
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert granted(driver, 1)
    answer = {"gpus": (GPU,), "note": "200 MiB not of our groups", "strangers": (GPU,)}
    driver.rule = lambda action: ev.GpuHeld(id=action.id, **answer) if isinstance(action, do.Measure) else None  # type: ignore[arg-type]
    driver.say(say.Offloaded(1))
    trainer = driver.scheduler.pipelines[P1].trainer
    assert (trainer.grant, trainer.restarts, trainer.note) == (None, 0, "")
    assert [action.message for action in driver.done if isinstance(action, do.TellTrainer)][-1] == say.LeaseEnded(1)
    assert GPU in driver.scheduler.leases.fences
    driver.open(number=1)
    driver.wait(600.0)
    assert driver.engine().state is not EngineState.SERVING
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    assert driver.engine().state is EngineState.SERVING

"""What the scheduler does with engine groups that fail, by its events alone. Names f1 to f25 are the failure modes of docs/recovery.md."""

import pytest

from engines.lifecycle.state import TRANSITIONS, EngineState, Transition
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.faults import Cause
from tests.harness.boxes import box, pipeline
from tests.harness.defaults import default_limits, default_rules
from tests.harness.scheduler_driver import ENGINE, LIFE, LIMITS, P1, Driver, serving
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import EngineLoad, Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GpuId, TrainerId, Version


@pytest.mark.parametrize("state", [s for s in EngineState if (s, Transition.FAIL) in TRANSITIONS])
def test_no_way_leads_from_quarantine_to_serving_but_over_an_end(state: EngineState) -> None:
    assert TRANSITIONS[state, Transition.FAIL] is EngineState.QUARANTINED
    assert {after for (before, _), after in TRANSITIONS.items() if before is EngineState.QUARANTINED} == {
        EngineState.COLD,
        EngineState.STUCK,
    }


def test_f9_an_exit_takes_the_route_in_the_same_call_before_anything_is_killed() -> None:
    driver = serving()
    driver.done.clear()
    driver.die(member=2)
    kinds = [type(action) for action in driver.done if ENGINE in (getattr(action, name, None) for name in ("engine", "group", "holder"))]
    assert kinds[:4] == [do.Lost, do.StopGroup, do.Measure, do.StartGroup]
    assert driver.asked(do.StopGroup)[0].kill
    (fault,) = driver.faults
    assert (fault.cause, fault.member, fault.collateral, fault.attempt) == (Cause.EXIT, 2, (0, 1, 3), 1)
    assert set(fault.steps) == {"failed", "unrouted", "gone", "empty", "started", "ready", "loaded", "routed"}
    assert fault.outcome == "routed"


def test_one_failure_touches_one_group() -> None:
    driver = serving()
    driver.done.clear()
    driver.die(0)
    assert not any(getattr(action, "engine", getattr(action, "group", None)) == EngineId(P1, 1) for action in driver.done)


def test_f21_a_verdict_about_the_dead_does_not_touch_the_living() -> None:
    driver = serving()
    driver.die()
    assert driver.engine().incarnation == 2
    driver.done.clear()
    driver.feed(ev.ProbeFailed(group=ENGINE, incarnation=LIFE, reason="late"), ev.PeerFailed(group=ENGINE, incarnation=LIFE, reason="late"))
    driver.feed(ev.MemberExited(group=ENGINE, incarnation=LIFE, member=0, code=-9))
    assert driver.engine().state is EngineState.SERVING
    assert driver.done == []


def test_r13_a_probe_only_condemns_and_the_order_of_the_end_is_the_same() -> None:
    driver = serving()
    driver.done.clear()
    driver.feed(ev.ProbeFailed(group=ENGINE, incarnation=LIFE, reason="silent", silent_for=40.0))
    assert [type(action) for action in driver.done][:3] == [do.Lost, do.StopGroup, do.Measure]
    assert driver.faults[0].silent == 40.0


def test_f6_not_confirmed_is_stuck_withheld_listed_and_looked_at_again() -> None:
    driver = serving()
    driver.rule = lambda action: (
        ev.GroupGone(id=action.id, confirmed=False, note="pid 7 does not end") if isinstance(action, do.StopGroup) else None
    )
    driver.die()
    engine = driver.engine()
    assert engine.state is EngineState.STUCK
    assert engine.note == "pid 7 does not end"
    assert set(driver.scheduler.leases.held_by(ENGINE)) == {GpuId(0)}
    driver.wait(60.0)
    assert engine.state is EngineState.STUCK
    assert len(driver.asked(do.StopGroup)) >= 10
    assert not driver.asked(do.StartGroup)[1:], "something was started beside the dead"
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    assert engine.state is EngineState.SERVING


def test_f5_memory_that_stays_after_every_pid_is_gone_is_stuck_too() -> None:
    driver = serving()
    driver.rule = lambda action: (
        ev.GpuHeld(id=action.id, gpus=action.gpus, note="held") if isinstance(action, do.Measure) and action.holder == ENGINE else None
    )
    driver.die()
    assert driver.engine().state is EngineState.STUCK
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    assert driver.engine().state is EngineState.SERVING


def test_f6_a_stuck_gpu_is_granted_to_nobody() -> None:
    driver = serving()
    driver.rule = lambda action: ev.GroupGone(id=action.id, confirmed=False, note="") if isinstance(action, do.StopGroup) else None
    driver.die()
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    driver.wait(600.0)
    told = [action.message for action in driver.done if isinstance(action, do.TellTrainer)]
    assert say.LeaseGranted(1, ("train",)) not in told
    driver.rule = lambda action: None
    driver.wait(2 * LIMITS.remeasure)
    told = [action.message for action in driver.done if isinstance(action, do.TellTrainer)]
    assert say.LeaseGranted(1, ("train",)) in told


def test_f12_a_release_that_releases_nothing_is_a_failure_of_the_group() -> None:
    driver = serving()
    driver.rule = lambda action: (
        ev.GpuHeld(id=action.id, gpus=action.gpus, note="2 MiB")
        if isinstance(action, do.Measure) and action.holder == ENGINE and not driver.asked(do.StopGroup)
        else None
    )
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert driver.asked(do.StopGroup)[0].kill
    fault = driver.engine().fault
    assert fault is not None
    assert fault.cause is Cause.MEMORY
    told = [action.message for action in driver.done if isinstance(action, do.TellTrainer)]
    assert say.LeaseGranted(1, ("train",)) in told


def test_f11_other_weights_than_were_given_are_a_failure_and_older_than_published_are_loaded_again() -> None:
    driver = serving()
    driver.rule = lambda action: (
        ev.Woken(id=action.id, version=Version(0)) if isinstance(action, do.LoadWeights) and action.engine == ENGINE else None
    )
    driver.say(say.Publish(0, "w"))
    assert driver.engine(1).version == 1
    assert driver.engine(0).route is None
    assert any(fault.engine == ENGINE for fault in [*driver.faults, driver.engine(0).fault] if fault is not None)
    assert len(driver.asked(do.LoadWeights)) <= 1 + LIMITS.restarts, "it is asked for ever"


def test_f11_never_routed_before_the_published_version() -> None:
    driver = serving()
    driver.say(say.Publish(0, "w"))
    driver.done.clear()
    driver.die()
    kinds = [type(action) for action in driver.done if getattr(action, "engine", None) == ENGINE]
    assert kinds.index(do.LoadWeights) < kinds.index(do.Route)
    assert driver.asked(do.Route)[-1].version == 1


def test_f17_a_start_that_is_never_answered_ends_at_its_deadline() -> None:
    driver = Driver()
    driver.deaf = (do.StartGroup,)
    driver.open()
    assert driver.engine().state is EngineState.STARTING
    driver.deaf = ()
    driver.wait(LIMITS.start - 1)
    assert driver.engine().state is EngineState.STARTING
    driver.wait(2)
    assert driver.asked(do.StopGroup)
    assert driver.engine().state is EngineState.SERVING


@pytest.mark.parametrize("deaf", [do.StartGroup, do.LoadWeights, do.Pause])
def test_one_attempt_has_one_deadline(deaf: type) -> None:
    """The worst order of things: everything takes as long as it may."""
    limits = default_limits(start=900, load=600, pause=600, attempt=1000)
    driver = Driver(box(2, pipeline("p1", [0], [0, 1], ranks=1), limits=limits))
    driver.deaf = (do.StartGroup, do.LoadWeights, do.Pause)
    driver.open()
    began = driver.now
    engine = driver.engine()
    assert engine.state is EngineState.STARTING
    if deaf is not do.StartGroup:
        start = driver.asked(do.StartGroup)[0]
        driver.now += 899
        if deaf is do.LoadWeights:
            driver.say(say.Publish(0, "w"))
        else:
            driver.say(say.CloseRollout(0))
        driver.feed(ev.GroupReady(id=start.id, version=Version(0)))
    while not driver.asked(do.StopGroup) and driver.now < 5000:
        if engine.state not in (EngineState.STARTING, EngineState.LOADING, EngineState.PAUSING):
            return  # not wanted any more, awake and unasked: nothing is under way
        driver.wait(1)
    assert driver.now - began <= 1001


def test_f18_a_crash_loop_ends_in_retirement_with_growing_pauses() -> None:
    driver = Driver()
    driver.rule = lambda action: (
        ev.ActionFailed(id=action.id, reason="no") if isinstance(action, do.StartGroup) and action.engine == ENGINE else None
    )
    driver.open()
    driver.wait(500)
    assert driver.engine().state is EngineState.RETIRED
    assert len(driver.asked(do.StartGroup)) == 1 + LIMITS.restarts
    assert driver.faults[-1].outcome == "retired"
    assert driver.faults[-1].attempt == 1 + LIMITS.restarts
    assert driver.engine(1).state is EngineState.SERVING
    driver.rule = lambda action: None
    for _ in range(2):
        driver.feed(ev.OperatorAsked(verb="reset", pipeline=P1, rank=0))
    assert driver.engine().state is EngineState.SERVING


def test_f20_at_most_two_start_at_a_time() -> None:
    spec = box(8, pipeline("p1", [0], list(range(8)), ranks=1), limits=LIMITS, rules=default_rules(max_starting=2))
    driver = Driver(spec)
    driver.deaf = (do.StartGroup,)
    driver.open(64)
    assert sum(engine.state is EngineState.STARTING for engine in driver.scheduler.engines) == 2


def test_f10_a_member_dies_in_a_change_of_weights_and_the_publish_is_not_held_up() -> None:
    driver = serving()
    driver.deaf = (do.LoadWeights,)
    driver.say(say.Publish(0, "w"))
    assert driver.engine().state is EngineState.LOADING
    told = [action.message for action in driver.done if isinstance(action, do.TellTrainer)]
    assert any(isinstance(message, say.Published) for message in told)
    driver.deaf = ()
    driver.die(member=1)
    assert driver.engine().state is EngineState.SERVING
    assert driver.engine().version == 1


def test_a_death_while_the_gpu_is_lent_out_waits_for_the_lease() -> None:
    driver = serving()
    driver.say(say.CloseRollout(0), say.RequestLease(1, ("train",)))
    assert driver.engine().state is EngineState.PAUSED
    starts = len(driver.asked(do.StartGroup))
    driver.die()
    assert driver.asked(do.StopGroup)[-1].kill
    assert driver.engine().state is EngineState.COLD
    assert isinstance(driver.scheduler.leases.lease(GpuId(0)).holder, TrainerId)  # type: ignore[union-attr]
    driver.wait(100)
    assert len(driver.asked(do.StartGroup)) == starts
    driver.say(say.Offloaded(1))
    driver.open(16, 1)
    assert driver.engine().state is EngineState.SERVING
    assert driver.faults[-1].outcome == "routed"


def test_the_gateways_counts_reach_the_record_and_die_with_the_life() -> None:
    driver = serving()
    load = EngineLoad(0, 1, 3, 5, 2, 40)
    driver.feed(ev.GatewaySaid(pipeline=P1, incarnation=LIFE, progress=Progress((RolloutProgress(0, 13, 3, 0),), (load,))))
    engine = driver.engine()
    assert (engine.in_flight, engine.completed, engine.failures, engine.tokens) == (3, 5, 2, 40)
    driver.die()
    assert (engine.in_flight, engine.completed, engine.failures, engine.tokens) == (0, 0, 0, 0)


def test_an_operators_restart_is_gentle_and_costs_no_budget() -> None:
    driver = serving()
    for _ in range(10):
        driver.feed(ev.OperatorAsked(verb="restart", pipeline=P1, rank=0))
    assert driver.engine().state is EngineState.SERVING
    assert driver.engine().restarts == 0
    assert not any(action.kill for action in driver.asked(do.StopGroup))
    assert {fault.cause for fault in driver.faults} == {Cause.OPERATOR}


def test_drain_ends_the_processes_and_resume_brings_them_back() -> None:
    driver = serving()
    for _ in range(3):
        driver.feed(ev.OperatorAsked(verb="drain", pipeline=P1, rank=0))
    engine = driver.engine()
    assert engine.state is EngineState.COLD
    assert len(driver.asked(do.Drain)) == 1
    assert not driver.asked(do.StopGroup)[-1].kill
    driver.wait(1000)
    assert engine.state is EngineState.COLD
    for _ in range(3):
        driver.feed(ev.OperatorAsked(verb="resume", pipeline=P1, rank=0))
    assert engine.state is EngineState.SERVING
    assert engine.restarts == 0


def test_pause_keeps_the_processes_and_is_idempotent() -> None:
    driver = serving()
    for _ in range(3):
        driver.feed(ev.OperatorAsked(verb="pause", pipeline=P1, rank=0))
    assert driver.engine().state is EngineState.PAUSED
    assert len(driver.asked(do.Pause)) == 1
    assert not driver.asked(do.StopGroup)

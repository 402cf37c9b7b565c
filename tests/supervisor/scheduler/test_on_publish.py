"""`on_publish = "finish"`: an engine takes new weights when what runs on it has ended, and nobody sends it anything meanwhile."""

from dataclasses import replace

import pytest

from engines.lifecycle.state import EngineState
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from tests.harness.boxes import box, pipeline
from tests.harness.scheduler_driver import LIFE, LIMITS, P1, Driver
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import EngineLoad, Progress, RolloutProgress
from trainers.protocol.ids import Version


def running(on_publish: str) -> Driver:
    """Engine 0 is routed under version 0 and has two samples, when version 1 is published."""
    spec = replace(pipeline("p1", [1], [0], ranks=1), on_publish=on_publish)
    driver = Driver(box(2, spec, limits=LIMITS))
    driver.open(4)
    assert driver.engine().route == 0
    loads(driver, 2)
    driver.done.clear()
    driver.say(say.Publish(1, "a"))
    return driver


def loads(driver: Driver, in_flight: int, *, known: bool = True) -> None:
    engines = (EngineLoad(0, LIFE, in_flight, 0, 0),) if known else ()
    report = RolloutProgress(0, 4 - in_flight, in_flight, 0)
    driver.feed(ev.GatewaySaid(pipeline=P1, incarnation=LIFE, progress=Progress((report,), engines)))


@pytest.mark.parametrize("on_publish", ["continue", "restart"])
def test_weights_are_loaded_in_place_at_once(on_publish: str) -> None:
    driver = running(on_publish)
    assert [type(action) for action in driver.done if isinstance(action, do.Unroute | do.LoadWeights | do.Route)] == [
        do.Unroute,
        do.LoadWeights,
        do.Route,
    ]
    assert driver.asked(do.Unroute)[0].published == 1
    assert driver.engine().route == 1


def test_finish_waits_for_the_last_sample_and_says_published_meanwhile() -> None:
    driver = running("finish")
    assert driver.asked(do.Unroute)[0].published == 1
    assert not driver.asked(do.LoadWeights)
    assert driver.engine().state is EngineState.SERVING, "so that its health is looked after"
    assert any(isinstance(action, do.TellTrainer) and isinstance(action.message, say.Published) for action in driver.done)
    loads(driver, 1)
    driver.wait(600.0)
    assert not driver.asked(do.LoadWeights)
    assert not driver.asked(do.Route)
    loads(driver, 0, known=False)
    assert [load.version for load in driver.asked(do.LoadWeights)] == [1]
    assert driver.engine().route == 1


def test_finish_with_nothing_running_loads_at_once() -> None:
    driver = running("continue")
    spec = driver.scheduler.pipelines[P1]
    spec.spec = replace(spec.spec, on_publish="finish")
    loads(driver, 0)
    driver.done.clear()
    driver.say(say.Publish(2, "b"))
    assert [load.version for load in driver.asked(do.LoadWeights)] == [2]


def test_finish_loads_the_newest_of_several() -> None:
    driver = running("finish")
    driver.say(say.Publish(2, "b"))
    loads(driver, 0, known=False)
    assert [load.version for load in driver.asked(do.LoadWeights)] == [2]
    assert driver.engine().version == Version(2)


def test_finish_gives_way_to_who_needs_the_gpu() -> None:
    spec = replace(pipeline("p1", [0], [0], ranks=1), on_publish="finish")
    driver = Driver(box(1, spec, limits=LIMITS))
    driver.open(4)
    loads(driver, 2)
    driver.say(say.Publish(1, "a"))
    assert not driver.asked(do.LoadWeights)
    driver.say(say.RequestLease(2, ("train",)))
    assert driver.asked(do.Drain)
    assert driver.asked(do.Pause)
    assert not driver.asked(do.LoadWeights)


def test_finish_ends_with_the_gateway_that_held_the_samples() -> None:
    driver = running("finish")
    gateway = driver.scheduler.pipelines[P1].gateway
    driver.feed(ev.MemberExited(group=gateway.id, incarnation=gateway.incarnation, member=0, code=-9))
    assert [load.version for load in driver.asked(do.LoadWeights)] == [1]
    assert driver.engine().route == 1

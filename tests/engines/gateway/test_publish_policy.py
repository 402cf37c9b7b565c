"""`on_publish` and `max_version_lag`: what becomes of samples in flight when weights are published in the middle of a rollout."""

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.events import Finished, Tokens
from engines.gateway.core.publish_policy import OnPublish, PublishPolicy
from engines.gateway.core.samples import Mark
from tests.harness.dispatch_driver import ABORTED, DispatchDriver, request, span
from trainers.protocol import gateway_messages


def running(on_publish: OnPublish, lag: int | None = None, *, streams: bool = False) -> tuple[DispatchDriver, int, int]:
    """A sample of which version 1 has made two tokens on engine 0."""
    driver = DispatchDriver(Dispatch(policy=PublishPolicy(on_publish, lag)))
    driver.open()
    driver.route(0, version=1)
    asker = driver.ask(0, "0", wants=request(1, 8), streams=streams)
    attempt = driver.only()
    driver.make(attempt, 5, 6, label="1")
    return driver, asker, attempt


def publish(driver: DispatchDriver, version: int, engine: int = 0) -> int:
    return driver.order(gateway_messages.Unroute, engine=engine, incarnation=1, version=version)


def test_continue_lets_it_go_on_under_the_new_weights() -> None:
    driver, asker, attempt = running("continue")
    assert publish(driver, 2) in driver.done
    assert not driver.aborted
    driver.route(0, version=2)
    driver.tell(Tokens(attempt, [7, 8], [-0.5, -0.5], marks=(Mark("1", 0, 2), Mark("2", 2, 4))))
    driver.end(attempt, Finished({"type": "stop"}))
    assert driver.answer(asker).spans == (span(0, 1, 1, 0, 2), span(0, 1, 2, 2, 4))


def test_restart_begins_it_anew_under_the_new_weights_before_they_are_loaded() -> None:
    driver, asker, attempt = running("restart")
    order = publish(driver, 2)
    assert driver.aborted == [attempt]
    assert order not in driver.done, "the engine may load when the old sample has left it"
    driver.make(attempt, 5, 6, 7, label="1")
    driver.end(attempt, ABORTED)
    assert order in driver.done
    assert not driver.running, "nothing is routed with the new weights yet"
    driver.route(0, version=2)
    again = driver.only()
    assert driver.running[again].body["input_ids"] == [1]
    assert driver.running[again].body["sampling_params"]["max_new_tokens"] == 8
    driver.make(again, 9, label="2")
    driver.end(again, Finished({"type": "stop"}))
    assert list(driver.answer(asker).ids) == [9]
    assert driver.answer(asker).spans == (span(0, 1, 2, 0, 1),)


def test_restart_of_a_sample_without_a_token_yet_still_takes_it_from_the_old_weights() -> None:
    driver = DispatchDriver(Dispatch(policy=PublishPolicy("restart")))
    driver.open()
    driver.route(0, version=1)
    driver.ask(0, "0")
    publish(driver, 2)
    assert driver.aborted == [driver.only()], "its first tokens may be on their way"


def test_what_is_complete_when_the_weights_come_stays_so() -> None:
    driver, asker, attempt = running("restart")
    publish(driver, 2)
    driver.end(attempt, Finished({"type": "stop"}))
    assert list(driver.answer(asker).ids) == [5, 6]


def test_restart_also_holds_for_what_was_interrupted_and_waits() -> None:
    driver, _, attempt = running("restart")
    driver.drain(0)
    driver.end(attempt, ABORTED)
    driver.route(1, version=2)
    assert driver.running[driver.only()].body["input_ids"] == [1]


def test_finish_lets_it_end_under_the_old_weights_and_sends_nothing_new_there() -> None:
    driver, asker, attempt = running("finish")
    assert publish(driver, 2) in driver.done
    driver.ask(0, "1")
    assert driver.only() == attempt
    assert not driver.aborted
    loads = {load.engine: load.in_flight for load in driver.core.progress().engines}
    assert loads == {0: 1}, "the supervisor sees that something runs there yet"
    driver.route(1, version=2)
    assert len(driver.running) == 2
    driver.make(attempt, 5, 6, 7, label="1")
    driver.end(attempt, Finished({"type": "stop"}))
    assert {span.version for span in driver.answer(asker).spans} == {1}


def test_finish_begins_anew_what_cannot_finish_there() -> None:
    driver, asker, attempt = running("finish")
    publish(driver, 2)
    driver.drain(0)
    driver.end(attempt, ABORTED)
    driver.route(1, version=2)
    again = driver.only()
    assert driver.running[again].body["input_ids"] == [1]
    driver.make(again, 9, label="2")
    driver.end(again, Finished({"type": "stop"}))
    assert {span.version for span in driver.answer(asker).spans} == {2}


def test_finish_without_a_new_version_keeps_the_tokens() -> None:
    driver, _, attempt = running("finish")
    driver.drain(0)
    driver.end(attempt, ABORTED)
    driver.route(1, version=1)
    assert driver.running[driver.only()].body["input_ids"] == [1, 5, 6]


def test_a_lag_that_is_too_long_begins_anew() -> None:
    driver, _, attempt = running("continue", lag=1)
    publish(driver, 2)
    driver.route(0, version=2)
    assert not driver.aborted
    order = publish(driver, 3)
    assert driver.aborted == [attempt]
    driver.end(attempt, ABORTED)
    assert order in driver.done
    driver.route(0, version=3)
    assert driver.running[driver.only()].body["input_ids"] == [1]
    publish(driver, 4)
    assert driver.aborted == [attempt], "the new one was born under version 3"


def test_a_version_that_only_a_route_tells_of_counts_too() -> None:
    driver, _, attempt = running("finish", lag=1)
    driver.route(1, version=2)
    assert not driver.aborted
    order = driver.route(1, version=3)
    assert driver.aborted == [attempt]
    assert order not in driver.done
    driver.end(attempt, ABORTED)
    assert order in driver.done


def test_an_answer_that_is_being_read_goes_on() -> None:
    driver, asker, attempt = running("restart", streams=True)
    publish(driver, 2)
    assert not driver.aborted
    driver.drain(0)
    driver.end(attempt, ABORTED)
    driver.route(1, version=2)
    assert driver.running[driver.only()].body["input_ids"] == [1, 5, 6]
    assert driver.grown[asker] == [5, 6]

"""`on_publish` and `max_version_lag`: what becomes of samples in flight when weights are published in the middle of a rollout."""

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.events import Finished, Tokens
from engines.gateway.core.publish_policy import OnPublish, PublishPolicy
from engines.gateway.core.samples import Mark
from tests.engines.gateway.test_dispatch import ABORTED, Bench, request, span
from trainers.protocol import gateway_messages


def running(on_publish: OnPublish, lag: int | None = None, *, streams: bool = False) -> tuple[Bench, int, int]:
    """A sample of which version 1 has made two tokens on engine 0."""
    bench = Bench(Dispatch(policy=PublishPolicy(on_publish, lag)))
    bench.open()
    bench.route(0, version=1)
    asker = bench.ask(0, "0", wants=request(1, 8), streams=streams)
    attempt = bench.only()
    bench.make(attempt, 5, 6, label="1")
    return bench, asker, attempt


def publish(bench: Bench, version: int, engine: int = 0) -> int:
    return bench.order(gateway_messages.Unroute, engine=engine, incarnation=1, version=version)


def test_continue_lets_it_go_on_under_the_new_weights() -> None:
    bench, asker, attempt = running("continue")
    assert publish(bench, 2) in bench.done
    assert not bench.aborted
    bench.route(0, version=2)
    bench.tell(Tokens(attempt, [7, 8], [-0.5, -0.5], marks=(Mark("1", 0, 2), Mark("2", 2, 4))))
    bench.end(attempt, Finished({"type": "stop"}))
    assert bench.answer(asker).spans == (span(0, 1, 1, 0, 2), span(0, 1, 2, 2, 4))


def test_restart_begins_it_anew_under_the_new_weights_before_they_are_loaded() -> None:
    bench, asker, attempt = running("restart")
    order = publish(bench, 2)
    assert bench.aborted == [attempt]
    assert order not in bench.done, "the engine may load when the old sample has left it"
    bench.make(attempt, 5, 6, 7, label="1")
    bench.end(attempt, ABORTED)
    assert order in bench.done
    assert not bench.running, "nothing is routed with the new weights yet"
    bench.route(0, version=2)
    again = bench.only()
    assert bench.running[again].body["input_ids"] == [1]
    assert bench.running[again].body["sampling_params"]["max_new_tokens"] == 8
    bench.make(again, 9, label="2")
    bench.end(again, Finished({"type": "stop"}))
    assert list(bench.answer(asker).ids) == [9]
    assert bench.answer(asker).spans == (span(0, 1, 2, 0, 1),)


def test_restart_of_a_sample_without_a_token_yet_still_takes_it_from_the_old_weights() -> None:
    bench = Bench(Dispatch(policy=PublishPolicy("restart")))
    bench.open()
    bench.route(0, version=1)
    bench.ask(0, "0")
    publish(bench, 2)
    assert bench.aborted == [bench.only()], "its first tokens may be on their way"


def test_what_is_complete_when_the_weights_come_stays_so() -> None:
    bench, asker, attempt = running("restart")
    publish(bench, 2)
    bench.end(attempt, Finished({"type": "stop"}))
    assert list(bench.answer(asker).ids) == [5, 6]


def test_restart_also_holds_for_what_was_interrupted_and_waits() -> None:
    bench, _, attempt = running("restart")
    bench.drain(0)
    bench.end(attempt, ABORTED)
    bench.route(1, version=2)
    assert bench.running[bench.only()].body["input_ids"] == [1]


def test_finish_lets_it_end_under_the_old_weights_and_sends_nothing_new_there() -> None:
    bench, asker, attempt = running("finish")
    assert publish(bench, 2) in bench.done
    bench.ask(0, "1")
    assert bench.only() == attempt
    assert not bench.aborted
    loads = {load.engine: load.in_flight for load in bench.core.progress().engines}
    assert loads == {0: 1}, "the supervisor sees that something runs there yet"
    bench.route(1, version=2)
    assert len(bench.running) == 2
    bench.make(attempt, 5, 6, 7, label="1")
    bench.end(attempt, Finished({"type": "stop"}))
    assert {span.version for span in bench.answer(asker).spans} == {1}


def test_finish_begins_anew_what_cannot_finish_there() -> None:
    bench, asker, attempt = running("finish")
    publish(bench, 2)
    bench.drain(0)
    bench.end(attempt, ABORTED)
    bench.route(1, version=2)
    again = bench.only()
    assert bench.running[again].body["input_ids"] == [1]
    bench.make(again, 9, label="2")
    bench.end(again, Finished({"type": "stop"}))
    assert {span.version for span in bench.answer(asker).spans} == {2}


def test_finish_without_a_new_version_keeps_the_tokens() -> None:
    bench, _, attempt = running("finish")
    bench.drain(0)
    bench.end(attempt, ABORTED)
    bench.route(1, version=1)
    assert bench.running[bench.only()].body["input_ids"] == [1, 5, 6]


def test_a_lag_that_is_too_long_begins_anew() -> None:
    bench, _, attempt = running("continue", lag=1)
    publish(bench, 2)
    bench.route(0, version=2)
    assert not bench.aborted
    order = publish(bench, 3)
    assert bench.aborted == [attempt]
    bench.end(attempt, ABORTED)
    assert order in bench.done
    bench.route(0, version=3)
    assert bench.running[bench.only()].body["input_ids"] == [1]
    publish(bench, 4)
    assert bench.aborted == [attempt], "the new one was born under version 3"


def test_a_version_that_only_a_route_tells_of_counts_too() -> None:
    bench, _, attempt = running("finish", lag=1)
    bench.route(1, version=2)
    assert not bench.aborted
    order = bench.route(1, version=3)
    assert bench.aborted == [attempt]
    assert order not in bench.done
    bench.end(attempt, ABORTED)
    assert order in bench.done


def test_an_answer_that_is_being_read_goes_on() -> None:
    bench, asker, attempt = running("restart", streams=True)
    publish(bench, 2)
    assert not bench.aborted
    bench.drain(0)
    bench.end(attempt, ABORTED)
    bench.route(1, version=2)
    assert bench.running[bench.only()].body["input_ids"] == [1, 5, 6]
    assert bench.grown[asker] == [5, 6]

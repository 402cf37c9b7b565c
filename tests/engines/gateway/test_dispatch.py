"""The dispatch core without sockets: cases, and properties over random histories."""

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.events import Broken, Cancel, Ended, Event, Finished, Leave, Refused, Tick, Tokens
from engines.gateway.core.publish_policy import ON_PUBLISH, OnPublish, PublishPolicy
from engines.gateway.core.records import LOSING_S, MAX_LIVES, MAX_LOSSES
from engines.gateway.core.samples import TOKENS, Failure, Mark, Request
from tests.harness.dispatch_driver import ABORTED, DispatchDriver, request, span
from tests.harness.scripted_engine import expected, next_token
from trainers.protocol import gateway_messages
from trainers.protocol.ids import EVALUATIONS
from trainers.protocol.seeds import sample_seed


@pytest.fixture
def driver() -> DispatchDriver:
    return DispatchDriver()


def test_a_request_waits_for_a_route_and_then_runs(driver: DispatchDriver) -> None:
    driver.open()
    asker = driver.ask(0, "0")
    assert driver.progress() == {0: (1, 0, 0)}
    assert not driver.running
    driver.route(version=3)
    attempt = driver.only()
    assert driver.progress() == {0: (0, 1, 0)}
    driver.make(attempt, 5, 6, 7, 8)
    driver.end(attempt)
    assert list(driver.answer(asker).ids) == [5, 6, 7, 8]
    assert driver.answer(asker).spans == (span(0, 1, 3, 0, 4),)
    assert driver.progress() == {0: (0, 0, 1)}
    assert driver.core.progress().engines[0].completed == 1


def test_never_more_than_slots_and_to_the_least_loaded(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0, slots=2)
    driver.route(1, slots=4)
    for index in range(8):
        driver.ask(0, str(index))
    assert [start.engine for start in driver.running.values()] == [0, 1, 1, 0, 1, 1]
    assert driver.progress() == {0: (2, 6, 0)}


def test_index_order_and_the_longest_expected_first(driver: DispatchDriver) -> None:
    driver.open()
    for index in (2, 0, 1):
        driver.ask(0, str(index), wants=request(index))
    for index in (10, 11):
        driver.ask(0, str(index), wants=request(index, limit=64, expected_tokens=index))
    driver.route(slots=5)
    assert [start.body["input_ids"] for start in driver.running.values()] == [[11], [10], [0], [1], [2]]


def test_a_drained_request_goes_on_elsewhere_with_its_tokens(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0, version=1)
    asker = driver.ask(0, "0")
    first = driver.only()
    driver.make(first, 5, 6)
    drained = driver.drain(0)
    assert driver.aborted == [first]
    assert drained not in driver.done
    driver.route(1, incarnation=4, version=2)
    assert not [start for start in driver.running.values() if start.engine == 1]
    driver.end(first, ABORTED)
    assert drained in driver.done
    second = driver.only()
    assert driver.running[second].body["input_ids"] == [1, 5, 6]
    assert driver.running[second].body["sampling_params"]["max_new_tokens"] == 2
    driver.make(second, 7, 8)
    driver.end(second, Finished({"type": "length", "length": 2}))
    assert list(driver.answer(asker).ids) == [5, 6, 7, 8]
    assert driver.answer(asker).finish_reason == {"type": "length", "length": 4}
    assert driver.answer(asker).spans == (span(0, 1, 1, 0, 2), span(1, 4, 2, 2, 4))


def test_tokens_of_a_lost_engine_are_kept_and_its_late_answers_are_not(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0)
    asker = driver.ask(0, "0")
    first = driver.only()
    driver.make(first, 5)
    driver.lost(0)
    assert not driver.running
    driver.make(first, 99)
    driver.tell(Ended(first, Finished({"type": "stop"})))
    driver.route(0, incarnation=2)
    second = driver.only()
    assert driver.running[second].body["input_ids"] == [1, 5]
    driver.make(second, 6, 7, 8)
    driver.end(second)
    assert list(driver.answer(asker).ids) == [5, 6, 7, 8]
    assert [span.incarnation for span in driver.answer(asker).spans] == [1, 2]


def test_a_new_incarnation_in_a_route_is_the_loss_of_the_old(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0)
    driver.ask(0, "0")
    first = driver.only()
    driver.route(0, incarnation=2)
    assert driver.only() != first
    assert driver.core.progress().engines == (gateway_messages.EngineLoad(0, 2, 1, 0, 0),)


def test_no_request_goes_to_an_older_version_or_an_unrouted_engine(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0, version=1)
    driver.route(1, version=2)
    for index in range(4):
        driver.ask(0, str(index))
    assert {start.engine for start in driver.running.values()} == {1}
    driver.order(gateway_messages.Unroute, engine=1, incarnation=1)
    driver.end(driver.only() if len(driver.running) == 1 else next(iter(driver.running)))
    assert len(driver.running) == 1
    driver.route(0, version=2)
    assert {start.engine for start in driver.running.values()} == {0, 1}


def test_weights_that_change_under_a_request_make_a_second_span(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(version=1)
    asker = driver.ask(0, "0")
    attempt = driver.only()
    driver.tell(Tokens(attempt, [5, 6], [0.0, 0.0], marks=(Mark("default", 0, 2),)))
    driver.order(gateway_messages.Unroute, engine=0, incarnation=1)
    driver.tell(Tokens(attempt, [7, 8], [0.0, 0.0], marks=(Mark("default", 0, 3), Mark("2", 3, 4))))
    driver.end(attempt)
    assert driver.answer(asker).spans == (span(0, 1, 1, 0, 3), span(0, 1, 2, 3, 4))


def test_a_repeated_sample_joins_or_gets_the_stored_answer(driver: DispatchDriver) -> None:
    driver.open()
    driver.route()
    one, two = driver.ask(0, "0"), driver.ask(0, "0", streams=True)
    attempt = driver.only()
    driver.make(attempt, 5, 6)
    three = driver.ask(0, "0", streams=True)
    assert driver.grown == {two: [5, 6], three: [5, 6]}
    driver.make(attempt, 7, 8)
    driver.end(attempt)
    four = driver.ask(0, "0")
    assert len({id(driver.answer(asker)) for asker in (one, two, three, four)}) == 1
    assert driver.progress() == {0: (0, 0, 1)}
    other = driver.ask(0, "0", wants=request(2))
    assert driver.failure(other).code == "sample_mismatch"


def test_a_client_that_leaves_frees_its_slot_unless_another_has_joined(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(slots=1)
    one, two, three = driver.ask(0, "0"), driver.ask(0, "0"), driver.ask(0, "1")
    first = driver.only()
    driver.tell(Leave(one))
    assert not driver.aborted
    driver.tell(Leave(two))
    assert driver.aborted == [first]
    assert driver.progress() == {0: (1, 0, 0)}
    driver.end(first, ABORTED)
    driver.make(driver.only(), 9)
    driver.end(driver.only())
    assert set(driver.outcomes) == {three}


def test_close_returns_what_there_is(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(slots=1)
    runs, waits = driver.ask(0, "0"), driver.ask(0, "1")
    first = driver.only()
    driver.make(first, 5, 6)
    closed = driver.close()
    assert driver.answer(waits).finish_reason["type"] == "abort"
    assert not driver.answer(waits).ids
    assert closed not in driver.done
    assert driver.progress() == {}
    driver.end(first, ABORTED)
    assert closed in driver.done
    assert list(driver.answer(runs).ids) == [5, 6]
    assert driver.answer(runs).finish_reason["type"] == "abort"
    assert driver.answer(driver.ask(0, "0")) is driver.answer(runs)
    assert driver.failure(driver.ask(0, "7")).code == "rollout_closed"


def test_what_is_cancelled_ends_with_what_there_is(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(slots=1)
    runs, waits, stays = driver.ask(0, "0"), driver.ask(0, "1"), driver.ask(0, "2")
    first = driver.only()
    driver.make(first, 5, 6)
    driver.tell(Cancel(0, ["0", "1", "later"]))
    assert not driver.answer(waits).ids
    assert driver.aborted == [first]
    driver.end(first, ABORTED)
    assert list(driver.answer(runs).ids) == [5, 6]
    assert driver.answer(runs).finish_reason == {"type": "abort", "message": "the trainer has cancelled it"}
    assert driver.answer(driver.ask(0, "later")).finish_reason["type"] == "abort", "it was cancelled before it was asked for"
    assert driver.progress() == {0: (0, 1, 3)}
    driver.tell(Cancel(0, ["0", "1"]))
    driver.tell(Cancel(9, ["0"]))
    driver.make(driver.only(), 5, 6, 7, 8)
    driver.end(driver.only())
    assert driver.answer(stays).finish_reason["type"] == "length"


def test_a_closed_evaluation_closes_no_step(driver: DispatchDriver) -> None:
    """A gateway that has just restarted may be asked for a step before it is told of it: higher numbers that are closed say nothing of it."""
    driver.open(EVALUATIONS + 5)
    driver.close(EVALUATIONS + 5)
    asker = driver.ask(3, "0")
    driver.open(3)
    driver.route()
    driver.end(driver.only())
    assert driver.answer(asker)
    assert driver.failure(driver.ask(EVALUATIONS + 4, "0")).code == "rollout_closed"


def test_a_finish_that_races_with_the_close_is_complete(driver: DispatchDriver) -> None:
    driver.open()
    driver.route()
    asker = driver.ask(0, "0")
    driver.make(driver.only(), 5, 6, 7, 8)
    driver.close()
    driver.end(driver.only())
    assert driver.answer(asker).finish_reason["type"] == "length"


def test_an_engine_that_does_not_answer_an_abort_is_cut_off(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0)
    driver.ask(0, "0")
    driver.make(driver.only(), 5)
    drained = driver.drain(0)
    assert driver.core.deadline == pytest.approx(5.0)
    driver.now = 5.0
    driver.tell(Tick())
    assert drained in driver.done
    assert not driver.running
    driver.route(1)
    assert driver.running[driver.only()].body["input_ids"] == [1, 5]


def test_an_abort_that_overtakes_the_end_is_the_end() -> None:
    driver = DispatchDriver(Dispatch(eos=frozenset({2})))
    driver.open()
    driver.route(0)
    ends, full = driver.ask(0, "0"), driver.ask(0, "1")
    first, second = driver.running
    driver.make(first, 5, 2)
    driver.make(second, 5, 6, 7, 8)
    driver.drain(0)
    driver.end(first, ABORTED)
    driver.end(second, ABORTED)
    assert driver.answer(ends).finish_reason == {"type": "stop", "matched": 2}
    assert driver.answer(full).finish_reason == {"type": "length", "length": 4}


def test_a_stop_string_across_the_seam_is_seen() -> None:
    driver = DispatchDriver(Dispatch(decode=lambda ids: "".join(chr(96 + token) for token in ids)))
    driver.open()
    driver.route(0)
    asker = driver.ask(0, "0", wants=request(limit=9, stops=("cd",)), streams=True)
    driver.make(driver.only(), 1, 2, 3)
    driver.lost(0)
    driver.route(0, incarnation=2)
    driver.make(driver.only(), 4, 5)
    assert list(driver.answer(asker).ids) == [1, 2, 3, 4]
    assert driver.grown[asker] == [1, 2, 3, 4]
    assert driver.answer(asker).finish_reason == {"type": "stop", "matched": "cd"}
    assert driver.answer(asker).spans == (span(0, 1, 0, 0, 3), span(0, 2, 0, 3, 4))
    assert driver.aborted == [driver.only()]


def test_what_cannot_be_put_together_is_redone_from_the_prompt(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0)
    asker = driver.ask(0, "0", wants=request(atomic=True), streams=True)
    driver.make(driver.only(), 5, 6)
    driver.lost(0)
    driver.route(0, incarnation=2)
    assert driver.running[driver.only()].body["input_ids"] == [1]
    driver.make(driver.only(), 5, 6, 7, 8)
    driver.end(driver.only(), Finished({"type": "length", "length": 4}, {"output_top_logprobs": [1]}))
    assert driver.answer(asker).meta == {"output_top_logprobs": [1]}
    assert driver.answer(asker).spans == (span(0, 2, 0, 0, 4),)
    assert not driver.grown


def test_an_abort_by_somebody_else_is_continued(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0)
    driver.ask(0, "0")
    driver.make(driver.only(), 5)
    driver.end(driver.only(), ABORTED)
    assert not driver.running
    due = driver.core.deadline
    assert due is not None
    driver.now = due
    driver.tell(Tick())
    assert driver.running[driver.only()].body["input_ids"] == [1, 5]


def test_a_broken_engine_rests_and_its_requests_go_elsewhere(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0)
    driver.ask(0, "0")
    driver.end(driver.only(), Broken("reset", accepted=False))
    assert not driver.running
    assert driver.core.progress().engines[0].failures == 1
    driver.route(1)
    assert driver.running[driver.only()].engine == 1


def test_f16_no_room_is_no_failure(driver: DispatchDriver) -> None:
    """429 and 503 say: not now. They make no streak, after which a canary would be sent."""
    driver.open()
    driver.route(0)
    driver.ask(0, "0")
    for _ in range(5):
        driver.end(driver.only(), Broken("HTTP 503: full", accepted=False, busy=True))
        assert driver.core.progress().engines[0].failures == 0
        driver.now += 60.0
        driver.tell(Tick())
    driver.end(driver.only(), Broken("reset", accepted=False))
    assert driver.core.progress().engines[0].failures == 1


def test_a_request_that_kills_engines_is_reported_failed(driver: DispatchDriver) -> None:
    driver.open()
    asker = driver.ask(0, "0")
    for life in range(MAX_LIVES):
        assert asker not in driver.outcomes
        driver.route(0, incarnation=life + 1)
        driver.end(driver.only(), Broken("reset", accepted=True, died=True))
    assert driver.failure(asker).code == "request_failed"


def test_a_request_that_an_engine_answers_with_errors_is_reported_failed(driver: DispatchDriver) -> None:
    driver.open()
    asker = driver.ask(0, "0")
    for _ in range(MAX_LOSSES + 1):
        assert asker not in driver.outcomes
        driver.route(0)
        driver.now += LOSING_S / MAX_LOSSES
        driver.end(driver.only(), Broken("HTTP 500", accepted=True))
    assert driver.failure(asker).code == "request_failed"


@pytest.mark.parametrize("seen", ["reset", "lost", "replaced"])
def test_a_request_that_kills_engines_costs_itself_alone(driver: DispatchDriver, seen: str) -> None:
    """Whichever way the gateway hears of the deaths: four are in flight, one of them kills; two lives, and three answers."""
    driver.open()
    askers = [driver.ask(0, str(index), wants=request(index)) for index in range(4)]
    poison, lives = 2, 1
    driver.route(0, slots=4)
    while len(driver.outcomes) < 4:
        fatal = [number for number, start in driver.running.items() if start.body["input_ids"][0] == poison]
        if not fatal:
            for number in tuple(driver.running):
                driver.make(number, 7)
            for number in tuple(driver.running) if not driver.core.engines.on_trial else ():
                driver.end(number)
            continue
        lives += 1
        assert lives <= 1 + MAX_LIVES, "more lives than that cost"
        match seen:
            case "reset":
                for number in tuple(driver.running):
                    driver.end(number, Broken("reset", accepted=True, died=True))
            case "lost":
                driver.lost(0, lives - 1)
        driver.now += 60.0
        driver.route(0, lives, slots=4)
    assert driver.failure(askers[poison]).code == "request_failed"
    assert all(driver.answer(asker) for index, asker in enumerate(askers) if index != poison)
    assert lives == 1 + MAX_LIVES


def test_an_innocent_request_is_not_blamed_where_engines_die_without_it(driver: DispatchDriver) -> None:
    """Engines that are killed from outside take whatever runs on them along; a request that happened to be there twice has done nothing."""
    driver.open()
    driver.route(0, slots=4)
    driver.route(1, slots=4)
    driver.lost(1)  # one that ran nothing
    asker = driver.ask(0, "0")
    for life in range(2, 2 + MAX_LIVES):
        driver.lost(0, life - 1)
        driver.route(0, life, slots=4)
    assert asker not in driver.outcomes
    driver.make(driver.only(), 7, 7, 7, 7)
    driver.end(driver.only())
    assert driver.answer(asker)


def test_a_suspect_runs_beside_those_that_have_made_tokens_and_others_wait_for_its_first(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0, slots=8)
    first, second = driver.ask(0, "0", wants=request(10)), driver.ask(0, "1", wants=request(11))
    talks, silent = driver.running
    driver.make(talks, 7)
    driver.lost(0)
    driver.ask(0, "2", wants=request(12))
    driver.route(0, incarnation=2, slots=8)
    assert [start.body["input_ids"][0] for start in driver.running.values()] == [11], "the one that had made no token, alone"
    trial = driver.only()
    driver.make(trial, 7)
    assert sorted(start.body["input_ids"] for start in driver.running.values()) == [[10, 7], [11], [12]]
    for number in tuple(driver.running):
        driver.make(number, 7, 7, 7, 7)
        driver.end(number)
    assert driver.answer(first) is not driver.answer(second)
    assert silent != trial


def test_an_engine_on_trial_holds_up_no_other(driver: DispatchDriver) -> None:
    driver.open()
    driver.route(0, slots=8)
    driver.ask(0, "0", wants=request(10))
    driver.lost(0)
    driver.route(0, incarnation=2, slots=8)
    driver.route(1, slots=2)
    for index in (1, 2, 3):
        driver.ask(0, str(index), wants=request(index))
    assert sorted((start.engine, start.body["input_ids"][0]) for start in driver.running.values()) == [(0, 10), (1, 1), (1, 2)]
    driver.make(next(number for number, start in driver.running.items() if start.engine == 0), 7)
    assert (0, 3) in [(start.engine, start.body["input_ids"][0]) for start in driver.running.values()]


def test_refused_requests_fail_at_once(driver: DispatchDriver) -> None:
    driver.open()
    driver.route()
    asker = driver.ask(0, "0")
    driver.end(driver.only(), Refused(400, "too long"))
    assert driver.failure(asker) == Failure(400, "bad_request", "too long")
    assert driver.progress() == {0: (0, 0, 1)}


def test_an_implicit_rollout_opens_and_closes_itself(driver: DispatchDriver) -> None:
    asker = driver.ask()
    assert driver.progress() == {-1: (1, 0, 0)}
    driver.now = 100.0
    driver.tell(Tick())
    assert driver.progress() == {-1: (1, 0, 0)}, "it stays open while something waits"
    driver.route()
    driver.end(driver.only())
    assert asker in driver.outcomes
    assert driver.core.deadline == 105.0
    driver.now = 105.0
    driver.tell(Tick())
    assert driver.progress() == {}
    driver.ask()
    assert list(driver.progress()) == [-2]


def test_a_request_without_a_rollout_belongs_to_the_oldest_open_one(driver: DispatchDriver) -> None:
    driver.ask()
    driver.open(3)
    driver.open(4)
    driver.ask()
    assert driver.progress() == {-1: (1, 0, 0), 3: (1, 0, 0), 4: (0, 0, 0)}


def test_a_rollout_may_be_named_a_little_before_it_opens(driver: DispatchDriver) -> None:
    driver.route()
    early, never = driver.ask(5, "0"), driver.ask(6, "0")
    assert not driver.running
    driver.open(5)
    driver.end(driver.only())
    assert early in driver.outcomes
    driver.now = 8.0
    driver.tell(Tick())
    assert driver.failure(never).code == "rollout_unknown"
    driver.close(5)
    assert driver.failure(driver.ask(4, "0")).code == "rollout_closed"


def test_answers_are_kept_until_the_next_but_one_rollout_opens(driver: DispatchDriver) -> None:
    driver.route()
    driver.open(0)
    driver.ask(0, "0")
    driver.end(driver.only())
    driver.close(0)
    driver.open(1)
    assert list(driver.answer(driver.ask(0, "0")).ids) == []
    driver.close(1)
    driver.open(2)
    assert driver.failure(driver.ask(0, "0")).code == "rollout_closed"


def test_forget_ends_everything_of_a_trainers_life(driver: DispatchDriver) -> None:
    driver.route()
    driver.open(0)
    done = driver.ask(0, "0")
    driver.end(driver.only())
    runs = driver.ask(0, "1")
    old = driver.only()
    driver.order(gateway_messages.Forget)
    assert driver.failure(runs).code == "rollout_closed"
    assert driver.aborted == [old]
    driver.open(0)
    again = driver.ask(0, "0")
    driver.end(old, ABORTED)
    driver.make(driver.only(), 9)
    driver.end(driver.only())
    assert list(driver.answer(again).ids) == [9]
    assert not driver.answer(done).ids


def test_hopeless_is_a_typed_503_until_it_is_taken_back(driver: DispatchDriver) -> None:
    driver.open()
    waits = driver.ask(0, "0")
    driver.order(gateway_messages.Hopeless, reason="retired")
    assert driver.failure(waits) == Failure(503, "no_engine", "retired")
    assert driver.failure(driver.ask(0, "1")).status == 503
    driver.order(gateway_messages.Hopeless, reason="")
    driver.ask(0, "0")
    driver.route()
    assert driver.running


def test_too_many_waiting_is_a_typed_503() -> None:
    driver = DispatchDriver(Dispatch(max_waiting=2))
    driver.open()
    for index in range(2):
        driver.ask(0, str(index))
    assert driver.failure(driver.ask(0, "2")).code == "full"


def test_samples_are_seeded_by_who_they_are() -> None:
    driver = DispatchDriver(Dispatch(seed=7))
    driver.open(3)
    driver.route(slots=3)
    driver.ask(3, "12")
    driver.ask(3)
    driver.ask(3, "13", wants=Request(array(TOKENS, [1]), {"sampling_seed": 5}, 4))
    seeds = [start.body["sampling_params"].get("sampling_seed") for start in driver.running.values()]
    assert sorted(seeds, key=str) == sorted([sample_seed(7, 3, 12), 5, None], key=str)


def test_drain_of_an_unknown_or_idle_engine_is_done_at_once(driver: DispatchDriver) -> None:
    assert driver.drain(3) in driver.done
    driver.route(0, incarnation=2)
    assert driver.drain(0, incarnation=1) in driver.done
    assert driver.core.progress().engines == (gateway_messages.EngineLoad(0, 2, 0, 0, 0),), "a drain of the dead does not touch the living"
    assert driver.drain(0, incarnation=2) in driver.done


# ---- properties

ENGINES = 3
_step = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 11)),
    st.tuples(st.just("anonymous"), st.integers(0, 3)),
    st.tuples(st.just("leave"), st.integers(0, 40)),
    st.tuples(st.just("route"), st.integers(0, ENGINES - 1)),
    st.tuples(st.just("publish"), st.integers(0, ENGINES - 1)),
    st.tuples(st.just("unroute"), st.integers(0, ENGINES - 1)),
    st.tuples(st.just("drain"), st.integers(0, ENGINES - 1)),
    st.tuples(st.just("lost"), st.integers(0, ENGINES - 1)),
    st.tuples(st.just("token"), st.integers(0, 40)),
    st.tuples(st.just("finish"), st.integers(0, 40)),
    st.tuples(st.just("break"), st.integers(0, 40)),
    st.tuples(st.just("stale"), st.integers(0, 40)),
    st.tuples(st.just("time"), st.integers(1, 60)),
)


class Histories(DispatchDriver):
    """Engines that make the scripted tokens, and a memory of what was routed."""

    def __init__(self, core: Dispatch) -> None:
        super().__init__(core)
        self.lives = [1] * ENGINES
        self.routed: dict[int, tuple[int, int]] = {}
        self.version = 0
        self.made: dict[int, int] = {}
        self.past: list[int] = []
        self.asked: dict[int, tuple[list[int], dict[str, Any]]] = {}
        self.left: set[int] = set()
        self.streaming: set[int] = set()

    def tell(self, event: Event) -> None:
        before = set(self.running)
        super().tell(event)
        for number, start in self.running.items():
            if number not in before:
                assert self.routed.get(start.engine) == (start.incarnation, self.version), "dispatched off the routes"
                self.made[number] = 0
        self.past += before - set(self.running)
        for rank in range(ENGINES):
            assert sum(start.engine == rank for start in self.running.values()) <= 2, "slots exceeded"

    def step(self, name: str, value: int) -> None:
        attempts = sorted(self.running)
        attempt = attempts[value % len(attempts)] if attempts else None
        match name:
            case "ask" | "anonymous":
                wants = Request(
                    array(TOKENS, [value]), {"sampling_seed": value}, value % 5, fingerprint=value, session=["", "a", "b"][value % 3]
                )
                asker = self.ask(0, str(value) if name == "ask" else None, wants=wants, streams=bool(value % 2))
                self.asked[asker] = ([value], {"sampling_seed": value, "max_new_tokens": value % 5})
                self.streaming |= {asker} if value % 2 else set()
            case "leave" if value < self.askers and value + 1 not in self.outcomes:
                self.left.add(value + 1)
                self.tell(Leave(value + 1))
            case "route" | "publish":
                self.version += name == "publish"
                self.routed[value] = (self.lives[value], self.version)
                self.route(value, self.lives[value], 2, self.version)
            case "unroute" | "drain" | "lost":
                self.routed.pop(value, None)
                kind = {"unroute": gateway_messages.Unroute, "drain": gateway_messages.Drain, "lost": gateway_messages.Lost}[name]
                more = {"version": self.version} if name == "unroute" else {}
                self.order(kind, engine=value, incarnation=self.lives[value], **more)
                self.lives[value] += name == "lost"
            case "token" if attempt is not None:
                self.generate(attempt)
            case "finish" if attempt is not None:
                while self.generate(attempt):
                    pass
                if attempt in self.running:
                    self.end(attempt, ABORTED if attempt in self.aborted and value % 2 else None)
            case "break" if attempt is not None:
                self.end(attempt, Broken("reset", accepted=False))
            case "stale" if self.past:
                self.tell(Tokens(self.past[value % len(self.past)], [1], [0.0]))
                self.tell(Ended(self.past[value % len(self.past)], Finished({"type": "stop"})))
            case "time":
                self.now += value / 10
                self.tell(Tick())
            case _:
                pass

    def generate(self, attempt: int) -> bool:
        """One token; False when the attempt has all of its tokens."""
        body = self.running[attempt].body
        params = body["sampling_params"]
        sequence = list(body["input_ids"])
        for _ in range(self.made[attempt]):
            sequence.append(next_token(params["sampling_seed"], sequence)[0])
        if self.made[attempt] >= params["max_new_tokens"]:
            return False
        self.made[attempt] += 1
        token, logprob = next_token(params["sampling_seed"], sequence)
        self.tell(Tokens(attempt, [token], [logprob]))
        return attempt in self.running


@settings(max_examples=150, deadline=None)
@given(st.lists(_step, max_size=60), st.sampled_from(ON_PUBLISH), st.sampled_from([None, 0, 2]), st.sampled_from([None, 0.5]))
def test_every_sample_is_delivered_once_whatever_happens(
    steps: list[tuple[str, int]], on_publish: OnPublish, lag: int | None, slack: float | None
) -> None:
    driver = Histories(Dispatch(policy=PublishPolicy(on_publish, lag), prefix_slack=slack))
    driver.open(0)
    for name, value in steps:
        driver.step(name, value)
    for rank in range(ENGINES):
        driver.step("publish" if rank == 0 else "route", rank)
    for _ in range(200):
        if not driver.running and driver.core.deadline is None:
            break
        driver.step("finish", 0)
        driver.step("time", 10)
    assert set(driver.outcomes) == set(driver.asked) - driver.left
    assert len(driver.done) == driver.orders, "an order without an answer"
    for asker, (prompt, params) in driver.asked.items():
        if asker in driver.left:
            continue
        if isinstance(failure := driver.outcomes[asker], Failure):  # lives of engines died with it alone, as with a request that kills them
            assert (failure.code, sum(name == "lost" for name, _ in steps) >= MAX_LIVES) == ("request_failed", True)
            continue
        ids, logprobs = expected(prompt, params)
        answer = driver.answer(asker)
        assert (list(answer.ids), list(answer.logprobs)) == (ids, logprobs)
        assert [token for span in answer.spans for token in range(span.start, span.end)] == list(range(len(ids)))
        if asker in driver.grown:
            assert driver.grown[asker] == ids
        versions = {span.version for span in answer.spans}
        if asker not in driver.streaming and (on_publish != "continue" or lag == 0):
            assert len(versions) <= 1, "made by one version"
        elif asker not in driver.streaming and lag is not None:
            assert max(versions, default=0) - min(versions, default=0) <= lag
    waiting, in_flight, _ = driver.progress()[0]
    assert (waiting, in_flight) == (0, 0)
    assert all(load.in_flight == 0 for load in driver.core.progress().engines)


def test_a_parameter_that_engines_do_not_survive_is_refused_before_it_reaches_one() -> None:
    driver = DispatchDriver(Dispatch(refused=("min_p",)))
    driver.route()
    driver.open()
    deadly = driver.ask(0, "0", wants=Request(array(TOKENS, [1]), {"min_p": 0.1}, 4, fingerprint=1))
    assert (driver.failure(deadly).status, driver.failure(deadly).code) == (400, "bad_request")
    assert not driver.running
    driver.ask(0, "1", wants=Request(array(TOKENS, [1]), {"min_p": 0.0}, 4, fingerprint=2))
    assert driver.running

"""The dispatch core without sockets: cases, and properties over random histories."""

from array import array
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.events import Abort, Ask, Broken, Cut, Deliver, Ended, Event, Finished, Grew, Leave, Refused, Start, Tick, Tokens
from engines.gateway.core.publish_policy import ON_PUBLISH, OnPublish, PublishPolicy
from engines.gateway.core.records import LOSING_S, MAX_LIVES, MAX_LOSSES
from engines.gateway.core.samples import TOKENS, Answer, Failure, Mark, Outcome, Request, Span
from tests.harness.scripted_engine import expected, next_token
from trainers.protocol import gateway_messages
from trainers.protocol.gateway_messages import Done
from trainers.protocol.seeds import sample_seed

ABORTED = Finished({"type": "abort", "message": "Aborted"})


def request(prompt: int = 1, limit: int = 4, **more: Any) -> Request:
    return Request(array(TOKENS, [prompt]), {}, limit, fingerprint=hash((prompt, limit)), **more)


def span(engine: int, incarnation: int, version: int, start: int, end: int) -> Span:
    return Span(engine=engine, incarnation=incarnation, version=version, start=start, end=end)


@dataclass
class Bench:
    """A core with a clock, and what it has asked for."""

    core: Dispatch = field(default_factory=Dispatch)
    now: float = 0.0
    orders: int = 0
    askers: int = 0
    running: dict[int, Start] = field(default_factory=dict)
    aborted: list[int] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    grown: dict[int, list[int]] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        for effect in self.core.handle(event, self.now):
            match effect:
                case Start():
                    self.running[effect.attempt] = effect
                case Abort(number):
                    self.aborted.append(number)
                case Cut(number):
                    del self.running[number]
                case Deliver(asker, outcome):
                    assert asker not in self.outcomes, "two outcomes for one asker"
                    self.outcomes[asker] = outcome
                case Grew(asker, ids, _):
                    self.grown.setdefault(asker, []).extend(ids)
                case Done(order):
                    assert order not in self.done, "an order answered twice"
                    self.done.append(order)

    def order(self, kind: type, **fields: Any) -> int:
        self.orders += 1
        self.tell(kind(order=self.orders, **fields))
        return self.orders

    def route(self, engine: int = 0, incarnation: int = 1, slots: int = 2, version: int = 0) -> int:
        return self.order(gateway_messages.Route, engine=engine, incarnation=incarnation, url="u", key="k", slots=slots, version=version)

    def drain(self, engine: int = 0, incarnation: int = 1) -> int:
        return self.order(gateway_messages.Drain, engine=engine, incarnation=incarnation)

    def lost(self, engine: int = 0, incarnation: int = 1) -> int:
        return self.order(gateway_messages.Lost, engine=engine, incarnation=incarnation)

    def open(self, rollout: int = 0, target: int = 8) -> int:
        return self.order(gateway_messages.OpenRollout, rollout=rollout, target=target)

    def close(self, rollout: int = 0) -> int:
        return self.order(gateway_messages.CloseRollout, rollout=rollout)

    def ask(self, rollout: int | None = None, token: str | None = None, *, wants: Request | None = None, streams: bool = False) -> int:
        self.askers += 1
        self.tell(Ask(asker=self.askers, rollout=rollout, token=token, request=wants or request(), streams=streams))
        return self.askers

    def make(self, attempt: int, *ids: int, label: str = "") -> None:
        marks = (Mark(label, 0, len(ids)),) if label else ()
        self.tell(Tokens(attempt, list(ids), [-0.5] * len(ids), marks=marks))

    def end(self, attempt: int, how: Any = None) -> None:
        self.running.pop(attempt, None)
        self.tell(Ended(attempt, how or Finished({"type": "length", "length": 4})))

    def only(self) -> int:
        (attempt,) = self.running
        return attempt

    def answer(self, asker: int) -> Answer:
        outcome = self.outcomes[asker]
        assert isinstance(outcome, Answer)
        return outcome

    def failure(self, asker: int) -> Failure:
        outcome = self.outcomes[asker]
        assert isinstance(outcome, Failure)
        return outcome

    def progress(self) -> dict[int, tuple[int, int, int]]:
        return {r.rollout: (r.waiting, r.in_flight, r.done) for r in self.core.progress().rollouts}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_waits_for_a_route_and_then_runs(bench: Bench) -> None:
    bench.open()
    asker = bench.ask(0, "0")
    assert bench.progress() == {0: (1, 0, 0)}
    assert not bench.running
    bench.route(version=3)
    attempt = bench.only()
    assert bench.progress() == {0: (0, 1, 0)}
    bench.make(attempt, 5, 6, 7, 8)
    bench.end(attempt)
    assert list(bench.answer(asker).ids) == [5, 6, 7, 8]
    assert bench.answer(asker).spans == (span(0, 1, 3, 0, 4),)
    assert bench.progress() == {0: (0, 0, 1)}
    assert bench.core.progress().engines[0].completed == 1


def test_never_more_than_slots_and_to_the_least_loaded(bench: Bench) -> None:
    bench.open()
    bench.route(0, slots=2)
    bench.route(1, slots=4)
    for index in range(8):
        bench.ask(0, str(index))
    assert [start.engine for start in bench.running.values()] == [0, 1, 1, 0, 1, 1]
    assert bench.progress() == {0: (2, 6, 0)}


def test_index_order_and_the_longest_expected_first(bench: Bench) -> None:
    bench.open()
    for index in (2, 0, 1):
        bench.ask(0, str(index), wants=request(index))
    for index in (10, 11):
        bench.ask(0, str(index), wants=request(index, limit=64, expected_tokens=index))
    bench.route(slots=5)
    assert [start.body["input_ids"] for start in bench.running.values()] == [[11], [10], [0], [1], [2]]


def test_a_drained_request_goes_on_elsewhere_with_its_tokens(bench: Bench) -> None:
    bench.open()
    bench.route(0, version=1)
    asker = bench.ask(0, "0")
    first = bench.only()
    bench.make(first, 5, 6)
    drained = bench.drain(0)
    assert bench.aborted == [first]
    assert drained not in bench.done
    bench.route(1, incarnation=4, version=2)
    assert not [start for start in bench.running.values() if start.engine == 1]
    bench.end(first, ABORTED)
    assert drained in bench.done
    second = bench.only()
    assert bench.running[second].body["input_ids"] == [1, 5, 6]
    assert bench.running[second].body["sampling_params"]["max_new_tokens"] == 2
    bench.make(second, 7, 8)
    bench.end(second, Finished({"type": "length", "length": 2}))
    assert list(bench.answer(asker).ids) == [5, 6, 7, 8]
    assert bench.answer(asker).finish_reason == {"type": "length", "length": 4}
    assert bench.answer(asker).spans == (span(0, 1, 1, 0, 2), span(1, 4, 2, 2, 4))


def test_tokens_of_a_lost_engine_are_kept_and_its_late_answers_are_not(bench: Bench) -> None:
    bench.open()
    bench.route(0)
    asker = bench.ask(0, "0")
    first = bench.only()
    bench.make(first, 5)
    bench.lost(0)
    assert not bench.running
    bench.make(first, 99)
    bench.tell(Ended(first, Finished({"type": "stop"})))
    bench.route(0, incarnation=2)
    second = bench.only()
    assert bench.running[second].body["input_ids"] == [1, 5]
    bench.make(second, 6, 7, 8)
    bench.end(second)
    assert list(bench.answer(asker).ids) == [5, 6, 7, 8]
    assert [span.incarnation for span in bench.answer(asker).spans] == [1, 2]


def test_a_new_incarnation_in_a_route_is_the_loss_of_the_old(bench: Bench) -> None:
    bench.open()
    bench.route(0)
    bench.ask(0, "0")
    first = bench.only()
    bench.route(0, incarnation=2)
    assert bench.only() != first
    assert bench.core.progress().engines == (gateway_messages.EngineLoad(0, 2, 1, 0, 0),)


def test_no_request_goes_to_an_older_version_or_an_unrouted_engine(bench: Bench) -> None:
    bench.open()
    bench.route(0, version=1)
    bench.route(1, version=2)
    for index in range(4):
        bench.ask(0, str(index))
    assert {start.engine for start in bench.running.values()} == {1}
    bench.order(gateway_messages.Unroute, engine=1, incarnation=1)
    bench.end(bench.only() if len(bench.running) == 1 else next(iter(bench.running)))
    assert len(bench.running) == 1
    bench.route(0, version=2)
    assert {start.engine for start in bench.running.values()} == {0, 1}


def test_weights_that_change_under_a_request_make_a_second_span(bench: Bench) -> None:
    bench.open()
    bench.route(version=1)
    asker = bench.ask(0, "0")
    attempt = bench.only()
    bench.tell(Tokens(attempt, [5, 6], [0.0, 0.0], marks=(Mark("default", 0, 2),)))
    bench.order(gateway_messages.Unroute, engine=0, incarnation=1)
    bench.tell(Tokens(attempt, [7, 8], [0.0, 0.0], marks=(Mark("default", 0, 3), Mark("2", 3, 4))))
    bench.end(attempt)
    assert bench.answer(asker).spans == (span(0, 1, 1, 0, 3), span(0, 1, 2, 3, 4))


def test_a_repeated_sample_joins_or_gets_the_stored_answer(bench: Bench) -> None:
    bench.open()
    bench.route()
    one, two = bench.ask(0, "0"), bench.ask(0, "0", streams=True)
    attempt = bench.only()
    bench.make(attempt, 5, 6)
    three = bench.ask(0, "0", streams=True)
    assert bench.grown == {two: [5, 6], three: [5, 6]}
    bench.make(attempt, 7, 8)
    bench.end(attempt)
    four = bench.ask(0, "0")
    assert len({id(bench.answer(asker)) for asker in (one, two, three, four)}) == 1
    assert bench.progress() == {0: (0, 0, 1)}
    other = bench.ask(0, "0", wants=request(2))
    assert bench.failure(other).code == "sample_mismatch"


def test_a_client_that_leaves_frees_its_slot_unless_another_has_joined(bench: Bench) -> None:
    bench.open()
    bench.route(slots=1)
    one, two, three = bench.ask(0, "0"), bench.ask(0, "0"), bench.ask(0, "1")
    first = bench.only()
    bench.tell(Leave(one))
    assert not bench.aborted
    bench.tell(Leave(two))
    assert bench.aborted == [first]
    assert bench.progress() == {0: (1, 0, 0)}
    bench.end(first, ABORTED)
    bench.make(bench.only(), 9)
    bench.end(bench.only())
    assert set(bench.outcomes) == {three}


def test_close_returns_what_there_is(bench: Bench) -> None:
    bench.open()
    bench.route(slots=1)
    runs, waits = bench.ask(0, "0"), bench.ask(0, "1")
    first = bench.only()
    bench.make(first, 5, 6)
    closed = bench.close()
    assert bench.answer(waits).finish_reason["type"] == "abort"
    assert not bench.answer(waits).ids
    assert closed not in bench.done
    assert bench.progress() == {}
    bench.end(first, ABORTED)
    assert closed in bench.done
    assert list(bench.answer(runs).ids) == [5, 6]
    assert bench.answer(runs).finish_reason["type"] == "abort"
    assert bench.answer(bench.ask(0, "0")) is bench.answer(runs)
    assert bench.failure(bench.ask(0, "7")).code == "rollout_closed"


def test_a_finish_that_races_with_the_close_is_complete(bench: Bench) -> None:
    bench.open()
    bench.route()
    asker = bench.ask(0, "0")
    bench.make(bench.only(), 5, 6, 7, 8)
    bench.close()
    bench.end(bench.only())
    assert bench.answer(asker).finish_reason["type"] == "length"


def test_an_engine_that_does_not_answer_an_abort_is_cut_off(bench: Bench) -> None:
    bench.open()
    bench.route(0)
    bench.ask(0, "0")
    bench.make(bench.only(), 5)
    drained = bench.drain(0)
    assert bench.core.deadline == pytest.approx(5.0)
    bench.now = 5.0
    bench.tell(Tick())
    assert drained in bench.done
    assert not bench.running
    bench.route(1)
    assert bench.running[bench.only()].body["input_ids"] == [1, 5]


def test_an_abort_that_overtakes_the_end_is_the_end() -> None:
    bench = Bench(Dispatch(eos=frozenset({2})))
    bench.open()
    bench.route(0)
    ends, full = bench.ask(0, "0"), bench.ask(0, "1")
    first, second = bench.running
    bench.make(first, 5, 2)
    bench.make(second, 5, 6, 7, 8)
    bench.drain(0)
    bench.end(first, ABORTED)
    bench.end(second, ABORTED)
    assert bench.answer(ends).finish_reason == {"type": "stop", "matched": 2}
    assert bench.answer(full).finish_reason == {"type": "length", "length": 4}


def test_a_stop_string_across_the_seam_is_seen() -> None:
    bench = Bench(Dispatch(decode=lambda ids: "".join(chr(96 + token) for token in ids)))
    bench.open()
    bench.route(0)
    asker = bench.ask(0, "0", wants=request(limit=9, stops=("cd",)), streams=True)
    bench.make(bench.only(), 1, 2, 3)
    bench.lost(0)
    bench.route(0, incarnation=2)
    bench.make(bench.only(), 4, 5)
    assert list(bench.answer(asker).ids) == [1, 2, 3, 4]
    assert bench.grown[asker] == [1, 2, 3, 4]
    assert bench.answer(asker).finish_reason == {"type": "stop", "matched": "cd"}
    assert bench.answer(asker).spans == (span(0, 1, 0, 0, 3), span(0, 2, 0, 3, 4))
    assert bench.aborted == [bench.only()]


def test_what_cannot_be_put_together_is_redone_from_the_prompt(bench: Bench) -> None:
    bench.open()
    bench.route(0)
    asker = bench.ask(0, "0", wants=request(atomic=True), streams=True)
    bench.make(bench.only(), 5, 6)
    bench.lost(0)
    bench.route(0, incarnation=2)
    assert bench.running[bench.only()].body["input_ids"] == [1]
    bench.make(bench.only(), 5, 6, 7, 8)
    bench.end(bench.only(), Finished({"type": "length", "length": 4}, {"output_top_logprobs": [1]}))
    assert bench.answer(asker).meta == {"output_top_logprobs": [1]}
    assert bench.answer(asker).spans == (span(0, 2, 0, 0, 4),)
    assert not bench.grown


def test_an_abort_by_somebody_else_is_continued(bench: Bench) -> None:
    bench.open()
    bench.route(0)
    bench.ask(0, "0")
    bench.make(bench.only(), 5)
    bench.end(bench.only(), ABORTED)
    assert not bench.running
    due = bench.core.deadline
    assert due is not None
    bench.now = due
    bench.tell(Tick())
    assert bench.running[bench.only()].body["input_ids"] == [1, 5]


def test_a_broken_engine_rests_and_its_requests_go_elsewhere(bench: Bench) -> None:
    bench.open()
    bench.route(0)
    bench.ask(0, "0")
    bench.end(bench.only(), Broken("reset", accepted=False))
    assert not bench.running
    assert bench.core.progress().engines[0].failures == 1
    bench.route(1)
    assert bench.running[bench.only()].engine == 1


def test_f16_no_room_is_no_failure(bench: Bench) -> None:
    """429 and 503 say: not now. They make no streak, after which a canary would be sent."""
    bench.open()
    bench.route(0)
    bench.ask(0, "0")
    for _ in range(5):
        bench.end(bench.only(), Broken("HTTP 503: full", accepted=False, busy=True))
        assert bench.core.progress().engines[0].failures == 0
        bench.now += 60.0
        bench.tell(Tick())
    bench.end(bench.only(), Broken("reset", accepted=False))
    assert bench.core.progress().engines[0].failures == 1


def test_a_request_that_kills_engines_is_reported_failed(bench: Bench) -> None:
    bench.open()
    asker = bench.ask(0, "0")
    for life in range(MAX_LIVES):
        assert asker not in bench.outcomes
        bench.route(0, incarnation=life + 1)
        bench.end(bench.only(), Broken("reset", accepted=True, died=True))
    assert bench.failure(asker).code == "request_failed"


def test_a_request_that_an_engine_answers_with_errors_is_reported_failed(bench: Bench) -> None:
    bench.open()
    asker = bench.ask(0, "0")
    for _ in range(MAX_LOSSES + 1):
        assert asker not in bench.outcomes
        bench.route(0)
        bench.now += LOSING_S / MAX_LOSSES
        bench.end(bench.only(), Broken("HTTP 500", accepted=True))
    assert bench.failure(asker).code == "request_failed"


@pytest.mark.parametrize("seen", ["reset", "lost", "replaced"])
def test_a_request_that_kills_engines_costs_itself_alone(bench: Bench, seen: str) -> None:
    """Whichever way the gateway hears of the deaths: four are in flight, one of them kills; two lives, and three answers."""
    bench.open()
    askers = [bench.ask(0, str(index), wants=request(index)) for index in range(4)]
    poison, lives = 2, 1
    bench.route(0, slots=4)
    while len(bench.outcomes) < 4:
        fatal = [number for number, start in bench.running.items() if start.body["input_ids"][0] == poison]
        if not fatal:
            for number in tuple(bench.running):
                bench.make(number, 7)
            for number in tuple(bench.running) if not bench.core.engines.on_trial else ():
                bench.end(number)
            continue
        lives += 1
        assert lives <= 1 + MAX_LIVES, "more lives than that cost"
        match seen:
            case "reset":
                for number in tuple(bench.running):
                    bench.end(number, Broken("reset", accepted=True, died=True))
            case "lost":
                bench.lost(0, lives - 1)
        bench.now += 60.0
        bench.route(0, lives, slots=4)
    assert bench.failure(askers[poison]).code == "request_failed"
    assert all(bench.answer(asker) for index, asker in enumerate(askers) if index != poison)
    assert lives == 1 + MAX_LIVES


def test_a_suspect_runs_beside_those_that_have_made_tokens_and_others_wait_for_its_first(bench: Bench) -> None:
    bench.open()
    bench.route(0, slots=8)
    first, second = bench.ask(0, "0", wants=request(10)), bench.ask(0, "1", wants=request(11))
    talks, silent = bench.running
    bench.make(talks, 7)
    bench.lost(0)
    bench.ask(0, "2", wants=request(12))
    bench.route(0, incarnation=2, slots=8)
    assert [start.body["input_ids"][0] for start in bench.running.values()] == [11], "the one that had made no token, alone"
    trial = bench.only()
    bench.make(trial, 7)
    assert sorted(start.body["input_ids"] for start in bench.running.values()) == [[10, 7], [11], [12]]
    for number in tuple(bench.running):
        bench.make(number, 7, 7, 7, 7)
        bench.end(number)
    assert bench.answer(first) is not bench.answer(second)
    assert silent != trial


def test_an_engine_on_trial_holds_up_no_other(bench: Bench) -> None:
    bench.open()
    bench.route(0, slots=8)
    bench.ask(0, "0", wants=request(10))
    bench.lost(0)
    bench.route(0, incarnation=2, slots=8)
    bench.route(1, slots=2)
    for index in (1, 2, 3):
        bench.ask(0, str(index), wants=request(index))
    assert sorted((start.engine, start.body["input_ids"][0]) for start in bench.running.values()) == [(0, 10), (1, 1), (1, 2)]
    bench.make(next(number for number, start in bench.running.items() if start.engine == 0), 7)
    assert (0, 3) in [(start.engine, start.body["input_ids"][0]) for start in bench.running.values()]


def test_refused_requests_fail_at_once(bench: Bench) -> None:
    bench.open()
    bench.route()
    asker = bench.ask(0, "0")
    bench.end(bench.only(), Refused(400, "too long"))
    assert bench.failure(asker) == Failure(400, "bad_request", "too long")
    assert bench.progress() == {0: (0, 0, 1)}


def test_an_implicit_rollout_opens_and_closes_itself(bench: Bench) -> None:
    asker = bench.ask()
    assert bench.progress() == {-1: (1, 0, 0)}
    bench.now = 100.0
    bench.tell(Tick())
    assert bench.progress() == {-1: (1, 0, 0)}, "it stays open while something waits"
    bench.route()
    bench.end(bench.only())
    assert asker in bench.outcomes
    assert bench.core.deadline == 105.0
    bench.now = 105.0
    bench.tell(Tick())
    assert bench.progress() == {}
    bench.ask()
    assert list(bench.progress()) == [-2]


def test_a_request_without_a_rollout_belongs_to_the_oldest_open_one(bench: Bench) -> None:
    bench.ask()
    bench.open(3)
    bench.open(4)
    bench.ask()
    assert bench.progress() == {-1: (1, 0, 0), 3: (1, 0, 0), 4: (0, 0, 0)}


def test_a_rollout_may_be_named_a_little_before_it_opens(bench: Bench) -> None:
    bench.route()
    early, never = bench.ask(5, "0"), bench.ask(6, "0")
    assert not bench.running
    bench.open(5)
    bench.end(bench.only())
    assert early in bench.outcomes
    bench.now = 8.0
    bench.tell(Tick())
    assert bench.failure(never).code == "rollout_unknown"
    bench.close(5)
    assert bench.failure(bench.ask(4, "0")).code == "rollout_closed"


def test_answers_are_kept_until_the_next_but_one_rollout_opens(bench: Bench) -> None:
    bench.route()
    bench.open(0)
    bench.ask(0, "0")
    bench.end(bench.only())
    bench.close(0)
    bench.open(1)
    assert list(bench.answer(bench.ask(0, "0")).ids) == []
    bench.close(1)
    bench.open(2)
    assert bench.failure(bench.ask(0, "0")).code == "rollout_closed"


def test_forget_ends_everything_of_a_trainers_life(bench: Bench) -> None:
    bench.route()
    bench.open(0)
    done = bench.ask(0, "0")
    bench.end(bench.only())
    runs = bench.ask(0, "1")
    old = bench.only()
    bench.order(gateway_messages.Forget)
    assert bench.failure(runs).code == "rollout_closed"
    assert bench.aborted == [old]
    bench.open(0)
    again = bench.ask(0, "0")
    bench.end(old, ABORTED)
    bench.make(bench.only(), 9)
    bench.end(bench.only())
    assert list(bench.answer(again).ids) == [9]
    assert not bench.answer(done).ids


def test_hopeless_is_a_typed_503_until_it_is_taken_back(bench: Bench) -> None:
    bench.open()
    waits = bench.ask(0, "0")
    bench.order(gateway_messages.Hopeless, reason="retired")
    assert bench.failure(waits) == Failure(503, "no_engine", "retired")
    assert bench.failure(bench.ask(0, "1")).status == 503
    bench.order(gateway_messages.Hopeless, reason="")
    bench.ask(0, "0")
    bench.route()
    assert bench.running


def test_too_many_waiting_is_a_typed_503() -> None:
    bench = Bench(Dispatch(max_waiting=2))
    bench.open()
    for index in range(2):
        bench.ask(0, str(index))
    assert bench.failure(bench.ask(0, "2")).code == "full"


def test_samples_are_seeded_by_who_they_are() -> None:
    bench = Bench(Dispatch(seed=7))
    bench.open(3)
    bench.route(slots=3)
    bench.ask(3, "12")
    bench.ask(3)
    bench.ask(3, "13", wants=Request(array(TOKENS, [1]), {"sampling_seed": 5}, 4))
    seeds = [start.body["sampling_params"].get("sampling_seed") for start in bench.running.values()]
    assert sorted(seeds, key=str) == sorted([sample_seed(7, 3, 12), 5, None], key=str)


def test_drain_of_an_unknown_or_idle_engine_is_done_at_once(bench: Bench) -> None:
    assert bench.drain(3) in bench.done
    bench.route(0, incarnation=2)
    assert bench.drain(0, incarnation=1) in bench.done
    assert bench.core.progress().engines == (gateway_messages.EngineLoad(0, 2, 0, 0, 0),), "a drain of the dead does not touch the living"
    assert bench.drain(0, incarnation=2) in bench.done


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


class Histories(Bench):
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
    bench = Histories(Dispatch(policy=PublishPolicy(on_publish, lag), prefix_slack=slack))
    bench.open(0)
    for name, value in steps:
        bench.step(name, value)
    for rank in range(ENGINES):
        bench.step("publish" if rank == 0 else "route", rank)
    for _ in range(200):
        if not bench.running and bench.core.deadline is None:
            break
        bench.step("finish", 0)
        bench.step("time", 10)
    assert set(bench.outcomes) == set(bench.asked) - bench.left
    assert len(bench.done) == bench.orders, "an order without an answer"
    for asker, (prompt, params) in bench.asked.items():
        if asker in bench.left:
            continue
        ids, logprobs = expected(prompt, params)
        answer = bench.answer(asker)
        assert (list(answer.ids), list(answer.logprobs)) == (ids, logprobs)
        assert [token for span in answer.spans for token in range(span.start, span.end)] == list(range(len(ids)))
        if asker in bench.grown:
            assert bench.grown[asker] == ids
        versions = {span.version for span in answer.spans}
        if asker not in bench.streaming and (on_publish != "continue" or lag == 0):
            assert len(versions) <= 1, "made by one version"
        elif asker not in bench.streaming and lag is not None:
            assert max(versions, default=0) - min(versions, default=0) <= lag
    waiting, in_flight, _ = bench.progress()[0]
    assert (waiting, in_flight) == (0, 0)
    assert all(load.in_flight == 0 for load in bench.core.progress().engines)

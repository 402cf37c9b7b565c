"""The health policy in invented time: what it asks when, and what it takes for an end. Names F… are those of the catalogue of failures."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.lifecycle.health import Diagnosis, Health, Kind, Look, Mode, Outcome, Probe, Rates
from tests.harness.defaults import default_rates
from trainers.protocol.ids import EngineId, Incarnation, PipelineId

RATES = default_rates()
LIFE = Incarnation(1)


def engine(rank: int = 0) -> EngineId:
    return EngineId(PipelineId("p1"), rank)


class Box:
    """Some engines in invented time: `sick` maps an engine to the kinds of probe that fail, each at the end of its limit."""

    def __init__(self, count: int = 1, rates: Rates = RATES, mode: Mode = Mode.SERVING) -> None:
        self.health, self.rates = Health(rates), rates
        self.now = 0.0
        self.looks = {engine(rank): Look(LIFE, mode, 0.0) for rank in range(count)}
        self.sick: dict[EngineId, dict[Kind, float]] = {}
        self.full = False
        self.running: list[tuple[float, Probe]] = []
        self.asked: list[Probe] = []
        self.outcomes: list[tuple[float, Outcome]] = []
        self.most = 0

    def change(self, rank: int = 0, **fields: object) -> None:
        self.looks[engine(rank)] = replace(self.looks[engine(rank)], **fields)  # type: ignore[arg-type]

    def fail(self, *kinds: Kind, rank: int = 0, after: float | None = None) -> None:
        """From now on these probes fail: `after` so many seconds, or at the end of their limit."""
        self.sick[engine(rank)] = {kind: self.rates.within(kind) if after is None else after for kind in kinds}

    def run(self, seconds: float, step: float = 0.5) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for due, probe in [entry for entry in self.running if entry[0] <= self.now]:
                self.running.remove((due, probe))
                problem: str | None = "no answer" if probe.kind in self.sick.get(probe.engine, {}) else ""
                problem = None if self.full and probe.kind is Kind.CANARY else problem
                outcome = self.health.ended(probe, problem, self.looks.get(probe.engine), self.now)
                if outcome is not None:
                    self.outcomes.append((self.now, outcome))
            for probe in self.health.look(self.looks, self.now):
                self.asked.append(probe)
                self.running.append((self.now + self.sick.get(probe.engine, {}).get(probe.kind, 0.01), probe))
                for other in self.looks:
                    self.most = max(self.most, sum(entry[1].engine == other for entry in self.running))

    def condemned(self, rank: int = 0) -> float | None:
        return next((at for at, o in self.outcomes if o.diagnosis is Diagnosis.CONDEMNED and o.engine == engine(rank)), None)

    def kinds(self, rank: int = 0) -> list[Kind]:
        return [probe.kind for probe in self.asked if probe.engine == engine(rank)]


def test_a_hung_process_is_condemned_within_its_budget() -> None:
    box = Box()
    box.run(60)
    began = box.now
    box.fail(*Kind)
    box.run(100)
    at = box.condemned()
    assert at is not None
    assert at - began <= RATES.liveness_failures * (RATES.liveness_every + RATES.liveness_within) + 3


def test_a_process_that_answers_but_computes_nothing_is_condemned_within_its_budget() -> None:
    box = Box()
    box.fail(Kind.PROGRESS)
    box.run(400)
    at = box.condemned()
    assert at is not None
    assert at <= RATES.progress_failures * (RATES.progress_every + RATES.progress_within) + 3


def test_f1_a_minute_of_503_in_a_long_prefill_condemns_nobody() -> None:
    box = Box()
    box.change(in_flight=1)
    box.fail(Kind.PROGRESS, after=20.0)  # SGLang gives up itself, with 503
    box.run(60)
    box.sick.clear()
    box.change(evidence=1)
    box.run(300)
    assert box.condemned() is None
    assert any(outcome.diagnosis is Diagnosis.SUSPECT for _, outcome in box.outcomes)


def test_f1_blips_below_the_threshold_condemn_nobody() -> None:
    box = Box()
    for _ in range(20):
        box.fail(*Kind)
        box.run(RATES.liveness_failures * (RATES.liveness_every + RATES.liveness_within) - 12)
        box.sick.clear()
        box.run(70)
    assert box.condemned() is None


def test_f2_health_is_green_and_requests_fail() -> None:
    box = Box()
    box.change(failures=RATES.request_failures, in_flight=1)
    box.fail(Kind.CANARY)
    box.run(60)
    at = box.condemned()
    assert at is not None
    assert at <= RATES.canary_within + 2
    assert "requests failed in a row" in box.outcomes[-1][1].reason


def test_f2_health_is_green_and_requests_hang() -> None:
    box = Box()
    box.change(in_flight=4)
    box.fail(Kind.CANARY)
    box.run(400)
    at = box.condemned()
    assert at is not None
    assert RATES.silence < at <= RATES.silence + RATES.canary_within + 2


def test_only_a_generation_clears_the_streak_of_requests() -> None:
    box = Box()
    box.change(failures=RATES.request_failures)
    box.run(200)  # the probes are green all the time; the canary, which is green too, is asked once and settles it
    assert box.kinds().count(Kind.CANARY) == 1
    box.change(failures=RATES.request_failures + 1)
    box.run(10)
    assert box.kinds().count(Kind.CANARY) == 2
    assert box.condemned() is None


def test_f2_a_canary_that_finds_no_room_proves_nothing() -> None:
    """Neither that the engine is well, nor that it is not: it is asked again, not all the time, until one is answered."""
    box = Box()
    box.full = True
    box.change(failures=3)
    box.run(60)
    assert box.condemned() is None
    assert 60 / RATES.liveness_every - 3 <= box.kinds().count(Kind.CANARY) <= 60 / RATES.liveness_every + 1
    box.full = False
    box.fail(Kind.CANARY)
    box.run(60)
    assert box.condemned() is not None, "the streak stood"


def test_f2_a_canary_that_finds_no_room_where_no_token_comes_out_is_a_failure() -> None:
    box = Box()
    box.full = True
    box.change(in_flight=8)
    box.run(RATES.silence + 60)
    at = box.condemned()
    assert at is not None
    assert at >= RATES.silence


def test_f2_the_interval_is_longer_than_the_servers_own_window() -> None:
    assert RATES.progress_every > 20.0
    assert RATES.progress_within > 20.0


def test_f3_one_probe_at_a_time_and_from_its_end_to_the_next() -> None:
    box = Box()
    box.fail(*Kind)
    box.run(30)
    assert box.most == 1
    starts = [probe.began for probe in box.asked]
    assert all(later - earlier >= RATES.liveness_every + RATES.liveness_within for earlier, later in itertools.pairwise(starts))


def test_f4_a_limit_below_the_servers_second_is_never_the_default() -> None:
    assert RATES.within(Kind.PROGRESS) >= 2.0


def test_f10_nothing_is_asked_while_a_control_call_runs() -> None:
    box = Box(mode=Mode.QUIET)
    box.fail(*Kind)
    box.run(1000)
    assert box.asked == []


def test_f10_a_result_from_across_a_change_of_state_is_dropped() -> None:
    box = Box()
    box.fail(*Kind)
    for turn in range(40):  # each probe begins in one period of serving and ends in the next
        box.run(2.0)
        box.change(mode=Mode.QUIET, epoch=float(turn) + 0.5)
        box.run(1.0)
        box.change(mode=Mode.SERVING, epoch=float(turn) + 1.0)
    assert box.asked
    assert box.outcomes == []


def test_f10_a_result_of_another_life_is_dropped() -> None:
    box = Box()
    box.fail(*Kind)
    for life in range(2, 30):
        box.run(9.0)
        box.change(incarnation=Incarnation(life))
    assert box.asked
    assert box.outcomes == []


def test_f13_short_phases_are_probed_all_the_same() -> None:
    box = Box()
    for turn in range(10):
        box.change(mode=Mode.SERVING, epoch=turn + 0.0)
        box.run(10.0)
        box.change(mode=Mode.QUIET, epoch=turn + 0.5)
        box.run(10.0)
    assert Kind.PROGRESS in box.kinds()
    assert box.kinds().count(Kind.LIVENESS) >= 5


def test_f14_after_a_failed_load_probing_goes_on_by_itself() -> None:
    """Nobody has to undo a pause; neither has the probe that was under way when the load began."""
    box = Box()
    box.fail(*Kind)
    box.run(6)
    assert len(box.running) == 1
    box.change(mode=Mode.QUIET, epoch=6.0)
    box.run(100)
    assert len(box.asked) == 1
    box.change(mode=Mode.SERVING, epoch=106.0)
    box.run(1)
    assert len(box.asked) == 2


def test_f15_many_hung_engines_are_found_in_the_time_of_one() -> None:
    box = Box(64)
    for rank in range(20):
        box.fail(*Kind, rank=rank)
    box.run(60)
    times = [box.condemned(rank) for rank in range(20)]
    assert all(at is not None and at <= 43 for at in times)
    assert all(box.condemned(rank) is None for rank in range(20, 64))


def test_f21_a_streak_dies_with_its_engine() -> None:
    box = Box()
    box.fail(*Kind)
    box.run(35)  # one failure short
    box.change(incarnation=Incarnation(2))
    box.run(29)
    assert box.condemned() is None


def test_f21_a_change_of_weights_launders_no_suspect() -> None:
    box = Box()
    box.fail(*Kind)
    box.run(31)
    box.change(mode=Mode.QUIET, epoch=1.0)
    box.run(2)
    box.change(mode=Mode.SERVING, epoch=2.0)
    box.run(21)
    assert box.condemned() is not None


def test_f24_what_failed_while_our_own_loop_was_late_does_not_count() -> None:
    box = Box()
    box.fail(*Kind)
    for _ in range(100):
        box.run(2.0)
        box.health.lagged(box.now)
    assert box.condemned() is None


def test_all_probes_fail_once_and_nobody_is_killed() -> None:
    """The mass guard: the network of the box was away until just before the threshold of the slowest."""
    box = Box(8)
    for rank in range(8):
        box.fail(*Kind, rank=rank)
    box.run(41)  # the fourth failure of each is a moment old
    assert box.outcomes
    box.sick.clear()
    box.run(100)
    assert [box.condemned(rank) for rank in range(8)] == [None] * 8


def test_several_engines_that_are_truly_dead_cost_one_probe_more() -> None:
    box = Box(2)
    for rank in range(2):
        box.fail(*Kind, rank=rank)
    box.run(60)
    for rank in range(2):
        at = box.condemned(rank)
        assert at is not None
        assert at <= 4 * 10 + RATES.liveness_within + 3


def test_tokens_are_the_better_probe() -> None:
    box = Box()
    for count in range(1, 400):
        box.change(evidence=count, in_flight=2)
        box.run(1.0)
    assert box.asked == []


def test_tokens_outweigh_a_probe_that_fails() -> None:
    box = Box(rates=replace(RATES, liveness_failures=1, progress_failures=1))
    box.fail(*Kind)
    for count in range(1, 60):
        box.run(9.0)
        box.change(evidence=count)
    assert box.condemned() is None


def test_a_gateway_that_begins_to_count_anew_is_no_sign_of_life() -> None:
    box = Box()
    box.change(evidence=1000)
    box.run(1.0)
    box.fail(*Kind)
    box.change(evidence=0)
    box.run(50)
    assert box.condemned() is not None


def test_a_sleeping_engine_is_asked_for_its_state_only() -> None:
    box = Box(mode=Mode.ASLEEP)
    box.run(300)
    assert set(box.kinds()) == {Kind.ASLEEP}
    box.fail(Kind.ASLEEP)
    box.run(300)
    assert box.condemned() is not None


def test_a_verdict_is_told_once() -> None:
    box = Box()
    box.fail(*Kind)
    box.run(1000)
    assert sum(outcome.diagnosis is Diagnosis.CONDEMNED for _, outcome in box.outcomes) == 1


def test_a_suspect_that_answers_again_is_well() -> None:
    box = Box()
    box.fail(*Kind)
    box.run(12)
    box.sick.clear()
    box.run(12)
    assert [outcome.diagnosis for _, outcome in box.outcomes] == [Diagnosis.SUSPECT, Diagnosis.WELL]


def test_an_engine_that_is_gone_is_forgotten() -> None:
    box = Box()
    box.fail(*Kind)
    box.run(6)
    box.looks.clear()
    box.run(100)
    assert box.outcomes == []


@pytest.mark.parametrize("name", ["XTuner", "slime"])
def test_we_are_faster_than_the_incumbents_constants_and_do_not_kill_the_slow(name: str) -> None:
    """30/15/3 with a first wait after each resume, and 30/30/1: replayed by their arithmetic, against ours."""
    theirs = {"XTuner": 30 + 3 * 30 + 3 * 15, "slime": 30 + 30}[name]
    hung = Box()
    hung.fail(*Kind)
    hung.run(200)
    at = hung.condemned()
    assert at is not None
    assert at <= 43 < theirs


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(Mode)), st.floats(0.1, 40), st.booleans(), st.integers(0, 2), st.integers(0, 5)),
        min_size=1,
        max_size=30,
    )
)
def test_whatever_happens_one_probe_at_a_time_of_the_right_kind(script: list[tuple[Mode, float, bool, int, int]]) -> None:
    box = Box(3)
    for turn, (mode, seconds, sick, rank, failures) in enumerate(script):
        box.change(rank, mode=mode, epoch=turn + 1.0, failures=failures)
        if sick:
            box.fail(*Kind, rank=rank)
        else:
            box.sick.pop(engine(rank), None)
        before = len(box.asked)
        modes = {id_: look.mode for id_, look in box.looks.items()}
        box.run(seconds)
        for probe in box.asked[before:]:
            assert modes[probe.engine] is (Mode.ASLEEP if probe.kind is Kind.ASLEEP else Mode.SERVING)
    assert box.most <= 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 28.0), st.sampled_from([Kind.LIVENESS, Kind.PROGRESS, None])), min_size=1, max_size=30))
def test_whoever_makes_tokens_is_never_condemned(script: list[tuple[float, Kind | None]]) -> None:
    box = Box()
    for count, (seconds, kind) in enumerate(script):
        if kind is not None:
            box.fail(kind)
        else:
            box.sick.clear()
        box.run(seconds)
        box.change(evidence=count + 1)
    assert box.condemned() is None

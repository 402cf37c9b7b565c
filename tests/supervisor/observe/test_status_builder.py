"""The scheduler's records as an operator reads them: what is waited for says who has it or what to do, and old news is old."""

from typing import Any

import pytest

from supervisor.host.gpus.emptiness import Usage
from supervisor.host.gpus.meter import Gpu
from supervisor.observe import status_builder
from supervisor.observe.status import PipelineView, Status
from supervisor.observe.status_builder import Constants
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from tests.harness.scheduler_bench import Bench, one, serving, spec
from trainers.protocol import trainer_messages as say
from trainers.protocol.ids import EngineId, GatewayId, GpuId, PipelineId, TrainerId

A = PipelineId("a")
TRAINER, GATEWAY, ENGINE = TrainerId(A), GatewayId(A), EngineId(A, 0)


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `status` is told of a bench."""

    def look(bench: Bench, usage: Usage | None = None, unmeasured: frozenset[GpuId] = frozenset()) -> Status:
        monkeypatch.setattr(status_builder.time, "monotonic", lambda: bench.now)
        gpus = tuple(Gpu(GpuId(id), "virtual GPU", None, None, f"virtual:{id}") for id in range(2))
        constants = Constants(run="r", started_at=0.0, gpus=gpus, unmeasured=unmeasured, urls={})
        return status_builder.build_status(constants, bench.scheduler, usage, uptime_s=bench.now)

    return look


def ask(bench: Bench, verb: str, rank: int | None = None) -> None:
    bench.feed(ev.OperatorAsked(verb=verb, pipeline=A, rank=rank))


def first(snapshot: Status) -> PipelineView:
    return snapshot.pipelines[0]


def test_memory_is_what_was_measured_and_says_whose_it_is(look: Any) -> None:
    bench = serving()
    usage = Usage({GpuId(0): 70, GpuId(1): 5}, {GpuId(0): {EngineId(A, 1): 20, ENGINE: 50}, GpuId(1): {}}, {})
    gpus = look(bench, usage).gpus
    assert [(gpu.used_bytes, gpu.held_bytes) for gpu in gpus] == [(70, {"a/engine/0": 50, "a/engine/1": 20}), (5, {})]
    assert [gpu.used_bytes for gpu in look(bench).gpus] == [None, None], "not measured is not 0"
    assert [gpu.used_bytes for gpu in look(bench, usage, frozenset({GpuId(0)})).gpus] == [None, 5], "what cannot be seen is not shown"


def test_a_drained_pipeline_says_what_to_do(look: Any) -> None:
    bench = one()
    ask(bench, "drain")
    bench.open("a")
    told = first(look(bench))
    assert told.waits_for == told.trainer.waits_for == "an engine, drained by the operator: `bin/supervise resume a`"
    assert told.state == "paused"
    ask(bench, "resume")
    assert first(look(bench)).waits_for is None
    bench = one()
    for rank in (0, 1):
        ask(bench, "pause", rank)
    bench.open("a")
    assert first(look(bench)).waits_for == "an engine, paused by the operator: `bin/supervise resume a/engine/0`"


def test_an_engine_on_its_way_and_gpus_of_others(look: Any) -> None:
    bench = one()
    bench.hold = lambda action: isinstance(action, do.StartGroup)
    bench.open("a")
    assert first(look(bench)).waits_for == "an engine: a/engine/0 is starting"
    bench = Bench(2, spec("a", [0], [0]), spec("b", [0], [0]))
    bench.lease("b")
    bench.open("a")
    assert first(look(bench)).waits_for == "an engine (GPU 0: b/trainer)"


def test_a_lease_is_called_as_the_design_calls_it(look: Any) -> None:
    bench = serving()
    bench.hold = lambda action: isinstance(action, do.Drain)
    bench.lease("a")
    told = first(look(bench))
    assert told.waits_for == "its lease for actor training on GPU 0 (GPU 0: a/engine/0)"
    bench.release()
    told = first(look(bench))
    assert (told.state, told.trainer.holds, told.trainer.gpus, told.waits_for) == ("training", ("train",), (0,), None)


def test_who_waits_for_the_next_try_is_told_when(look: Any) -> None:
    bench = one()
    bench.open("a")
    bench.feed(ev.OperatorAsked(verb="pause", pipeline=A, rank=1))
    bench.die(ENGINE)
    bench.die(ENGINE, life=2)
    told = first(look(bench))
    seconds = round(bench.record("a").engines[0].not_before - bench.now)
    assert told.engines[0].note == f"starts again in {seconds} s"
    assert told.waits_for == f"an engine: a/engine/0 has failed, and starts again in {seconds} s"
    assert told.engines[0].failure is not None
    assert not told.engines[0].failure.over


def test_what_is_well_again_has_a_past(look: Any) -> None:
    bench = serving()
    assert first(look(bench)).engines[0].failure is None
    bench.die(ENGINE)
    bench.feed(ev.MemberExited(group=GATEWAY, incarnation=bench.record("a").gateway.incarnation, member=0, code=-9, note="killed"))
    bench.die(TRAINER, code=3)
    bench.wait(50.0)
    told = first(look(bench))
    for failure, reason in (
        (told.engines[0].failure, "member 0 ended with signal 9"),
        (told.gateway.failure, "ended with signal 9: killed"),
        (told.trainer.failure, "rank 0 ended with exit code 3"),
    ):
        assert failure is not None
        assert (failure.reason, failure.over) == (reason, True)
        assert 49.0 < failure.ago_s < 53.0
    assert (told.gateway.state, told.trainer.restarts, told.engines[0].note) == ("serving", 1, "")


def test_a_pipeline_that_failed(look: Any) -> None:
    bench = one()
    for life in (1, 2, 3, 4):
        bench.die(TRAINER, code=1, life=life)
        bench.wait(9.0)
    told = first(look(bench))
    assert told.state == "failed"
    assert told.why.startswith("trainer retired after 3 restarts")
    assert told.trainer.failure is not None
    assert not told.trainer.failure.over


def test_nobody_who_can_come_back(look: Any) -> None:
    bench = one()
    bench.open("a")
    for life in (1, 2, 3, 4):
        bench.wait(9.0)
        for rank in (0, 1):
            bench.die(EngineId(A, rank), life=life)
    bench.say("a", say.Hello(1))
    told = first(look(bench))
    assert {engine.state for engine in told.engines} == {"retired"}
    assert told.engines[0].note == "`bin/supervise reset a/engine/0` gives it a new restart budget"

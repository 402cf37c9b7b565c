"""What an operator is answered: what a request will do, also where that is nothing."""

import pytest

from engines.lifecycle.state import EngineState
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from tests.harness.scheduler_bench import Bench, one, serving
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId

A = PipelineId("a")
TRAINER, GATEWAY, ENGINE = TrainerId(A), GatewayId(A), EngineId(A, 0)


def ask(bench: Bench, verb: str, rank: int | None = None, part: str = "") -> dict[str, str]:
    """What the operator reads; then it is done."""
    event = ev.OperatorAsked(verb=verb, pipeline=A, rank=rank, part=part)
    assert bench.scheduler.refusal(event) == ""
    told = {str(about): what for about, what in bench.scheduler.preview(event)}
    bench.feed(event)
    return told


def test_pause_and_resume_of_an_engine() -> None:
    bench = serving()
    assert ask(bench, "resume", 0) == {"a/engine/0": "nothing to resume: it is serving"}
    bench.hold = lambda action: isinstance(action, do.Drain)
    assert ask(bench, "pause", 0) == {"a/engine/0": "serving: will be paused"}
    assert ask(bench, "pause", 0) == {"a/engine/0": "draining: it is being paused already"}
    bench.release()
    assert ask(bench, "pause", 0) == {"a/engine/0": "paused already"}
    assert bench.awake("a") == [1]
    assert ask(bench, "resume", 0) == {"a/engine/0": "paused: may serve again when the plan wants it"}
    assert bench.awake("a") == [0, 1]


def test_drain_and_resume() -> None:
    bench = serving()
    assert ask(bench, "drain", 1) == {"a/engine/1": "serving: no process of it will be left until `resume`"}
    assert ask(bench, "drain", 1) == {"a/engine/1": "drained already"}
    assert ask(bench, "pause", 1) == {"a/engine/1": "drained already"}
    assert ask(bench, "restart", 1) == {"a/engine/1": "nothing to restart: it has no process"}
    assert ask(bench, "resume", 1) == {"a/engine/1": "cold: may serve again when the plan wants it"}
    assert bench.awake("a") == [0, 1]


def test_a_whole_pipeline() -> None:
    bench = serving()
    assert ask(bench, "resume") == {
        "a": "nothing to resume: it is not paused as a whole",
        "a/engine/0": "nothing to resume: it is serving",
        "a/engine/1": "nothing to resume: it is serving",
    }
    assert ask(bench, "pause") == {
        "a": "will be paused; its trainer (running) is not stopped, and waits when it wants a rollout",
        "a/engine/0": "serving: will be paused",
        "a/engine/1": "serving: will be paused",
    }
    assert ask(bench, "pause") == {"a": "paused already", "a/engine/0": "paused already", "a/engine/1": "paused already"}
    assert ask(bench, "resume", 0) == {"a/engine/0": "resumed; a as a whole is paused yet: resume a"}
    assert ask(bench, "resume")["a"] == "resumed"
    assert ask(bench, "stop") == {"a": "running: will be stopped; nothing of it is started again in this run"}
    assert ask(bench, "stop") == {"a": "nothing to stop: its trainer is finished"}


def test_restart_and_reset_of_what_is_well() -> None:
    bench = serving()
    assert ask(bench, "reset", 0) == {"a/engine/0": "nothing to reset: it is serving"}
    assert ask(bench, "reset", part="gateway") == {"a/gateway": "nothing to reset: it is serving"}
    assert ask(bench, "reset") == {
        "a/trainer": "nothing to reset: it is running",
        "a/engine/0": "nothing to reset: it is serving",
        "a/engine/1": "nothing to reset: it is serving",
    }
    assert ask(bench, "restart", 0) == {"a/engine/0": "serving: will be restarted"}
    assert ask(bench, "restart", part="gateway") == {"a/gateway": "serving: will be replaced, at the same URL"}
    assert ask(bench, "restart", part="trainer") == {"a/trainer": "running: will be restarted from step 0, its last checkpoint"}
    assert ask(bench, "restart") == {"a/trainer": "running: will be restarted from step 0, its last checkpoint"}


def test_restart_and_reset_of_what_failed() -> None:
    bench = serving()
    bench.die(ENGINE)
    assert ask(bench, "reset", 0) == {"a/engine/0": "serving: its restart budget is whole again (1 of 3 were spent)"}
    for life in (2, 3, 4, 5):
        bench.wait(9.0)
        bench.die(ENGINE, life=life)
    assert bench.record("a").engines[0].state is EngineState.RETIRED
    assert ask(bench, "restart", 0)["a/engine/0"].endswith("signal 9); reset a/engine/0 gives it a new restart budget")
    assert ask(bench, "resume", 0) == {"a/engine/0": "nothing to resume: it is retired"}
    assert ask(bench, "reset", 0) == {"a/engine/0": "retired: may be started again, with a new restart budget"}
    for life in (1, 2, 3, 4):
        bench.wait(9.0)
        bench.die(TRAINER, life=life)
    assert ask(bench, "restart") == {"a/trainer": "nothing to restart: it is retired; reset a gives it a new restart budget"}
    assert ask(bench, "reset", part="trainer") == {
        "a/trainer": "retired: will be started again from its last checkpoint, with a new restart budget"
    }


@pytest.mark.parametrize(
    ("verb", "rank", "part", "why"),
    [
        ("pause", 7, "", "a has no engine 7; it has a/engine/0, a/engine/1"),
        ("pause", None, "trainer", "pause is for engines and pipelines, not for a trainer"),
        ("stop", None, "gateway", "stop is for pipelines, not for a gateway; to end the pipeline: stop a"),
        ("stop", 0, "", "stop is for pipelines. To take a/engine/0 off its GPUs: pause a/engine/0, or drain"),
    ],
)
def test_what_cannot_be_asked_changes_nothing(verb: str, rank: int | None, part: str, why: str) -> None:
    """`stop a/engine/0` has ended the whole pipeline once."""
    bench = serving()
    event = ev.OperatorAsked(verb=verb, pipeline=A, rank=rank, part=part)
    assert bench.scheduler.refusal(event).startswith(why)
    bench.feed(event)
    assert bench.awake("a") == [0, 1]
    assert not bench.record("a").ended


def test_nobody_of_that_name() -> None:
    event = ev.OperatorAsked(verb="pause", pipeline=PipelineId("p9"))
    assert one().scheduler.refusal(event) == "there is no pipeline p9; this run has a"


def test_the_log_says_whom_it_was_asked_of() -> None:
    scheduler = serving().scheduler
    scheduler.handle(ev.OperatorAsked(verb="pause", pipeline=A, rank=0), 100.0)
    assert scheduler.notes == [("warning", ENGINE, "operator: pause: serving: will be paused")]
    scheduler.handle(ev.OperatorAsked(verb="restart", pipeline=A, part="gateway"), 101.0)
    assert [about for _, about, _ in scheduler.notes] == [GATEWAY], "told once, and not as a failure"

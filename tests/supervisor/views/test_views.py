"""Tables and lines for people."""

import io

from rich.console import Console

from supervisor.attempt.summary import PipelineSummary, Summary
from supervisor.observe.status import EngineView, GatewayView, PipelineView, Status, TrainerView
from supervisor.views import summary
from supervisor.views.progress import Progress


def pipeline(step: int = 3, done: int = 192, state: str = "rollout") -> PipelineView:
    return PipelineView(
        name="p1", state=state, step=step, steps=5, samples_done=done, target=256, reward=0.4123, first_reward=0.0851, weight_version=2,
        engines_awake=1, restarts=1, waits_for="GPU 2",
        engines=(EngineView(rank=0, state="serving", incarnation=2, pids=(41,), gpus=(0,), version=2, in_flight=7),),
        trainer=TrainerView(state="waiting", incarnation=1, pids=(51, 52), holds=("train",)),
        gateway=GatewayView(url="http://127.0.0.1:1", incarnation=1, pid=9),
    )  # fmt: skip


def snapshot(view: PipelineView) -> Status:
    return Status(run="q-1", started_at=0.0, uptime_s=3725.0, pipelines=(view,))


def printed(show: object, *what: object) -> str:
    out = io.StringIO()
    show(*what, Console(file=out))  # type: ignore[operator]
    return out.getvalue()


def test_progress_speaks_when_something_happened() -> None:
    progress = Progress(every_s=2.0)
    first = "p1  step 3/5  samples 192/256  engines 1/1  reward 0.085 → 0.412  weights v2  waits for GPU 2"
    assert progress(snapshot(pipeline()), 0.0) == [first]
    assert progress(snapshot(pipeline()), 10.0) == [], "nothing new"
    assert progress(snapshot(pipeline(done=200)), 11.0) != []
    assert progress(snapshot(pipeline(done=201)), 12.0) == [], "not too often"
    assert progress(snapshot(pipeline(step=4, done=0)), 12.1) == [], "nor for a new step: the log has a line of it"
    assert progress(snapshot(pipeline(step=4, done=0)), 13.0) != []


def test_summary() -> None:
    pipelines = {
        "p1": PipelineSummary(
            steps=5, samples=1280, first_reward=0.08, last_reward=0.5, weight_version=5, pauses=3, resumes=4, waited_s=1.25
        )
    }
    text = printed(summary.show, Summary(run="q", exit=0, wall_s=65.0, pipelines=pipelines), "/runs/q/attempt_1")
    for words in ("1280", "0.080 → 0.500", "v5", "Every pipeline did all its steps (exit 0) after 1 min 05 s.", "/runs/q/attempt_1"):
        assert words in text, words
    assert "after 1 min 05 s in 3 starts." in printed(
        summary.show, Summary(run="q", exit=0, wall_s=65.0, starts=3, pipelines=pipelines), "/r"
    )
    assert "exit 99" in printed(summary.show, Summary(run="q", exit=99, wall_s=1.0, pipelines={}, lost_log_lines=3), "/r")


def test_a_summary_says_why() -> None:
    failed = PipelineSummary(steps=1, of=5, outcome="failed", why="trainer retired: [bold]no[/] luck", log="logs/p1.trainer.0.log")
    text = printed(summary.show, Summary(run="q", exit=4, wall_s=3.0, pipelines={"p1": failed}, notes=("The disk of /r is full.",)), "/r")
    for words in (
        "1/5",
        "p1 failed: trainer retired: [bold]no[/] luck (see /r/logs/p1.trainer.0.log)",
        "The disk of /r is full.",
        "p1 failed for good (exit 4) after 3 s.",
    ):
        assert words in text, words
    done = PipelineSummary(steps=5, of=5, outcome="done")
    both = printed(summary.show, Summary(run="q", exit=4, wall_s=3.0, pipelines={"p1": failed, "p2": done}), "/r")
    assert "p1 failed for good; the others went on (exit 4)" in both


def test_steps_that_nobody_did_are_not_said_to_be_done() -> None:
    nothing = PipelineSummary(steps=0, of=5, outcome="done")
    text = printed(summary.show, Summary(run="q", exit=0, wall_s=3.0, pipelines={"p1": nothing}), "/r")
    assert "Every trainer ended by itself with exit code 0; steps that are known to be done: p1 0 of 5 (exit 0)" in text
    assert "all its steps" not in text


def test_a_script_that_only_sends_requests_is_not_said_to_lack_steps() -> None:
    ask = PipelineSummary(steps=0, of=1, outcome="done", samples=32)
    told = printed(summary.show, Summary(run="q", exit=0, wall_s=1.0, pipelines={"ask": ask}), "/r")
    assert "Every trainer ended by itself with exit code 0 (exit 0)" in told
    assert "0/1" not in told
    assert "0 of 1" not in told

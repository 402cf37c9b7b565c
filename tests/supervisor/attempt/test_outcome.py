"""How a run has ended, told from the scheduler's own records; and when it counts as started."""

from pathlib import Path

from engines.lifecycle.state import EngineState
from supervisor.attempt.directory import RunDirectory, new_attempt
from supervisor.attempt.outcome import ended_by_itself, exit_code, summarise
from supervisor.attempt.summary import PipelineSummary
from supervisor.config.schema.tables import Config
from supervisor.errors import ExitCode
from supervisor.runtime.startup import Starting
from supervisor.scheduler.records import Fleet, Pipeline, TrainerState
from supervisor.scheduler.spec import BoxSpec, EngineSpec, PipelineSpec, TrainerSpec
from tests.harness.defaults import default_limits, default_rules
from trainers.protocol.ids import GpuId, PipelineId, Version


def pipelines(*names: str, steps: int = 3) -> list[Pipeline]:
    gpus = (GpuId(0), GpuId(1))
    specs = [PipelineSpec(PipelineId(name), EngineSpec(gpus, 1, 4), TrainerSpec({"train": gpus}, 2, 10.0), steps=steps) for name in names]
    return list(Fleet(BoxSpec(gpus, tuple(specs), default_limits(), default_rules())).pipelines.values())


def attempt(tmp_path: Path) -> RunDirectory:
    directory = new_attempt(tmp_path, "q")
    directory.begin(Config([]), b"#")
    return directory


def ended(pipeline: Pipeline, *codes: int) -> Pipeline:
    pipeline.trainer.state = TrainerState.FINISHED
    pipeline.trainer.exits = dict(enumerate(codes))
    pipeline.model_ready = True
    return pipeline


def test_steps_that_were_reported_count_when_the_trainer_has_ended_by_itself(tmp_path: Path) -> None:
    directory = attempt(tmp_path)
    (p1,) = pipelines("p1")
    p1.trainer.steps_done = 1
    p1.figures.reported(2, {"reward": 0.5})
    assert summarise(p1, (), directory).steps == 1, "it goes on: a restart would begin after its checkpoint"
    ended(p1, 0, 0)
    told = summarise(p1, (), directory)
    assert (told.steps, told.of, told.outcome, told.complete) == (3, 3, "done", True)
    directory.close()


def test_a_trainer_that_ends_well_without_a_step_is_not_said_to_have_done_them(tmp_path: Path) -> None:
    directory = attempt(tmp_path)
    told = summarise(ended(*pipelines("p1"), 0, 0), (), directory)
    assert (told.steps, told.of, told.outcome, told.complete) == (0, 3, "done", False)
    assert exit_code([told], []) is ExitCode.DONE
    directory.close()


def test_why_and_where_to_look(tmp_path: Path) -> None:
    directory = attempt(tmp_path)
    p1, p2, p3 = pipelines("p1", "p2", "p3")
    for rank in (0, 1):
        (directory.path / "logs" / f"p1.trainer.{rank}.log").write_text("…")
    ended(p1).trainer.exits = {1: 1, 0: -9}  # rank 1 was first
    for at in range(4):
        p1.trainer.budget.fail(float(at), salt=1)
    p1.failed = "trainer retired after 3 restarts"
    told = summarise(p1, (), directory)
    assert (told.outcome, told.why, told.log) == ("failed", p1.failed, "logs/p1.trainer.1.log")
    p2.failed = "its model could not be made: no such task"
    assert summarise(p2, (), directory).log == "supervisor.jsonl", "its own log says nothing"
    (directory.path / "logs" / "p2.model.log").write_text("ValueError")
    assert summarise(p2, (), directory).log == "logs/p2.model.log"
    assert summarise(ended(p3, 0, 0), (), directory).why == ""
    assert exit_code([told, summarise(p3, (), directory)], []) is ExitCode.PIPELINE_FAILED
    directory.close()


def test_one_code_for_all(tmp_path: Path) -> None:
    directory = attempt(tmp_path)
    p1, p2 = pipelines("p1", "p2")
    ended(p1, 0, 0)
    ended(p2, -15, -15)
    assert ended_by_itself(p1)
    assert not ended_by_itself(p2)
    told = [summarise(pipeline, {p2.id}, directory) for pipeline in (p1, p2)]
    assert [one.outcome for one in told] == ["done", "stopped"]
    assert exit_code(told, []) is ExitCode.STOPPED, "one pipeline stopped by the operator is not all of them done"
    p2.trainer.steps_done = 3
    assert summarise(p2, {p2.id}, directory).outcome == "done", "it did its last step while it was told to stop"
    p1.engines[0].state = EngineState.STUCK
    assert exit_code([PipelineSummary(steps=0, outcome="failed")], p1.engines.values()) is ExitCode.NOT_CLEAN
    directory.close()


def test_started_is_what_has_been_served_once() -> None:
    p1, p2 = pipelines("p1", "p2")
    starting = Starting()
    for pipeline in (p1, p2):
        pipeline.trainer.state = TrainerState.RUNNING
    assert starting.look([p1, p2]) is None, "trainers that run are not enough"
    p1.engines[0].life.routing.version = Version(0)
    assert starting.look([p1, p2]) is None
    p1.engines[0].life.routing.version, p2.engines[0].life.routing.version = None, Version(0)
    verdict = starting.look([p1, p2])
    assert verdict is not None
    assert (verdict.code, verdict.failed) == (ExitCode.DONE, None), "an engine gives way to that of another pipeline"


def test_one_that_fails_for_good_ends_the_waiting_and_the_end_of_all_says_itself() -> None:
    p1, p2 = pipelines("p1", "p2")
    p1.trainer.state, p2.trainer.state = TrainerState.RETIRED, TrainerState.RUNNING
    p1.failed = "trainer retired"
    verdict = Starting().look([p1, p2])
    assert verdict is not None
    assert (verdict.code, verdict.failed) == (ExitCode.PIPELINE_FAILED, p1)
    p2.trainer.state = TrainerState.FINISHED
    assert Starting().look([p1, p2]) is None

"""What is kept of a run while it goes on: as of each pipeline's last checkpoint, and told whatever the disk does."""

import json
import os
from pathlib import Path

import pytest

from supervisor.attempt import summary
from supervisor.attempt.directory import RunDirectory, new_attempt
from supervisor.attempt.results import RunResults
from supervisor.attempt.resume import EarlierStarts
from supervisor.attempt.summary import Figures, PipelineSummary
from supervisor.config.schema.tables import Config
from supervisor.errors import ExitCode
from supervisor.observe.logs import Logs
from supervisor.scheduler import Scheduler
from supervisor.scheduler.events import CheckpointKept, MemberExited, OperatorAsked, Stop
from supervisor.scheduler.records import TrainerState
from supervisor.scheduler.spec import BoxSpec, EngineSpec, PipelineSpec, TrainerSpec
from tests.harness.defaults import default_limits, default_rules
from trainers.protocol.ids import GpuId, Incarnation, PipelineId, TrainerId

P1, P2 = PipelineId("p1"), PipelineId("p2")
DIED = MemberExited(group=TrainerId(P1), incarnation=Incarnation(1), member=0, code=1)


class Bench:
    """Two pipelines of three steps, and their account."""

    def __init__(self, tmp_path: Path, before: EarlierStarts | None = None) -> None:
        gpus = (GpuId(0),)
        specs = tuple(PipelineSpec(name, EngineSpec(gpus, 1, 4), TrainerSpec({"train": gpus}, 1, 10.0), steps=3) for name in (P1, P2))
        self.scheduler = Scheduler(BoxSpec(gpus, specs, default_limits(), default_rules()), 0.0)
        self.p1, self.p2 = self.scheduler.pipelines[P1], self.scheduler.pipelines[P2]
        self.directory: RunDirectory = new_attempt(tmp_path, "q")
        self.directory.begin(Config([]), b"#")
        self.logs = Logs(self.directory.supervisor_log, run="q", console="none")
        self.results = RunResults(self.directory, self.logs, before or EarlierStarts())
        self.results.begin(self.scheduler)

    @property
    def kept(self) -> Figures:
        found = summary.figures(self.directory.path)
        assert found is not None
        return found

    def log(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.directory.supervisor_log.read_text().splitlines()]

    def close(self) -> None:
        self.logs.close()
        self.directory.close()


def fill(disk: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    disk.setattr(os, "posix_fallocate", no_room)
    disk.setattr(os, "replace", no_room)


def test_each_pipeline_is_kept_as_of_its_last_checkpoint(tmp_path: Path) -> None:
    before = EarlierStarts(Figures(starts=1, wall_s=10.0, pipelines={"p1": PipelineSummary(steps=1, samples=256, first_reward=0.1)}))
    bench = Bench(tmp_path, before)
    assert (bench.kept.starts, bench.kept.pipelines["p1"].samples) == (2, 256)
    bench.p1.trainer.steps_done, bench.p1.figures.samples = 2, 256
    bench.p2.figures.samples = 99  # of a step that would be done again
    bench.results.observe(CheckpointKept(id=1), [], bench.scheduler, 1.0)
    assert (bench.kept.pipelines["p1"].samples, bench.kept.pipelines["p2"].samples) == (512, 0)
    assert bench.kept.pipelines["p1"].first_reward == 0.1
    assert bench.kept.wall_s >= 10.0
    bench.close()


def test_a_run_that_begins_has_not_ended_any_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.results.conclude(bench.scheduler)
    assert summary.read(bench.directory.path) is not None
    bench.results.begin(bench.scheduler)
    assert summary.read(bench.directory.path) is None
    bench.close()


def test_who_was_stopped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for pipeline in (bench.p1, bench.p2):
        pipeline.trainer.state = TrainerState.FINISHED
    bench.p1.trainer.exits = {0: 0}
    bench.results.observe(Stop(level=1), [], bench.scheduler, 1.0)
    told = bench.results.conclude(bench.scheduler)
    assert (told.pipelines["p1"].outcome, told.pipelines["p2"].outcome, told.exit) == ("done", "stopped", ExitCode.STOPPED)
    bench.close()


def test_one_pipeline_that_the_operator_stopped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for pipeline in (bench.p1, bench.p2):
        pipeline.trainer.state, pipeline.trainer.exits = TrainerState.FINISHED, {0: 0}
    bench.p1.trainer.exits = {0: -15}
    bench.results.observe(OperatorAsked(verb="stop", pipeline=P1), [], bench.scheduler, 1.0)
    told = bench.results.conclude(bench.scheduler)
    assert (told.pipelines["p1"].outcome, told.pipelines["p2"].outcome, told.exit) == ("stopped", "done", ExitCode.STOPPED)
    bench.close()


def test_a_full_disk_is_named_where_something_failed_and_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.p1.trainer.state, bench.p1.failed = TrainerState.RETIRED, "trainer retired"
    bench.p2.trainer.state, bench.p2.trainer.exits = TrainerState.FINISHED, {0: 0}
    with monkeypatch.context() as disk:
        fill(disk)
        bench.results.observe(DIED, [], bench.scheduler, 1.0)
        bench.results.observe(DIED, [], bench.scheduler, 9.0)
    named = f"the disk of {bench.directory.path} is full ("
    assert [event.startswith(named) for event in bench.log()] == [True], "once"
    told = bench.results.conclude(bench.scheduler)
    assert told.exit == ExitCode.PIPELINE_FAILED
    assert told.pipelines["p1"].why.startswith(f"trainer retired; {named}")
    assert told.pipelines["p2"].why == ""
    assert told.notes[0].startswith("The disk of")
    assert summary.read(bench.directory.path) == told
    bench.close()


def test_an_end_that_cannot_be_written_down_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.p1.trainer.steps_done = 1
    for pipeline in (bench.p1, bench.p2):
        pipeline.trainer.state, pipeline.trainer.exits = TrainerState.FINISHED, {0: 0}
    fill(monkeypatch)
    bench.results.observe(CheckpointKept(id=1), [], bench.scheduler, 1.0)
    told = bench.results.conclude(bench.scheduler)
    assert told.exit == ExitCode.DONE, "the run's code is the run's"
    assert any("could not be written down" in note for note in told.notes)
    assert "a record could not be written down" in bench.log()
    bench.close()

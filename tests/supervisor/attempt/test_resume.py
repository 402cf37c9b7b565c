"""What of an attempt is left to do."""

import os
from pathlib import Path

import msgspec
import pytest

from supervisor.attempt.checkpoints import Checkpoints, Remembered, Saved
from supervisor.attempt.directory import RunDirectory, new_attempt, open_attempt
from supervisor.attempt.resume import conclude_finished, earlier_starts, without
from supervisor.attempt.summary import Figures, PipelineSummary, read, write
from supervisor.config.schema.tables import Config, EngineTable, HostTable, PipelineTable, TrainerTable


def config(steps: int = 5) -> Config:
    return Config(
        [PipelineTable(name, EngineTable("m", [0]), TrainerTable([0], steps=steps)) for name in ("p1", "p2")], HostTable(virtual=1)
    )


@pytest.fixture
def attempt(tmp_path: Path) -> RunDirectory:
    first = new_attempt(tmp_path, "q")
    first.begin(config(), b"#")
    first.close()
    return open_attempt(first.path)


def checkpoint(attempt: RunDirectory, pipeline: str, steps: int) -> None:
    folder = attempt.checkpoints(pipeline)
    (folder / "resume.json").write_bytes(msgspec.json.encode(Remembered((Saved(steps - 1, str(folder)),), version=7)))


def test_by_checkpoints(attempt: RunDirectory) -> None:
    assert earlier_starts(attempt, config()).finished == frozenset()
    checkpoint(attempt, "p1", 5)
    checkpoint(attempt, "p2", 3)
    assert earlier_starts(attempt, config()).finished == {"p1"}
    assert earlier_starts(attempt, config(steps=6)).finished == frozenset(), "somebody wants more of them"
    assert [pipeline.name for pipeline in without(config(), frozenset({"p1"})).pipeline] == ["p2"]
    attempt.close()


def test_one_that_saves_nothing_is_finished_when_it_ended_well_and_did_something(attempt: RunDirectory) -> None:
    def known(**changes: object) -> None:
        told = msgspec.structs.replace(PipelineSummary(steps=0, of=5, outcome="done", samples=9), **changes)
        write(attempt.path, Figures(pipelines={"p1": told}))

    known()
    assert earlier_starts(attempt, config()).finished == {"p1"}
    assert earlier_starts(attempt, config(steps=6)).finished == frozenset()
    known(samples=0)
    assert earlier_starts(attempt, config()).finished == frozenset(), "it did nothing at all"
    known(samples=0, steps=5)
    assert earlier_starts(attempt, config()).finished == {"p1"}
    known(outcome="stopped")
    assert earlier_starts(attempt, config()).finished == frozenset()
    attempt.close()


def test_a_run_that_was_killed_when_all_was_done_has_ended(attempt: RunDirectory) -> None:
    write(attempt.path, Figures(starts=2, wall_s=9.0, pipelines={"p1": PipelineSummary(steps=4, of=5, samples=9)}))
    conclude_finished(attempt, config())
    told = read(attempt.path)
    assert told is not None
    assert (told.exit, told.starts, told.wall_s) == (0, 2, 9.0)
    assert (told.pipelines["p1"].samples, told.pipelines["p1"].complete, told.pipelines["p2"].complete) == (9, True, True)
    write(attempt.path, Figures())
    conclude_finished(attempt, config())
    assert read(attempt.path) == told, "once"
    attempt.close()


def test_of_a_new_attempt_nothing_is_behind(tmp_path: Path) -> None:
    fresh = new_attempt(tmp_path, "q")
    assert earlier_starts(fresh, config()).figures.starts == 0
    fresh.close()


def test_a_version_that_the_disk_does_not_take_is_told_and_kept_in_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[OSError] = []
    record = Checkpoints.open(tmp_path, 2, told.append)
    with monkeypatch.context() as full:

        def no_room(*_: object) -> int:
            raise OSError(28, "No space left on device")

        full.setattr(os, "replace", no_room)
        record.published(4)
        with pytest.raises(OSError, match="No space left"):
            record.record(0, str(tmp_path))
    assert [error.errno for error in told] == [28]
    assert record.known.version == 4
    assert [path.name for path in tmp_path.iterdir()] == []
    record.record(0, str(tmp_path))
    again = Checkpoints.open(tmp_path, 2, told.append)
    assert again.known.version == 4, "the next record that fits has it"
    assert again.known.steps_done == 1

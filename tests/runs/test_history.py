"""The history of a real run agrees with what the run says of itself: of one that ends, and of one whose supervisor is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from supervisor.attempt.recording import FOLDER, Heard, Opened, read, segments
from supervisor.history import totals
from supervisor.history.fold import History
from supervisor.scheduler import Scheduler
from supervisor.views.history.reader import HistoryReader, read_history
from tests.harness.mutation import CHECKOUT, environment
from tests.harness.supervised_run import Run, configuration


def command(*arguments: str) -> str:
    """What a command prints, as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "supervisor", *arguments],
        cwd=CHECKOUT, env=environment(CHECKOUT), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def adds_up(history: History) -> None:
    for lane in history.gpus.values():
        slices = list(lane.slices(history.until))
        for one, other in pairwise(slices):
            assert one.end == other.begin
        assert sum(one.end - one.begin for one in slices) == pytest.approx(history.until, abs=1e-3)


def test_a_run_that_ends_has_its_history(tmp_path: Path) -> None:
    run = Run(tmp_path, configuration(tmp_path / "tiny.toml", health='[logging]\nlevel = "warning"'))
    reader = HistoryReader(run.directory)
    try:
        run.when("p1", lambda view: view.step == 1, "the second step")
        reader.poll(time.time())
        assert reader.history.running
        assert reader.history.pipelines["p1"].figures["reward"].steps[0] == 0
        assert "running" in command("top", "--once", str(run.directory))
        assert run.end() == 0, run.tail()
    finally:
        run.stop()
    reader.poll(time.time())
    whole = read_history(run.directory, time.time())
    assert reader.history.facts == whole.facts  # read piece by piece, and at once
    reader.close()
    adds_up(whole)
    assert [life.how for life in whole.lives] == ["ended"]
    for name, told in run.summary.items():
        assert totals.waited(whole, name).counted == pytest.approx(told["waited_s"], rel=0.01, abs=0.002)
        counts = whole.pipelines[name].counts
        assert counts.samples[-1] == told["samples"]
        assert counts.tokens[-1] >= told["samples"]
        assert whole.pipelines[name].figures["reward"].values[-1] == told["last_reward"]
    assert whole.began_at == pytest.approx((run.directory / "run_id").stat().st_mtime, abs=30)


def test_a_killed_run_has_its_history_from_files_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, configuration(tmp_path / "tiny.toml"))
    try:
        run.when("p1", lambda view: view.step == 1 and "train" in view.trainer.holds, "the second training")
        os.kill(run.supervisor_pid(), signal.SIGKILL)
        run.end(10)
    finally:
        run.stop()
    for path in run.directory.iterdir():  # nothing but the recording is read
        if path.name not in (FOLDER, "run_id") and path.is_file():
            path.unlink()
    history = read_history(run.directory, time.time())
    adds_up(history)
    assert [life.how for life in history.lives] == ["killed"]
    scheduler = decided_again(run.directory)
    for id, pipeline in scheduler.pipelines.items():
        assert totals.waited(history, id).counted == pytest.approx(pipeline.figures.waited, rel=0.01, abs=0.002)
    assert command("report", str(run.directory)).strip() == str(run.directory / "report.html")
    assert "killed" in command("top", "--once", str(run.directory))
    command("timeline", str(run.directory), "-o", str(tmp_path / "t.json"))
    assert {event["ph"] for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]} == {"M", "X", "C", "i"}


def decided_again(attempt: Path) -> Scheduler:
    """The scheduler as it was when it was killed."""
    (path,) = segments(attempt / FOLDER)
    lines = (line for _, line in read(path))
    opened = next(lines)
    assert isinstance(opened, Opened)
    assert opened.box is not None
    scheduler = Scheduler(opened.box, opened.at)
    for line in lines:
        if isinstance(line, Heard):
            scheduler.handle(line.event, line.at)
    return scheduler

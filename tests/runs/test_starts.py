"""How runs start, are let go, are resumed and are told of afterwards: as processes, seen from the operator's side."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.supervised_run import CHECKOUT, GUARDIAN, Run, configuration

ONE = """
[host]
virtual = 2
{host}
[health]
restarts = 1
[[pipeline]]
name = "p1"
[pipeline.engine]
model = {{ make = "trainers.grpo.tiny:make", options = {{ task = "parity" }} }}
gpus = [0, 1]
context = 32
[pipeline.trainer]
gpus = [0]
command = {command}
steps = 3
"""


def one(path: Path, *command: str, host: str = "") -> Path:
    """One pipeline whose trainer is this command."""
    path.write_text(ONE.format(command=json.dumps(command), host=host))
    return path


def supervise(cwd: Path, *arguments: str, guarded: bool = False) -> "subprocess.CompletedProcess[str]":
    how = ["-I", "-S", "-E", str(GUARDIAN)] if guarded else ["-P", "-m", "supervisor"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        [sys.executable, *how, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=90, check=False
    )


def test_a_second_start_that_fails_a_kill_and_two_resumes(start: Callable[..., Run], tmp_path: Path) -> None:
    file = configuration(tmp_path / "story.toml", steps=3)
    run = start(file)
    run.wait_until(lambda: run.status() is not None, "its beginning")
    copy = tmp_path / "copy" / "story.toml"  # with virtual GPUs of its own
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    limited = (
        f"ulimit -f 40; exec {sys.executable} -I -S -E {GUARDIAN} run copy/story.toml"  # KiB: too little for what a run keeps in reserve
    )
    refused = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 3, refused.stderr
    assert "a run cannot begin there: File too large" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert [path.name for path in (tmp_path / "runs" / "story").iterdir()] == ["attempt_1"]
    assert json.loads(supervise(tmp_path, "status", "--json").stdout)["run"] == run.run_id

    run.when("p1", lambda view: view.step >= 1, "its first step")
    os.kill(run.supervisor_pid(), signal.SIGKILL)
    assert run.end(5) == 137
    assert not (run.directory / "summary.json").exists()
    told = supervise(tmp_path, "status")
    assert told.returncode == 0
    assert "runs/story/attempt_1: the supervisor was killed or crashed at" in told.stdout
    assert (steps := re.search(r"Go on \(p1 after ([12]) steps", told.stdout)), told.stdout
    assert "its processes were ended with it" in told.stdout

    again = start(file, "--resume")
    assert again.end() == 0, again.tail()
    assert f"supervise: resumes runs/story/attempt_1: p1 after {steps[1]} steps" in again.output.read_text()
    summary = json.loads((run.directory / "summary.json").read_text())
    first = run.metrics("p1")[0]["reward"]
    assert (summary["starts"], summary["exit"]) == (2, 0)
    for name, pipeline in summary["pipelines"].items():
        assert (pipeline["steps"], pipeline["of"], pipeline["outcome"]) == (3, 3, "done")
        assert pipeline["samples"] == 3 * 256, f"{name}: those of each step that is kept, whichever start did it"
        assert pipeline["pauses"] > 0
    assert summary["pipelines"]["p1"]["first_reward"] == pytest.approx(first)

    before = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    finished = supervise(tmp_path, "run", "story.toml", "--resume", guarded=True)
    assert finished.returncode == 0
    assert "nothing left to do: every pipeline has done its steps (p1 3, p2 3)" in finished.stdout
    assert "raise `steps`" in finished.stdout
    assert {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()} == before

    then = again.summary
    more = file.read_text().rpartition("steps = 3")
    file.write_text(more[0] + "steps = 4" + more[2])  # of p2
    last = start(file, "--resume")
    assert last.end() == 0, last.tail()
    assert last.summary["p1"] == then["p1"], "what has finished is not started again"
    assert (last.summary["p2"]["steps"], last.summary["p2"]["samples"]) == (4, 4 * 256)


def test_detach_returns_when_everything_has_started(tmp_path: Path) -> None:
    configuration(tmp_path / "long.toml", steps=50)
    done = supervise(tmp_path, "run", "long.toml", "--detach", guarded=True)
    try:
        assert done.returncode == 0, done.stderr
        assert "runs/long/attempt_1" in done.stdout.splitlines()[0]
        assert "logs -f" in done.stdout.splitlines()[0]
        assert done.stdout.splitlines()[-1] == "everything has started; the run goes on without this terminal"
        log = [json.loads(line) for line in (tmp_path / "runs/long/attempt_1/supervisor.jsonl").read_text().splitlines()]
        for name in ("p1", "p2"):
            about = [record["event"] for record in log if record.get("pipeline") == name]
            assert "trainer is running" in about, name
            assert "engine is serving" in about, name
    finally:
        assert supervise(tmp_path, "stop", "--now").returncode == 0
        _wait_for(tmp_path / "runs/long/attempt_1/summary.json")
    assert json.loads(supervise(tmp_path, "status", "--json").stdout)["exit"] == 5


def _wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)


def test_detach_tells_of_a_trainer_that_dies(tmp_path: Path) -> None:
    one(tmp_path / "bad.toml", "python3", "-c", "raise ValueError('no such luck')")
    done = supervise(tmp_path, "run", "bad.toml", "--detach", guarded=True)
    assert done.returncode == 4
    attempt = tmp_path / "runs" / "bad" / "attempt_1"
    why = "trainer retired after 1 restarts within 600 s: rank 0 ended with exit code 1: error: ValueError: no such luck"
    assert f"p1 failed: {why} (see {attempt}/logs/p1.trainer.0.log)" in done.stdout
    assert "p1 failed for good (exit 4)" in done.stdout
    summary = json.loads((attempt / "summary.json").read_text())["pipelines"]["p1"]
    assert (summary["outcome"], summary["why"], summary["log"]) == ("failed", why, "logs/p1.trainer.0.log")


def test_detach_does_not_wait_for_the_others_when_one_has_failed_for_good(tmp_path: Path) -> None:
    file = configuration(tmp_path / "half.toml", steps=50, entry="trainers.grpo:nobody", health="restarts = 1")
    file.write_text(file.read_text().replace('entry = "trainers.grpo:nobody"', 'command = ["python3", "-c", "raise SystemExit(3)"]'))
    done = supervise(tmp_path, "run", "half.toml", "--detach", guarded=True)
    try:
        assert done.returncode == 4, done.stdout
        assert "supervise: p1 failed for good: trainer retired after 1 restarts" in done.stderr
        assert "the others go on" in done.stderr
        assert json.loads(supervise(tmp_path, "status", "--json").stdout)["pipelines"][1]["name"] == "p2"
    finally:
        supervise(tmp_path, "stop", "--kill")
        _wait_for(tmp_path / "runs/half/attempt_1/summary.json")
    ended = json.loads((tmp_path / "runs/half/attempt_1/summary.json").read_text())
    assert (ended["exit"], ended["pipelines"]["p2"]["outcome"]) == (4, "stopped")


def test_a_run_that_nobody_watches_ends_with_its_own_code(tmp_path: Path) -> None:
    one(tmp_path / "true.toml", "true")
    command = f"{sys.executable} -I -S -E {GUARDIAN} run true.toml | head -1; echo ${{PIPESTATUS[0]}} > code"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (tmp_path / "code").read_text() == "0\n", done.stderr
    assert done.stderr == ""
    summary = json.loads((tmp_path / "runs/true/attempt_1/summary.json").read_text())
    assert (summary["exit"], summary["lost_log_lines"]) == (0, 0), "what nobody reads on a terminal is in the log"
    assert (summary["pipelines"]["p1"]["steps"], summary["pipelines"]["p1"]["of"]) == (0, 3)
    shown = supervise(tmp_path, "status").stdout
    assert "all its steps" not in shown
    assert "p1 0 of 3" in shown


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """3 MiB of their own, where we may mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=3m,mode=0700") != 0:
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(bytes(folder), 2)


def test_a_disk_that_fills_up_is_named_and_the_run_ends_in_order(start: Callable[..., Run], tmp_path: Path, small_disk: Path) -> None:
    file = configuration(tmp_path / "full.toml", steps=6, host=f'directory = "{small_disk}"', health="restarts = 1")
    done = supervise(tmp_path, "run", "full.toml", guarded=True)
    attempt = small_disk / "full" / "attempt_1"
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Directory not empty" not in done.stdout
    assert f"The disk of {attempt} is full (" in done.stdout
    summary = json.loads((attempt / "summary.json").read_text())
    assert summary["exit"] == 4
    assert f"the disk of {attempt} is full" in summary["pipelines"]["p1"]["why"]
    assert json.loads((attempt / "supervisor.jsonl").read_text().splitlines()[-1])["event"] in ("run ends", "log lines lost")
    (small_disk / "fill").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    again = supervise(tmp_path, "run", str(file), "--resume", guarded=True)
    assert again.returncode == 3, again.stdout
    assert "No space left on device. Free space, or set [host] directory." in again.stderr
    assert json.loads((attempt / "summary.json").read_text()) == summary, "and what there is stays"

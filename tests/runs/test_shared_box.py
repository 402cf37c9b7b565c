"""Who shares a box hears whose run it is, which of two is meant, and that a GPU has one supervisor."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.host.claims import claims
from tests.harness.other_user import supervise_as_nobody
from tests.harness.supervised_run import CHECKOUT, GUARDIAN, Run

WAITS = """
[host]
virtual = 2
[[pipeline]]
name = "p1"
[pipeline.engine]
model = { make = "trainers.grpo.tiny:make", options = { task = "parity" } }
gpus = [0, 1]
context = 32
[pipeline.trainer]
gpus = [0]
command = ["sleep", "600"]
"""


@pytest.fixture
def start(tmp_path: Path, started: list[Run]) -> Callable[..., Run]:
    def begin(name: str, *arguments: str) -> Run:
        (tmp_path / f"{name}.toml").write_text(WAITS)
        run = Run(tmp_path, tmp_path / f"{name}.toml", *arguments)
        started.append(run)
        run.wait_until(lambda: run.status() is not None, "its beginning")
        return run

    return begin


def supervise(cwd: Path, *arguments: str, guarded: bool = False) -> "subprocess.CompletedProcess[str]":
    how = ["-I", "-S", "-E", str(GUARDIAN)] if guarded else ["-P", "-m", "supervisor"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        [sys.executable, *how, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.slow
def test_of_two_runs_that_go_on_none_is_taken_for_the_other(start: Callable[..., Run], tmp_path: Path) -> None:
    first, second = start("one"), start("two")
    for words in (["stop"], ["pause", "p1/engine/0"], ["drain", "p1"], ["restart", "p1/trainer"], ["stop", "--kill"]):
        refused = supervise(tmp_path, *words)
        assert (refused.returncode, refused.stdout) == (2, ""), words
        assert "Several runs go on here: runs/one/attempt_1, runs/two/attempt_1. Name the one that you mean." in refused.stderr
    told = supervise(tmp_path, "pause", "p1/engine/0", "--run", "one")
    assert told.returncode == 0, told.stderr
    assert re.match(r"runs/one/attempt_1: p1/engine/0: ", told.stdout)
    assert [record["user"] for record in first.log() if record["event"] == "an operator asks"] == [
        "root" if os.geteuid() == 0 else os.environ["USER"]
    ]
    assert not [record for record in second.log() if record["event"] == "an operator asks"]
    looked = supervise(tmp_path, "status")
    assert looked.returncode == 0
    assert "runs/two/attempt_1 was shown; runs/one/attempt_1 also goes on here" in looked.stderr
    listed = json.loads(supervise(Path("/"), "ps", "--json").stdout)
    ours = {run["directory"]: run for run in listed if run["directory"].startswith(str(tmp_path))}
    assert {run["name"]: run["steps"] for run in ours.values()} == {"one/attempt_1": "p1 0/1", "two/attempt_1": "p1 0/1"}
    assert supervise(Path("/"), "status", str(first.directory), "--json").returncode == 0
    assert "Elsewhere on this box: " in supervise(Path("/"), "stop").stderr
    stopped = supervise(tmp_path, "stop", "--run", "two")
    assert (stopped.returncode, stopped.stdout) == (0, "runs/two/attempt_1: stopping\n")
    assert second.end() == 5
    assert re.search(r"Stopped before its end: `stop`, asked by \w+\. `run --resume` continues \(exit 5\)", second.output.read_text())
    assert supervise(tmp_path, "stop").stdout == "runs/one/attempt_1: stopping\n", "now only one can be meant"
    assert first.end() == 5


@pytest.mark.slow
def test_a_second_supervisor_on_the_same_gpus_is_refused_and_the_gpus_are_free_when_the_first_is_killed(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start("held")
    began = time.monotonic()
    refused = supervise(tmp_path, "run", "held.toml", guarded=True)
    assert time.monotonic() - began < 30
    assert refused.returncode == 3, refused.stderr
    for part in ("host.virtual = GPUs 0, 1: held by run held/attempt_1 of ", f"(pid {run.supervisor_pid()}, since ", "a copy of the file"):
        assert part in refused.stderr
    assert [path.name for path in (tmp_path / "runs" / "held").iterdir()] == ["attempt_1"], "what never began is no attempt"
    resumed = supervise(tmp_path, "run", "held.toml", "--resume", guarded=True)
    assert resumed.returncode == 2
    assert f"{run.directory}: another supervisor runs there. Stop it first (`supervise stop --run {run.directory}`)." in resumed.stderr
    os.kill(run.supervisor_pid(), signal.SIGKILL)
    assert run.end(10) == 137
    assert not [held for held in claims() if held.claim.run == run.run_id]
    again = Run(tmp_path, tmp_path / "held.toml")
    again.wait_until(lambda: again.status() is not None, "its beginning")
    assert [held.claim.directory for held in claims() if held.claim.run == again.run_id] == [str(again.directory)]
    path = next(held.path for held in claims() if held.claim.run == again.run_id)
    again.stop()
    assert not path.exists()


@pytest.mark.slow
def test_another_user_hears_whose_run_it_is(start: Callable[..., Run], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    run = start("theirs")
    whose = f"theirs/attempt_1 of root (uid 0): pid {run.supervisor_pid()}, virtual GPUs 0, 1, {run.directory}"
    for cwd in (tmp_path, Path("/")):
        listed = supervise_as_nobody(cwd, "ps")
        assert listed.returncode == 0, listed.stderr
        assert re.search(rf"theirs/attempt_1 +root +0-1 \(virtual\) .* {run.supervisor_pid()} .*\n? .*belongs to root", listed.stdout)
    for words in ([], ["theirs"], ["runs/theirs/attempt_1"], [str(run.directory)]):
        told = supervise_as_nobody(tmp_path, "status", *words)
        assert told.returncode == 0, told.stderr
        assert "belongs to root" in told.stdout, words
        assert "o run" not in told.stderr
    for words in (["stop"], ["stop", "--run", "theirs"], ["pause", "p1", "--run", str(run.directory)], ["logs", "theirs"]):
        refused = supervise_as_nobody(tmp_path, *words)
        assert refused.returncode == 2
        assert "belongs to root" in refused.stderr, words
        assert whose in refused.stderr, words
    run.stop()
    ended = supervise_as_nobody(tmp_path, "status", "theirs")
    assert (ended.returncode, ended.stdout.partition(":")[0]) == (0, f"{run.directory} belongs to root (uid 0)")


@pytest.mark.slow
def test_closing_the_terminal_stops_a_run_and_the_summary_says_so(tmp_path: Path) -> None:
    """In a session of its own, whose terminal goes away, as a window's does."""
    (tmp_path / "closed.toml").write_text(WAITS)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-I", "-S", "-E", str(GUARDIAN), "run", "closed.toml"]
    code = f"import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv({sys.executable!r}, {command!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"closing this terminal stops the run gracefully; use --detach to outlive it" not in seen:
        seen += os.read(ours, 65536)
    os.close(ours)
    assert process.wait(60) == 5
    attempt = tmp_path / "runs" / "closed" / "attempt_1"
    assert json.loads((attempt / "summary.json").read_text())["stopped_by"] == "its terminal was closed (SIGHUP)"
    assert "Stopped before its end: its terminal was closed (SIGHUP)." in supervise(tmp_path, "status").stdout

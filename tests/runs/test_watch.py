"""Whoever watches is watched: runs whose supervisor, pool or rank is stopped, seen from outside."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.observe.control_socket import ActRequest, ask
from tests.harness.supervised_run import Run, configuration, processes_of
from trainers.protocol.ids import EngineId, PipelineId

ONE = """
[host]
virtual = 1
[health]
{health}
[[pipeline]]
name = "p1"
[pipeline.engine]
model = {{ make = "trainers.grpo.tiny:make", options = {{ task = "parity" }} }}
gpus = [0]
context = 32
[pipeline.trainer]
gpus = [0]
command = {command}
{trainer}
"""
SLEEPS = "import time\nfrom trainshed import connect\nconnect()\nprint('sleeps', flush=True)\ntime.sleep(90)\n"


def one(folder: Path, script: str, *, health: str = "", trainer: str = "") -> Path:
    """One pipeline whose trainer is this script."""
    (folder / "trainer.py").write_text(script)
    path = folder / "one.toml"
    path.write_text(ONE.format(command=json.dumps([sys.executable, "trainer.py"]), health=health, trainer=trainer))
    return path


def says(run: Run, *parts: str) -> Callable[[], bool]:
    return lambda: any(all(part in json.dumps(record) for part in parts) for record in run.log())


def test_a_supervisor_that_is_stopped_is_ended_with_its_run_and_told_of(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start(one(tmp_path, SLEEPS, health="watchdog_s = 2.0\ngrace_s = 1.0"))
    run.when("p1", lambda view: view.state == "running", "the trainer")
    os.kill(run.supervisor_pid(), signal.SIGSTOP)
    assert run.end(15) == 128 + signal.SIGABRT
    assert processes_of(run.run_id) == []
    assert not list(Path("/dev/shm").glob(f"trainshed-{run.run_id}*"))
    assert says(run, "guardian: the supervisor has said nothing for 2 s: it is stopped")()
    assert "Current thread" in (run.directory / "supervisor.stack").read_text()


def test_a_pool_that_is_stopped_is_replaced_and_the_run_ends_well(start: Callable[..., Run], tmp_path: Path) -> None:
    """While its children work, and when they end: their codes are exact, so that a finished trainer is not taken for dead."""
    run = start(configuration(tmp_path / "pool.toml", names=("p1",)))
    run.when("p1", lambda view: view.state == "rolling out", "a rollout")
    pools = [pid for pid, _ in processes_of(f"{run.run_id}:prewarm") if Path(f"/proc/{pid}/comm").read_text() == "prewarm\n"]
    for pid in pools:
        os.kill(pid, signal.SIGSTOP)
    assert len(pools) == 1
    assert run.end() == 0, run.tail()
    assert run.summary["p1"]["restarts"] == 0
    assert run.left_behind() == []


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_a_rank_that_does_nothing_fails_where_the_file_sets_a_limit(start: Callable[..., Run], tmp_path: Path, how: str) -> None:
    limit = "steps = 1\nwatchdog_s = 3.0"
    spins = SLEEPS.replace("time.sleep(90)", "while True: pass")
    run = start(one(tmp_path, spins if how == "stopped" else SLEEPS, health="restarts = 1", trainer=limit))
    view = run.when("p1", lambda view: view.state == "running" and bool(view.trainer.pids), "the trainer")
    if how == "stopped":
        time.sleep(4.5)  # a spinning rank is not silent
        assert run.when("p1", lambda view: True, "anything").trainer.pids == view.trainer.pids
        os.kill(view.trainer.pids[0], signal.SIGSTOP)
        run.wait_until(says(run, "a rank is stopped", f"kill -CONT {view.trainer.pids[0]}"), "the warning")
        run.wait_until(says(run, "rank 0 was stopped (SIGSTOP) for 3 s (watchdog_s)"), "its end")
    else:
        run.wait_until(says(run, "said nothing and used no processor for 3 s (watchdog_s)"), "its end")
    run.when("p1", lambda other: other.trainer.pids not in ((), view.trainer.pids), "its next life")


def test_a_trainer_that_waits_for_us_is_not_silent(start: Callable[..., Run], tmp_path: Path) -> None:
    """Its engines are paused by the operator: the rollout that it asks for comes when they come back."""
    waits = "from trainshed import connect\npipeline = connect()\nwith pipeline.rollout(target=1): pass\n"
    run = start(one(tmp_path, waits, trainer="watchdog_s = 2.0"))
    run.wait_until(lambda: run.status() is not None, "the socket")
    ask(run.directory / "control.sock", ActRequest(verb="pause", target=EngineId(PipelineId("p1"), 0)))
    view = run.when("p1", lambda view: bool(view.trainer.pids), "the trainer")
    time.sleep(6)
    assert run.when("p1", lambda view: True, "anything").trainer.pids == view.trainer.pids
    ask(run.directory / "control.sock", ActRequest(verb="resume", target=EngineId(PipelineId("p1"), 0)))
    assert run.end() == 0, run.tail()

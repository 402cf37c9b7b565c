"""One expert-parallel group of real SGLang (a tiny mixture of experts, tp = ep = 2) under a supervisor, to be hurt while it serves."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from supervisor.host.processes.proc import read_stat
from supervisor.observe.status import EngineView
from tests.harness.sglang.served import REAL
from tests.harness.supervised_run import CHECKOUT, Run

WHO = ("parent", "rank 0", "rank 1")
PATIENCE_S = 600.0
"""For a start: SGLang imports for half a minute on two quiet cores, and for minutes on busy ones."""
TARGET, TOKENS = 16, 48
HEALTH = {"probe_s": 1.0, "probe_timeout_s": 3.0, "probe_failures": 3, "progress_s": 2.0, "progress_timeout_s": 8.0, "progress_failures": 2}
HANG_BUDGET_S = max(3 * (1.0 + 3.0), 2 * (2.0 + 8.0)) + 1.0
"""From the last sign of life to the verdict, by HEALTH; the head's own probe answers sooner than a rank's."""
FILE = """
[host]
virtual = 2
prewarm = false
[health]
start_s = {patience}
load_s = 120.0
restarts = 1000
restart_window_s = 0.001
{health}
[[pipeline]]
name = "p1"
seed = 7
[pipeline.engine]
kind = "sglang"
python = "{real}/bin/python"
model = "{models}/first"
gpus = [0, 1]
tp = 2
ep = 2
slots = 8
context = 128
args = ["--dtype", "float32"]
env = {{ SGLANG_HEALTH_CHECK_TIMEOUT = "6" }}
[pipeline.trainer]
gpus = [0]
command = ["{python}", "{trainer}"]
steps = 1000
env = {{ PYTHONPATH = "{checkout}" }}
options = {{ first = "{models}/first", other = "{models}/other", target = {target}, tokens = {tokens} }}
"""


@dataclass(frozen=True)
class Recovery:
    """Seconds. `dead`: from the signal until the kernel says so to a bystander who does nothing but ask (it takes a process of half a gigabyte
    apart first; 0 for a hang); `noticed`: from the signal until the gateway says that nothing is routed there any more; `overlap`: how
    long the next life was there before the last was gone.
    """

    who: str
    number: signal.Signals
    cause: str
    dead: float
    noticed: float
    gone: float
    cold: float
    routed: float
    overlap: float

    @property
    def unrouted(self) -> float:
        """From the death, or the silence, until nothing is routed there."""
        return self.noticed - self.dead

    @property
    def ours(self) -> float:
        """What recovery took beside the group's own start."""
        return self.routed - self.cold


class EpGroup:
    """The files of such a run in `cwd`, and the run."""

    def __init__(self, cwd: Path) -> None:
        from tests.harness.sglang import models

        folder = cwd / "models"
        models.moe(folder / "first")
        models.moe(folder / "other", seed=1)
        file = cwd / "group.toml"
        health = "\n".join(f"{key} = {value}" for key, value in HEALTH.items())
        file.write_text(
            FILE.format(
                patience=PATIENCE_S, health=health, real=REAL, models=folder, python=sys.executable, checkout=CHECKOUT,
                trainer=Path(__file__).with_name("ep_trainer.py"), target=TARGET, tokens=TOKENS,
            )
        )  # fmt: skip
        self.run = Run(cwd, file)

    def engine(self) -> EngineView | None:
        snapshot = self.run.status()
        assert snapshot is not None or self.run.process.poll() is None, self.run.tail()
        return snapshot.pipelines[0].engines[0] if snapshot is not None else None

    def busy(self, life: int, seconds: float = PATIENCE_S) -> EngineView:
        """The engine as soon as it serves in that life and has work."""
        deadline = time.monotonic() + seconds
        while True:
            engine = self.engine()
            if engine is not None and engine.state == "serving" and engine.incarnation == life and engine.in_flight >= 4:
                return engine
            assert time.monotonic() < deadline, f"{engine} after {seconds:.0f} s\n{self.run.tail()}"
            time.sleep(0.2)

    def steps(self) -> list[dict[str, Any]]:
        """What the trainer got."""
        file = self.run.directory / "checkpoints" / "p1" / "samples.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def served(self, count: int, seconds: float = PATIENCE_S) -> list[dict[str, Any]]:
        """Wait until so many rollouts are complete."""
        deadline = time.monotonic() + seconds
        while len(steps := self.steps()) < count:
            assert time.monotonic() < deadline, self.run.tail()
            assert self.run.process.poll() is None, self.run.tail()
            time.sleep(0.2)
        return steps

    def hurt(self, who: str, number: signal.Signals, life: int) -> Recovery:
        """Send the signal to one process of the busy group; returns when its next life serves."""
        engine = self.busy(life)
        everybody = [psutil.Process(engine.pids[0]), *psutil.Process(engine.pids[0]).children(recursive=True)]
        starts = {process.pid: _start(process.pid) for process in everybody}
        victim = engine.pids[0] if who == "parent" else _rank(everybody, int(who.split()[1]))
        bystander = Bystander(victim)
        at = time.time()
        os.kill(victim, number)
        while any(_start(pid) == start for pid, start in starts.items()):
            assert time.time() - at < 120, f"the first life of it still lives\n{self.run.tail()}"
            time.sleep(0.01)
        gone = time.clock_gettime(time.CLOCK_BOOTTIME)
        head = self.busy(life + 1).pids[0]
        born = _start(head)
        assert born is not None
        failed = self._last("engine group failed", life)
        over = self._last("engine group: routed", life)
        noticed = datetime.fromisoformat(str(failed["timestamp"])).timestamp() - at + float(str(over["unrouted_s"]))
        cold = float(str(over["ready_s"])) - float(str(over["started_s"]))
        routed = datetime.fromisoformat(str(over["timestamp"])).timestamp() - at
        dead = bystander.saw() - at if number is signal.SIGKILL else 0.0
        return Recovery(who, number, str(failed["cause"]), dead, noticed, float(str(over["gone_s"])), cold, routed, max(0.0, gone - born))

    def _last(self, event: str, life: int) -> dict[str, object]:
        deadline = time.monotonic() + 10  # the log has a writer of its own
        while True:
            found = [record for record in self.run.log() if record["event"] == event and record["incarnation"] == life]
            if found:
                return found[-1]
            assert time.monotonic() < deadline, f"the log has no '{event}' of life {life}"
            time.sleep(0.1)


class Bystander(threading.Thread):
    """Waits for the end of a process as the supervisor does, and has nothing else to do."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = os.pidfd_open(pid)
        self._at = 0.0
        self.start()

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.poll()
        self._at = time.time()
        os.close(self._descriptor)

    def saw(self) -> float:
        """When (seconds since 1970). Call it when the process is known to be dead."""
        self.join(10)
        assert self._at
        return self._at


def _start(pid: int) -> float | None:
    """Seconds since boot at which the living process with this number was started."""
    stat = read_stat(pid)
    return stat.start / os.sysconf("SC_CLK_TCK") if stat is not None and stat.alive else None


def _rank(processes: list[psutil.Process], rank: int) -> int:
    for process in processes:
        if f"scheduler_TP{rank}" in " ".join(process.cmdline()):
            return int(process.pid)
    raise AssertionError(f"no scheduler of rank {rank} among {[process.cmdline() for process in processes]}")


def left_in_shm(before: set[str]) -> list[str]:
    return [
        entry.name for entry in Path("/dev/shm").iterdir() if entry.name not in before and entry.name.startswith(("sglang_", "sgl_shm_"))
    ]


def load() -> str:
    """How busy the box is: figures are worth nothing without."""
    return subprocess.run(["uptime"], capture_output=True, text=True, check=False).stdout.rpartition("load average: ")[2].strip()

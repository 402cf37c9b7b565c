"""A whole run in real processes, started as a user starts it, watched and hurt from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from supervisor.host.ports import holder
from supervisor.observe.control_socket import NotRunning, Request, StatusReply, StatusRequest, ask
from supervisor.observe.status import PipelineView, Status

CHECKOUT = Path(__file__).resolve().parents[2]
GUARDIAN = CHECKOUT / "supervisor" / "host" / "processes" / "guardian.py"
TINY = CHECKOUT / "tests" / "harness" / "tiny.toml"
SEES_OURS = f'env = {{ PYTHONPATH = "{CHECKOUT}" }}'
"""A line of a trainer's table, for an entry that wraps the built-in trainer: a user's code does not find our packages by itself."""
POLL_S = 0.01


class Run:
    """`bin/supervise run FILE` in `cwd` (past the set-up, which has its own test)."""

    def __init__(self, cwd: Path, file: Path = TINY, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """`env` are variables beside ours."""
        self.cwd = cwd
        before = set(cwd.glob("runs/*/attempt_*"))
        self.output = cwd / "output.txt"
        with open(self.output, "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-E", str(GUARDIAN), "run", str(file), *arguments],
                cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})},
            )  # fmt: skip
        resumed = "--resume" in arguments
        self.wait_until(lambda: resumed or bool(set(cwd.glob("runs/*/attempt_*")) - before), "a run directory")
        self.directory = (cwd / "runs" / "latest").resolve() if resumed else (set(cwd.glob("runs/*/attempt_*")) - before).pop()
        self.wait_until(lambda: (self.directory / "run_id").exists() and (self.directory / "run_id").read_text().strip() != "", "its id")
        self.run_id = (self.directory / "run_id").read_text().strip()

    def wait_until(self, true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for {what}; output:\n{self.tail()}")
            if self.process.poll() is not None and not true():
                raise AssertionError(f"the run ended with {self.process.returncode} before {what}; output:\n{self.tail()}")
            time.sleep(POLL_S)

    def status(self) -> Status | None:
        request: Request = StatusRequest()
        try:
            reply = ask(self.directory / "control.sock", request)
        except NotRunning:
            return None
        assert isinstance(reply, StatusReply)
        return reply.snapshot

    def when(self, pipeline: str, holds: Callable[[PipelineView], bool], what: str, seconds: float = 60.0) -> PipelineView:
        """The pipeline at the first moment at which this holds."""
        found: list[PipelineView] = []

        def look() -> bool:
            snapshot = self.status()
            found[:] = [view for view in snapshot.pipelines if view.name == pipeline and holds(view)] if snapshot else []
            return bool(found)

        self.wait_until(look, what, seconds)
        return found[0]

    def end(self, seconds: float = 90.0) -> int:
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.stop()
            raise AssertionError(f"still running after {seconds:.0f} s; output:\n{self.tail()}") from error

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def supervisor_pid(self) -> int:
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return int(file.read().split()[0])

    def tail(self) -> str:
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-60:])

    # -- what came of it

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        pipelines: dict[str, dict[str, float]] = json.loads((self.directory / "summary.json").read_text())["pipelines"]
        return pipelines

    def metrics(self, pipeline: str) -> list[dict[str, object]]:
        """The last word of each step: reward, loss and the hash of the weights; versions left out, as restarts publish more of them."""
        lines = (self.directory / "checkpoints" / pipeline / "metrics.jsonl").read_text().splitlines()
        by_step = {}
        for line in lines:
            record = json.loads(line)
            record.pop("version")
            by_step[record["step"]] = record
        return [by_step[step] for step in sorted(by_step)]

    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.directory / "supervisor.jsonl").read_text().splitlines()]

    def left_behind(self, shm: Path = Path("/dev/shm")) -> list[str]:
        """Processes, shared memory and listening sockets of this run that still exist: there must be none."""
        found = [f"process {pid}: {command}" for pid, command in processes_of(self.run_id)]
        found += [str(path) for path in shm.glob(f"trainshed-{self.run_id}*")]
        found += [str(path) for path in (self.directory / "control.sock",) if path.exists()]
        ports = {
            int(record["url"].rpartition(":")[2])
            for record in self.log()
            if record["event"] == "gateway" and isinstance(record["url"], str)
        }
        return found + [f"port {port}: {who}" for port in ports & listening() if (who := self._holder(port))]

    def _holder(self, port: int) -> str:
        """Who of this run has the port; another run may have taken it since."""
        who = holder(port)
        pid = who.split()[1] if who.startswith("pid ") else ""
        try:
            return who if Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(self.cwd.resolve()) else ""
        except OSError:  # it has ended
            return ""


def processes_of(run_id: str) -> list[tuple[int, str]]:
    """Living processes whose environment names the run."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                environ = Path(f"/proc/{name}/environ").read_bytes()
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if run_id.encode() in environ and state != "Z":
                found.append((int(name), command[:120]))
    return found


def listening() -> set[int]:
    """Ports that anybody listens on over IPv4."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {int(row.split()[1].rpartition(":")[2], 16) for row in rows if row.split()[3] == "0A"}


PIPELINE = """
[[pipeline]]
name = "{name}"
seed = {seed}
[pipeline.engine]
kind = "embedded"
model = {{ make = "trainers.grpo.tiny:make", options = {{ task = "{task}", seed = {seed} }} }}
gpus = [0, 1, 2, 3]
slots = 16
context = 32
[pipeline.trainer]
gpus = {gpus}
entry = "{entry}"
steps = {steps}
options = {{ task = "{task}" }}
{trainer}
"""


def configuration(
    path: Path,
    *,
    names: tuple[str, ...] = ("p1", "p2"),
    seeds: tuple[int, ...] = (1, 2),
    steps: int = 2,
    entry: str = "trainers.grpo:main",
    host: str = "",
    health: str = "",
    trainer: str = "",
) -> Path:
    """The quickstart's topology with something changed, as a file. `entry` and `trainer` (lines of its table) are the first pipeline's only."""
    parts = [f"[host]\nvirtual = 4\n{host}\n[health]\n{health}\n"]
    for index, (name, seed) in enumerate(zip(names, seeds, strict=False)):
        first = index == 0
        parts.append(
            PIPELINE.format(
                name=name,
                seed=seed,
                task="parity" if name == "p1" else "class",
                gpus="[0, 1]" if name == "p1" else "[2, 3]",
                entry=entry if first else "trainers.grpo:main",
                steps=steps,
                trainer=trainer if first else "",
            )
        )
    path.write_text("".join(parts))
    return path

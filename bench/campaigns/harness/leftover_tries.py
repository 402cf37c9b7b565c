"""One try: a run whose trainer leaves daemons of every kind behind is hurt from above, and then nothing of it may live.

The daemons have left parent and session, some their environment and descriptors, too; none of them ends by itself in time. When guardian and
supervisor have both been killed, who is left is for the next start: `sweep`, its first act, is called here.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from supervisor.attempt.journal import NAME
from supervisor.attempt.sweep import sweep
from supervisor.host.processes.lineage import mark_of_tag, sign_of
from supervisor.host.processes.proc import Identity, read_stat, table
from tests.harness.faulty_run import HARNESS, HEALTH, PYTHON
from tests.harness.supervised_run import GUARDIAN, processes_of

KINDS = ("guardian", "supervisor", "both", "guardian-supervisor", "supervisor-guardian")
"""Who is killed. Two names: one after the other, up to 50 ms apart."""
ENDED_S = 30.0
"""An orderly stop, when only the guardian was killed, has a grace of 1 s; the rest is for a loaded machine."""

CONFIGURATION = """
[host]
virtual = 1
prewarm = false
[health]
restarts = 3
{health}
[[pipeline]]
name = "p1"
[pipeline.engine]
kind = "sglang"
python = "{engine}"
model = "{folder}/model"
gpus = [0]
context = 64
[pipeline.trainer]
gpus = [0]
command = ["{interpreter}", "-S", "{folder}/trainer.py"]
"""
TRAINER = """
import os, signal, subprocess, time
names = []
def nap(name):
    with open(name + ".part", "w") as file: file.write(str(os.getpid()))
    os.rename(name + ".part", name)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(120); os._exit(0)
def forked(name, twice):
    names.append(name)
    if os.fork() == 0:
        os.setsid()
        if twice and os.fork(): os._exit(0)
        nap(name)
def executed(name, closed):
    names.append(name)
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        close = "exec 0>&- 1>&- 2>&-; " if closed else ""
        script = f"trap '' TERM; {close}echo $$ > {name}.part; mv {name}.part {name}; sleep 120"
        os.execvpe("setsid", ["setsid", "sh", "-c", script], {"PATH": os.environ["PATH"]})
forked("session", False); forked("double", True); executed("bare", False); executed("closed", True)
while not all(map(os.path.exists, names)): time.sleep(0.005)
open("ready", "w").close()
time.sleep(120)
"""


def play(folder: Path, kind: str, seed: int) -> dict[str, object]:
    """One try in an empty folder. Returns its figures; raises AssertionError when something lives, or when the kill hit nobody."""
    chance = random.Random(f"{kind}:{seed}")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "scripted"}')
    (folder / "trainer.py").write_text(TRAINER)
    text = CONFIGURATION.format(health=HEALTH.strip(), engine=HARNESS / "faulty_python", folder=folder, interpreter=PYTHON)
    (folder / "run.toml").write_text(text)
    with open(folder / "output.txt", "wb") as out:
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-E", str(GUARDIAN), "run", "run.toml"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _until(lambda: (folder / "ready").exists() or guardian.poll() is not None, 60, "the trainer's daemons")
        assert guardian.poll() is None, (folder / "output.txt").read_text()[-2000:]
        with open(f"/proc/{guardian.pid}/task/{guardian.pid}/children", encoding="ascii") as file:
            supervisor = int(file.read().split()[0])
        of_run = _of_run(folder)
        daemons = {_identity(int((folder / name).read_text())) for name in ("session", "double", "bare", "closed")}
        assert daemons <= of_run, "each daemon is known by its sign"
        time.sleep(chance.uniform(0, 0.3))
        apart = chance.uniform(0, 0.05)
        _kill(kind, {"guardian": guardian.pid, "supervisor": supervisor}, apart)
        return {"kind": kind, "seed": seed, **_what_is_left(folder, guardian, supervisor, kind, of_run)}
    finally:
        _end(guardian, folder)


def _kill(kind: str, pids: dict[str, int], apart: float) -> None:
    names = ["guardian", "supervisor"] if kind == "both" else kind.split("-")
    for index, name in enumerate(names):
        if index and kind != "both":
            time.sleep(apart)
        os.kill(pids[name], signal.SIGKILL)


def _what_is_left(
    folder: Path, guardian: "subprocess.Popen[bytes]", supervisor: int, kind: str, of_run: set[Identity]
) -> dict[str, object]:
    killed = time.monotonic()
    guardian.wait(ENDED_S)
    _until(lambda: not _lives(supervisor), ENDED_S, "the supervisor's end")
    alone = kind in ("guardian", "supervisor")
    if not alone:  # members die with it by the kernel's hand; escapees are for the next start
        members = {identity for identity in of_run if _parent(identity) == supervisor}
        _until(lambda: not any(_lives(identity.pid) for identity in members), 5, "the members' end")
    left = _living(folder, of_run)
    took = time.monotonic() - killed
    swept = sweep(folder / "runs" / "run") if not alone else None
    after = _living(folder, of_run)
    assert not after, f"{kind}: {len(after)} left: {[_command(identity.pid) for identity in after]}"
    assert not alone or not left
    run_id = _run_id(folder)
    assert processes_of(run_id) == []
    assert not list(Path("/dev/shm").glob(f"trainshed-{run_id}*"))
    return {"of_run": len(of_run), "left_for_the_next_start": len(left), "swept": len(swept.killed) if swept else 0, "s": round(took, 2)}


def _living(folder: Path, of_run: set[Identity]) -> set[Identity]:
    seen = {identity for identity in of_run if (stat := read_stat(identity.pid)) is not None and stat.identity == identity and stat.alive}
    return seen | _of_run(folder)


def _of_run(folder: Path) -> set[Identity]:
    """Every living process that bears the sign of a group of this run."""
    (journal,) = (folder / "runs" / "run").glob(f"*/{NAME}")
    entries = [json.loads(line)["what"] for line in journal.read_text().splitlines()]
    tags = {entry["group"] for entry in entries if entry["entry"] == "spawned"}
    marks = {mark_of_tag(tag) for tag in tags}
    found = set()
    for stat in table().values():
        if stat.alive and ((sign := sign_of(stat.pid)).mark in marks or sign.tag in tags):
            found.add(stat.identity)
    return found


def _run_id(folder: Path) -> str:
    (file,) = (folder / "runs" / "run").glob("*/run_id")
    return file.read_text().strip()


def _identity(pid: int) -> Identity:
    stat = read_stat(pid)
    assert stat is not None, f"daemon {pid} has ended"
    return stat.identity


def _parent(identity: Identity) -> int:
    stat = read_stat(identity.pid)
    return stat.parent if stat is not None else 0


def _lives(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.alive


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "?"


def _until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.005)


def _end(guardian: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Whatever happened, leave nothing of this try."""
    if guardian.poll() is None:
        guardian.terminate()
        try:
            guardian.wait(20)
        except subprocess.TimeoutExpired:
            guardian.kill()
            guardian.wait()
    if list((folder / "runs").glob(f"run/*/{NAME}")):
        for identity in _of_run(folder):
            os.kill(identity.pid, signal.SIGKILL)

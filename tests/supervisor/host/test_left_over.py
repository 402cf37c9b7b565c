"""What a group's processes leave behind is ended with the group's life; what belongs to no group is ended and told of. A supervisor of its own."""

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor.attempt.sweep import sweep
from supervisor.host.processes.proc import read_stat
from trainers.protocol.child_env import CHECKOUT

SUPERVISOR = """
import anyio, os, signal, sys
from pathlib import Path
from supervisor.attempt.journal import Journal
from supervisor.host.processes import bootstrap, group
from supervisor.host.processes.group import Command, Processes
folder = Path(sys.argv[1])
bootstrap.become_subreaper()
group.ORPHAN_SECONDS = float(sys.argv[2])
def say(*words): os.write(1, (" ".join(map(str, words)) + "\\n").encode())
async def main():
    journal = Journal(folder / "journal.jsonl", lambda: 0.0)
    processes = Processes(left_over=lambda pid, command: say("left over", pid, command.decode().replace("\\0", " ")))
    async with anyio.create_task_group() as tasks, processes.running():
        tasks.start_soon(processes.reap_forever)
        for name in sys.argv[3:]:
            env = {"PATH": os.environ["PATH"], "TRAINSHED_TAG": f"t:{name}:1"}
            command = Command(argv=[sys.executable, "-I", "-S", str(folder / f"{name}.py")], env=env, cwd=folder, log=folder / f"{name}.log")
            await processes.spawn([command], tag=f"t:{name}:1", record=journal.spawned)
        say("started")
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as received:
            async for number in received:
                if number == signal.SIGTERM: break
                first = processes._groups[0]
                await first.kill()
                processes.discard(first)
                say("ended")
        tasks.cancel_scope.cancel()
    say("over")
anyio.run(main)
"""
DAEMON = """
import os, resource, subprocess, sys, time
def daemon(name, unmarked=False):
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        if unmarked: resource.setrlimit(10, (-1, -1))
        script = f"echo $$ > {name}.part; mv {name}.part {name}; exec 0>&- 1>&- 2>&-; sleep 60"
        subprocess.Popen(["setsid", "sh", "-c", script], env={"PATH": os.environ["PATH"]})
        os._exit(0)
    os.wait()
"""


class Supervisor:
    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        self.process, self.folder = process, folder

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def pid(self, name: str) -> int:
        """The daemon that a group has made, as soon as it is the supervisor's child."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            pid = int((self.folder / name).read_text()) if (self.folder / name).exists() else 0
            stat = read_stat(pid) if pid else None
            if stat is not None and stat.parent == self.process.pid:
                return pid
            time.sleep(0.005)
        raise AssertionError(f"no {name}")


@contextmanager
def supervisor(folder: Path, look: float = 0.05, **programs: str) -> Iterator[Supervisor]:
    attempt = folder / "attempt_1"
    attempt.mkdir()
    for name, program in programs.items():
        (attempt / f"{name}.py").write_text(DAEMON + program)
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    line = [sys.executable, "-P", "-c", SUPERVISOR, str(attempt), str(look), *programs]
    with subprocess.Popen(line, env=env, stdout=subprocess.PIPE) as process:
        try:
            on = Supervisor(process, attempt)
            assert on.line() == "started"
            yield on
        finally:
            process.terminate()


def lives(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.alive


def gone(pid: int, seconds: float = 5) -> bool:
    """Wait for its end."""
    until = time.monotonic() + seconds
    while lives(pid) and time.monotonic() < until:
        time.sleep(0.005)
    return not lives(pid)


def test_a_daemon_lives_as_long_as_its_group(tmp_path: Path) -> None:
    """It has left parent, session, environment and descriptors. Another group's stays."""
    with supervisor(tmp_path, first="daemon('one'); time.sleep(60)", second="daemon('two'); time.sleep(60)") as on:
        one, two = on.pid("one"), on.pid("two")
        time.sleep(0.5)  # ten looks at what is left over
        assert lives(one)
        on.process.send_signal(signal.SIGUSR1)
        assert on.line() == "ended"
        assert not lives(one)
        time.sleep(0.2)
        assert lives(two)
        on.process.terminate()
        assert on.line() == "over", "nobody was told of, as all were known"
        assert not lives(two)


def test_what_cannot_be_attributed_is_ended_and_told_of(tmp_path: Path) -> None:
    """It has got rid of the mark, too, on purpose."""
    with supervisor(tmp_path, first="daemon('kept'); daemon('stray', True); time.sleep(60)") as on:
        said = on.line()
        assert said.startswith("left over ")
        assert "sleep 60" in said or "setsid" in said
        kept = on.pid("kept")
        assert gone(int(said.split()[2]))
        assert lives(kept)


def test_at_the_end_nothing_is_left_without_a_guardian(tmp_path: Path) -> None:
    """Also of a stray that nobody has looked at yet."""
    with supervisor(tmp_path, look=60, first="daemon('stray', True); daemon('kept'); time.sleep(60)") as on:
        kept, stray = on.pid("kept"), on.pid("stray")
        on.process.terminate()
        while on.line() != "over":
            pass
        assert not lives(kept)
        assert not lives(stray)


def test_after_a_double_kill_the_next_start_finds_who_left_everything_behind(tmp_path: Path) -> None:
    with supervisor(tmp_path, first="daemon('one'); time.sleep(60)") as on:
        one = on.pid("one")
        os.kill(on.process.pid, signal.SIGKILL)
        on.process.wait()
    assert lives(one)
    poll = select.poll()
    poll.register(handle := os.pidfd_open(one), select.POLLIN)
    assert one in sweep(tmp_path).killed
    assert poll.poll(1000)
    os.close(handle)


def test_a_sweep_leaves_those_with_another_mark_alone(tmp_path: Path) -> None:
    """Whatever tag its environment shows."""
    with supervisor(tmp_path, first="time.sleep(60)") as on:
        other = subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], "TRAINSHED_TAG": "t:first:1"})
        resource.prlimit(other.pid, 10, (12345, -1))
        os.kill(on.process.pid, signal.SIGKILL)
        on.process.wait()
        try:
            sweep(tmp_path)
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()

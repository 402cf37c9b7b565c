"""The guardian with stand-ins for the supervisor: exit codes, signals, and nothing left within two seconds of a kill -9."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from supervisor.host.processes.guardian_link import LATER_S
from supervisor.host.processes.proc import read_stat

CHECKOUT = Path(__file__).resolve().parents[3]
GUARDIAN = CHECKOUT / "supervisor" / "host" / "processes" / "guardian.py"
BEGIN = r"""
import os, signal, subprocess, sys, time
from pathlib import Path
from supervisor.host.processes import guardian_link
guard = guardian_link.enter()
def say(*words): os.write(1, (" ".join(map(str, words)) + "\n").encode())  # whole lines, whoever else speaks
"""
ESCAPEES = """
def nap():
    signal.signal(15, signal.SIG_IGN); say(os.getpid()); time.sleep(60); os._exit(0)
for how in range(6):
    if os.fork() == 0:
        if how % 3 > 0: os.setsid()
        if how % 3 > 1 and os.fork(): os._exit(0)
        nap()
subprocess.Popen(["setsid", "sh", "-c", "trap '' TERM; echo $$; sleep 60"], env={"PATH": os.environ["PATH"]})
"""


class Guarded:
    """A guardian whose supervisor is the given program; `pids` collects what they print."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def says(self, count: int) -> list[str]:
        assert self.process.stdout is not None
        return [self.process.stdout.readline().strip() for _ in range(count)]

    @property
    def supervisor(self) -> int:
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return int(file.read().split()[0])


@contextmanager
def guarded(folder: Path, program: str, *arguments: str, stderr: IO[bytes] | None = None) -> Iterator[Guarded]:
    (folder / "stand_in.py").write_text(BEGIN + program)
    env = {**os.environ, "PYTHONPATH": str(folder), "TRAINSHED_GUARDED_MODULE": "stand_in"}
    line = [sys.executable, "-I", "-S", "-E", str(GUARDIAN), *arguments]
    with subprocess.Popen(line, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            yield Guarded(process)
        finally:
            process.terminate()
            assert process.stdout is not None
            process.stdout.close()


def lives(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.alive


@pytest.mark.parametrize("code", [0, 1, 3, 70, 255])
def test_the_code_is_the_supervisors(tmp_path: Path, code: int) -> None:
    with guarded(tmp_path, f"sys.exit({code})") as guardian:
        assert guardian.process.wait(5) == code


def test_a_killed_supervisor_is_128_and_the_signal(tmp_path: Path) -> None:
    with open(tmp_path / "errors", "wb") as errors, guarded(tmp_path, "say(1); time.sleep(60)", stderr=errors) as guardian:
        guardian.says(1)
        os.kill(guardian.supervisor, signal.SIGKILL)
        assert guardian.process.wait(5) == 128 + signal.SIGKILL
    assert "the supervisor was killed (signal 9); everything of the run was ended with it" in (tmp_path / "errors").read_text()


def test_arguments_and_session(tmp_path: Path) -> None:
    program = "say(*sys.argv[1:]); say(os.getsid(0) == os.getpid() != os.getppid(), 'TRAINSHED_GUARDIAN_FD' in os.environ)"
    with guarded(tmp_path, program, "run", "a b.toml") as guardian:
        assert guardian.says(2) == ["run a b.toml", "True False"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_forwarded_each_time(tmp_path: Path, number: signal.Signals) -> None:
    program = """
count = 0
def heard(number, frame):
    global count
    count += 1
    say("heard", number)
for number in (1, 2, 15): signal.signal(number, heard)
say("ready")
while count < 3: signal.pause()
sys.exit(5)
"""
    with guarded(tmp_path, program) as guardian:
        guardian.says(1)
        for _ in range(3):
            guardian.process.send_signal(number)
            assert guardian.says(1) == [f"heard {int(number)}"]
        assert guardian.process.wait(5) == 5


def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with guarded(tmp_path, "signal.signal(1, lambda *_: sys.exit(1)); say(1); time.sleep(0.2)") as guardian:
            guardian.says(1)
            guardian.process.send_signal(signal.SIGHUP)
            assert guardian.process.wait(5) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("how", ["kill -9", "exit", "segfault"])
def test_nothing_lives_two_seconds_after_the_supervisor(tmp_path: Path, how: str) -> None:
    end = {"kill -9": "time.sleep(60)", "exit": "sys.stdin.readline(); os._exit(4)", "segfault": "sys.stdin.readline(); os.abort()"}[how]
    with guarded(tmp_path, ESCAPEES + end) as guardian:
        pids = [int(word) for word in guardian.says(7)]
        assert len(set(pids)) == 7
        supervisor = os.pidfd_open(guardian.supervisor)
        if how == "kill -9":
            os.kill(guardian.supervisor, signal.SIGKILL)
        assert guardian.process.stdin is not None
        guardian.process.stdin.close()
        poll = select.poll()
        poll.register(supervisor, select.POLLIN)
        poll.poll(5000)
        os.close(supervisor)
        ended = time.monotonic()
        guardian.process.wait(5)
        assert time.monotonic() - ended < 2
        assert [pid for pid in pids if lives(pid)] == []


def test_registered_paths_are_removed_and_others_are_not(tmp_path: Path) -> None:
    ours, other = tmp_path / "trainshed-x", tmp_path / "precious"
    for folder in (ours, other):
        folder.mkdir()
        (folder / "file").write_text("x")
    (ours / "link").symlink_to(other)
    program = f"""
guard.sweep(Path({str(ours)!r}))
try: guard.sweep(Path({str(other)!r}))
except ValueError as error: say(error)
os.write(guard._descriptor, b"sweep {other}\\nsweep {ours}/../precious\\nsweep relative/trainshed-y\\n")
os.kill(os.getpid(), 9)
"""
    with guarded(tmp_path, program) as guardian:
        assert guardian.says(1)[0].startswith("only an absolute path whose last part starts with 'trainshed-'")
        guardian.process.wait(5)
    assert not ours.exists()
    assert (other / "file").exists()


def test_a_folder_that_is_deeper_than_a_program_can_recurse_is_removed_and_what_comes_after_it(tmp_path: Path) -> None:
    program = f"""
top = Path({str(tmp_path)!r})
for name in ("trainshed-a", "trainshed-deep", "trainshed-z"):
    (top / name).mkdir(); guard.sweep(top / name)
os.chdir(top / "trainshed-deep")
for _ in range(3000): os.mkdir("in"); os.chdir("in")
os.chdir("/")
os.kill(os.getpid(), 9)
"""
    with guarded(tmp_path, program) as guardian:
        assert guardian.process.wait(20) == 137
    assert [path.name for path in tmp_path.glob("trainshed-*")] == []


def test_the_supervisor_is_told_when_the_guardian_dies(tmp_path: Path) -> None:
    program = """
def told(*_):
    Path("told").write_text("TERM"); guard.sweep(Path("/trainshed-nobody-listens")); sys.exit(0)
signal.signal(15, told); os.chdir(TMP); say(os.getpid()); time.sleep(60)
""".replace("TMP", repr(str(tmp_path)))
    with guarded(tmp_path, program) as guardian:
        supervisor = int(guardian.says(1)[0])
        guardian.process.kill()
        guardian.process.wait(5)
        until = time.monotonic() + 5
        while lives(supervisor) and time.monotonic() < until:
            time.sleep(0.01)
        assert not lives(supervisor)
        assert (tmp_path / "told").read_text() == "TERM"


def test_detached(tmp_path: Path) -> None:
    """The command returns when the supervisor says ready, and passes its code on when it does not get there."""
    with guarded(tmp_path, "time.sleep(0.3); sys.exit(7)", "run", "--detach") as guardian:
        assert guardian.process.wait(5) == 7
    program = f"Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); guard.ready(); guard.leave_terminal(); time.sleep(60)"
    with guarded(tmp_path, program, "run", "--detach") as guardian:
        assert guardian.process.wait(5) == 0
        supervisor = int((tmp_path / "pid").read_text())
        assert lives(supervisor)
        assert guardian.says(1) == [""], "nobody keeps the terminal"
        end_detached(supervisor)


def end_detached(supervisor: int) -> None:
    """By its guardian, which takes it along."""
    stat = read_stat(supervisor)
    assert stat is not None
    os.kill(stat.parent, signal.SIGTERM)
    until = time.monotonic() + 5
    while lives(stat.parent) and time.monotonic() < until:
        time.sleep(0.01)
    assert not lives(supervisor)


@pytest.mark.parametrize(("code", "text"), [(0, "everything has started"), (4, "supervise: p1 failed for good: näh")])
def test_detached_says_how_the_start_went(tmp_path: Path, code: int, text: str) -> None:
    program = f"""
Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
guard.ready({code}, {text!r}); guard.ready(9, "twice"); time.sleep(60)
"""
    with open(tmp_path / "errors", "wb") as errors, guarded(tmp_path, program, "run", "--detach", stderr=errors) as guardian:
        assert guardian.process.wait(5) == code
        said = guardian.says(1)[0] if code == 0 else (tmp_path / "errors").read_text().strip()
        assert said == text
        end_detached(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_waits_for_a_detached_run_may_leave_it_alone(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, or a terminal that is closed, while everything starts."""
    program = f"""
Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid())); say("begins")
while not os.path.exists({str(tmp_path / "go")!r}): time.sleep(0.01)
guard.ready(0, "nobody reads this"); Path({str(tmp_path / "told")!r}).touch(); time.sleep(60)
"""
    with open(tmp_path / "errors", "wb") as errors, guarded(tmp_path, program, "run", "--detach", stderr=errors) as guardian:
        guardian.says(1)
        guardian.process.send_signal(number)
        assert guardian.process.wait(5) == 128 + number
        assert "the run goes on" in (tmp_path / "errors").read_text()
        supervisor = int((tmp_path / "pid").read_text())
        (tmp_path / "go").touch()
        until = time.monotonic() + 5
        while not (tmp_path / "told").exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)  # the guardian's word to nobody is on its way
        assert lives(supervisor), "its guardian has not fallen over that"
        end_detached(supervisor)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_descriptors_of_ours(tmp_path: Path, closed: str) -> None:
    program = f"Path({str(tmp_path / 'is')!r}).write_text(str([os.path.basename(os.readlink(f'/proc/self/fd/{{n}}')) for n in range(3)]))"
    (tmp_path / "stand_in.py").write_text(BEGIN + program)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "TRAINSHED_GUARDED_MODULE": "stand_in"}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -I -S -E {GUARDIAN} {closed}"], env=env, timeout=20, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "is").read_text().count("null") >= closed.count("&")


HANGS = (
    """
import faulthandler
guard.log("r1", Path(TMP, "log")); faulthandler.enable(file=open(Path(TMP, "stack"), "w"))
saves = "signal.signal(15, lambda *_: (print('saved', flush=True), exit()))"
child = subprocess.Popen([sys.executable, "-c", f"import signal, time\\n{saves}\\nprint(1, flush=True); time.sleep(60)"])
guard.watch(LIMIT, 2.0)
def loop(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until: guard.beat(); time.sleep(0.05)
def the_call_that_hangs(): time.sleep(60)
"""
    + ESCAPEES
)


def hangs(folder: Path, rest: str, limit: float = 1.0) -> str:
    (folder / "log").touch()
    return HANGS.replace("TMP", repr(str(folder))).replace("LIMIT", str(limit)) + rest


@pytest.mark.parametrize("how", ["hangs", "is stopped"])
def test_f27_a_supervisor_that_says_nothing_is_ended_with_everything(tmp_path: Path, how: str) -> None:
    """First it is said, on the terminal and in the log; then children are asked to end, the stack is written, and nothing is left."""
    rest = "loop(1.5); say('hangs now'); the_call_that_hangs()" if how == "hangs" else "loop(60)"
    with open(tmp_path / "errors", "wb") as errors, guarded(tmp_path, hangs(tmp_path, rest), stderr=errors) as guardian:
        said = guardian.says(8 if how == "is stopped" else 9)
        pids = [int(word) for word in said if word.isdigit() and word != "1"]
        if how == "is stopped":
            os.kill(guardian.supervisor, signal.SIGSTOP)
        assert guardian.process.stdout is not None
        assert guardian.process.wait(15) == 128 + signal.SIGABRT
        assert "saved" in guardian.process.stdout.read(), "its child was asked first"
    assert [pid for pid in pids if lives(pid)] == []
    errors_said = (tmp_path / "errors").read_text()
    assert "has said nothing for 1 s: it " + ("is stopped" if how == "is stopped" else "waits") in errors_said
    assert "The run is ended" in errors_said
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [record["level"] for record in records] == ["warning", "critical"]
    assert all(record["event"].startswith("guardian: ") and record["run"] == "r1" for record in records)
    if how == "hangs":
        assert "the_call_that_hangs" in (tmp_path / "stack").read_text()


def test_a_supervisor_that_speaks_again_goes_on(tmp_path: Path) -> None:
    """One that is stopped for less than the limit, and one that has said that its loop has ended."""
    rest = "loop(1.5); say('stop me'); loop(2); guard.unwatch(); time.sleep(2); child.kill(); os._exit(3)"
    with open(tmp_path / "errors", "wb") as errors, guarded(tmp_path, hangs(tmp_path, rest, 1.5), stderr=errors) as guardian:
        while guardian.says(1) != ["stop me"]:
            pass
        os.kill(guardian.supervisor, signal.SIGSTOP)
        time.sleep(1.1)
        os.kill(guardian.supervisor, signal.SIGCONT)
        assert guardian.process.wait(15) == 3
    assert "the supervisor goes on; it had said nothing for 1 s" in (tmp_path / "errors").read_text()


def test_killing_the_guardian_of_a_hung_supervisor_does_not_save_it(tmp_path: Path) -> None:
    """The kernel's timer ends it: TERM, which the guardian's death sends, is not heard by who is stopped."""
    with guarded(tmp_path, hangs(tmp_path, "loop(60)")) as guardian:
        guardian.says(8)
        supervisor = guardian.supervisor
        os.kill(supervisor, signal.SIGSTOP)
        guardian.process.kill()
        guardian.process.wait(5)
        until = time.monotonic() + 1.5 + 2 + LATER_S + 3
        while lives(supervisor) and time.monotonic() < until:
            time.sleep(0.01)
        if survives := lives(supervisor):
            os.kill(supervisor, signal.SIGKILL)  # leave nothing of a test that fails
        assert not survives


def test_a_stopped_guardian_does_not_hang_the_supervisor(tmp_path: Path) -> None:
    """The pipe fills, and beats are dropped."""
    program = "say(1); sys.stdin.readline()\nfor _ in range(30_000): guard._write('alive')\nsay('wrote all'); time.sleep(60)"
    with guarded(tmp_path, program) as guardian:
        guardian.says(1)
        guardian.process.send_signal(signal.SIGSTOP)
        assert guardian.process.stdin is not None
        assert guardian.process.stdout is not None
        guardian.process.stdin.close()
        try:
            assert select.select([guardian.process.stdout], [], [], 10)[0], "it waits for who does not read"
            assert guardian.says(1) == ["wrote all"]
        finally:
            guardian.process.send_signal(signal.SIGCONT)

"""This module starts one child process and holds it: it waits for its release before it becomes the real program.

Between start and release the supervisor can write down who the child is, so that no child ever runs that a later start of the
supervisor could not find again. `group.py` makes groups of these; `pool.py` starts another kind with the same face.
"""

import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import anyio

from supervisor.host.processes import bootstrap
from supervisor.host.processes.lineage import mark_of_tag
from supervisor.host.processes.proc import Identity, read_stat
from supervisor.host.regular_file import open_regular
from trainers.protocol.child_env import TAG

BOOTSTRAP: Final = (sys.executable, "-I", "-S", "-E", bootstrap.__file__)
PLAIN_ERRORS: Final = {2: "no such file", 13: "not permitted", 7: "arguments and environment too long", 8: "not a program"}


class SpawnFailed(Exception):
    """A child could not be started, and nothing of it remains. The message says which program, and why."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command is what one member runs.

    Either `argv` is a whole command line, or `module` names one of our own modules and `argv` are its arguments; only the
    latter can come from the prewarmed pool. `env` is the whole environment. `pass_fds` keep their numbers in the child.
    `log` takes standard output and error; it is appended to. `niceness` (0 to 19) is added to ours; not in the pool.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    pass_fds: Sequence[int] = ()
    module: str | None = None
    niceness: int = 0

    @property
    def line(self) -> list[str]:
        """Return the command line outside the pool."""
        return list(self.argv) if self.module is None else [sys.executable, "-P", "-m", self.module, *self.argv]

    def __str__(self) -> str:
        return self.module or self.argv[0]


@dataclass(frozen=True)
class Status:
    """How a process ended: with a code, or by a signal's number; neither when somebody else collected it."""

    code: int | None = None
    signal: int | None = None

    @property
    def returncode(self) -> int | None:
        """The same as one number, negative for a signal, as `subprocess` has it; None when it is not known."""
        return self.code if self.signal is None else -self.signal

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        return "ended, code unknown" if self.code is None else f"exit code {self.code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


class Child(Protocol):
    """A child is a started process. `pidfd` becomes readable when it ends; `close` gives up our descriptors, not the process."""

    identity: Identity
    tag: str
    pidfd: int
    handshake: socket.socket

    async def collect(self) -> Status:
        """Return how it ended. Call it once, when `pidfd` is readable."""

    def close(self) -> None: ...


@dataclass
class PlainChild:
    """A plain child was forked by this process."""

    process: subprocess.Popen[bytes]
    identity: Identity
    tag: str
    pidfd: int
    handshake: socket.socket = field(repr=False)

    async def collect(self) -> Status:
        return self.collect_now()

    def collect_now(self) -> Status:
        status = reap(os.P_PIDFD, self.pidfd) or Status()
        # subprocess must neither collect it a second time nor warn that it still runs
        self.process.returncode = 0
        return status

    def close(self) -> None:
        os.close(self.pidfd)
        self.handshake.close()


def start_plain(command: Command) -> PlainChild:
    """Start `command` and hold it. This takes about 3 ms and must run in the main thread, to which the kernel ties "die with the parent".

    Raises SpawnFailed.
    """
    ours, theirs = socket.socketpair()
    try:
        log = open_log(command.log)
        try:
            process = subprocess.Popen(
                [*BOOTSTRAP, *_bootstrap_options(theirs.fileno(), command), "--", *command.line],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(command.env),
                cwd=command.cwd,
                pass_fds=(theirs.fileno(), *command.pass_fds),
                start_new_session=True,
            )
        finally:
            os.close(log)
        started = read_stat(process.pid)
        assert started is not None, "a child of ours stays until we collect it"
        ours.setblocking(False)
        return PlainChild(process, started.identity, command.env.get(TAG, ""), os.pidfd_open(process.pid), ours)
    except OSError as error:
        ours.close()
        raise SpawnFailed(f"cannot start {command}: {describe(error)}") from error
    finally:
        theirs.close()


def _bootstrap_options(handshake: int, command: Command) -> list[str]:
    numbers = {
        "--parent": os.getpid(),
        "--handshake": handshake,
        "--nice": command.niceness,
        "--mark": mark_of_tag(command.env.get(TAG, "")),
    }
    return [word for name, number in numbers.items() for word in (name, str(number))]


def open_log(path: Path) -> int:
    """Open a child's log, without waiting. A FIFO, link or socket that somebody has put in its place is removed. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        return open_regular(path, flags)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if not (stat.S_ISFIFO(mode) or stat.S_ISLNK(mode) or stat.S_ISSOCK(mode)):
                raise
            path.unlink()
        return open_regular(path, flags | os.O_EXCL)


def describe(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{PLAIN_ERRORS.get(error.errno or 0, error.strerror)}{where}"


async def release(child: Child, command: Command) -> None:
    """Let a held child become its program; return when it has. Raises SpawnFailed when the program cannot be executed."""
    try:
        child.handshake.send(b"r")
        await anyio.wait_readable(child.handshake)
        reply = child.handshake.recv(4096)
    except OSError as error:
        raise SpawnFailed(f"cannot start {command}: it ended before it was released ({error.strerror})") from error
    if reply:
        number, _, text = reply.decode(errors="replace").partition(" ")
        raise SpawnFailed(f"cannot execute {command}: {PLAIN_ERRORS.get(int(number), text)}")


async def wait_exit(pidfd: int) -> None:
    """Wait until a process has ended. Any number of tasks may wait for one process."""
    own = os.dup(pidfd)
    try:
        await anyio.wait_readable(own)
    finally:
        os.close(own)


def has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def reap(kind: int, number: int) -> Status | None:
    """Collect a dead child of ours. Return None when it is not ours, not dead, or somebody took it."""
    try:
        result = os.waitid(kind, number, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return Status(code=result.si_status) if result.si_code == os.CLD_EXITED else Status(signal=result.si_status)

"""This module runs the prewarmed pool: a `multiprocess` fork server that has imported what takes seconds, and forks in milliseconds.

The server and what runs in its children are `multiprocess`'s; starting it and talking to it is done here, so that it lives like
any other child (own session, clean environment, log, killed with us), needs no resource tracker, no address that others could
connect to (its socket is unlinked at once and reached through /proc/self/fd), and never blocks the supervisor's loop.
Its children never see the supervisor's `__main__`: nothing about it is sent.

A server that does not answer is killed and replaced (`watch`). That costs its children nothing: they live of the lifeline, become ours when it
ends, and the kernel keeps for us the codes of those that have ended meanwhile.
"""

import contextlib
import functools
import io
import os
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import multiprocess
from multiprocess import context as multiprocess_context
from multiprocess import reduction

from supervisor.host.processes import pool_child
from supervisor.host.processes.child import (
    Command,
    PlainChild,
    SpawnFailed,
    Status,
    has_ended,
    open_log,
    reap,
    release,
    start_plain,
    wait_exit,
)
from supervisor.host.processes.child import (
    describe as describe_error,
)
from supervisor.host.processes.pidfd import open_verified
from supervisor.host.processes.proc import Identity, read_stat
from trainers.protocol.child_env import TAG

PRELOAD: Final = (
    "torch",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "aiohttp",
    "safetensors.torch",
    "msgspec",
    "supervisor.host.processes.pool_child",
)
"""Imports only: nothing here may start a thread or touch a GPU, because it is forked."""

SERVER: Final = (
    "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'prewarm'); "  # PR_SET_NAME: its children name themselves
    "from supervisor.host.processes.pool_child import serve; serve(*map(int, sys.argv[1:4]), sys.argv[4].split(','))"
)
NUMBER: Final = struct.Struct("q")
EXIT_CODE_SECONDS: Final = 2.0
"""How long the server may take to pass on the code of a child that has ended."""
END_SECONDS: Final = 1.0
PING_SECONDS: Final = 2.0
"""Between two questions whether the server is there."""
ANSWER_SECONDS: Final = 5.0
IMPORT_SECONDS: Final = 120.0
"""How long its imports may take, in which it cannot answer."""


@dataclass
class PrewarmedChild:
    """A child of the pool's server. Its exit code comes from the server, or from the kernel if the server died before it."""

    identity: Identity
    tag: str
    pidfd: int
    handshake: socket.socket = field(repr=False)
    status: socket.socket = field(repr=False)
    end_server: Callable[[], Awaitable[None]] = field(repr=False)
    """Kills its server, if that still lives, and returns when it has ended."""

    async def collect(self) -> Status:
        with anyio.move_on_after(EXIT_CODE_SECONDS), contextlib.suppress(EOFError, OSError):
            return _status(await receive_number(self.status))
        await self.end_server()  # it is gone, or hangs: now the kernel makes the child ours, if we are the nearest subreaper
        with anyio.move_on_after(END_SECONDS), contextlib.suppress(EOFError, OSError):
            return _status(await receive_number(self.status))  # said just before
        return reap(os.P_PIDFD, self.pidfd) or Status()

    def close(self) -> None:
        os.close(self.pidfd)
        self.handshake.close()
        self.status.close()


def _status(code: int) -> Status:
    return Status(code=code) if code >= 0 else Status(signal=-code)


@dataclass
class _Server:
    child: PlainChild
    address: int  # O_PATH descriptor of its listening socket
    alive: int  # its only reason to live: it ends when this is closed
    answers: int  # it writes a byte when its imports are done, and one for each ping
    began: float = field(default_factory=anyio.current_time)
    ready: bool = False

    def close(self) -> None:
        for descriptor in (self.address, self.alive, self.answers):
            os.close(descriptor)

    async def fails_to_answer(self) -> str:
        """Ask whether it is there. Return what is wrong, "" when nothing is."""
        own = os.dup(self.answers)
        try:
            self.ready = self._heard(own) or self.ready
            if self.ready:
                signal.pidfd_send_signal(self.child.pidfd, pool_child.PING)
            with anyio.move_on_after(ANSWER_SECONDS):
                await anyio.wait_readable(own)
            if self._heard(own):
                self.ready = True
                return ""
        except ProcessLookupError:
            return "it has ended"
        finally:
            os.close(own)
        stat = read_stat(self.child.identity.pid)
        if stat is not None and stat.state == "T":
            return "it is stopped"
        if self.ready:
            return f"it has not answered for {ANSWER_SECONDS:g} s"
        return f"its imports take longer than {IMPORT_SECONDS:g} s" if anyio.current_time() - self.began > IMPORT_SECONDS else ""

    @staticmethod
    def _heard(answers: int) -> bool:
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(answers, 4096))
        return False


def _nobody_told(pid: int, why: str) -> None:
    """Does nothing: the default of `replaced`."""


class PrewarmedPool:
    """One pool. `env` is the environment that its imports see; `directory` is ours alone (the socket is born there, and unlinked).

    `replaced` is told the pid of a server that is given up, and why.
    """

    def __init__(
        self,
        *,
        env: Mapping[str, str],
        tag: str,
        directory: Path,
        log: Path,
        modules: Sequence[str] = PRELOAD,
        replaced: Callable[[int, str], None] = _nobody_told,
    ) -> None:
        self._command = Command(argv=(), env={**env, "OMP_NUM_THREADS": "1", TAG: tag}, cwd=directory, log=log)
        self._directory = directory
        self._modules = tuple(modules)
        self._replaced = replaced
        self._server: _Server | None = None
        self._held: PlainChild | None = None
        self._starting = anyio.Lock()
        self._lifeline, self._our_life = os.pipe()
        self.starts = 0

    @property
    def tag(self) -> str:
        """Return the tag that the environment of its children shows to others."""
        return self._command.env[TAG]

    def pids(self) -> set[int]:
        """Return the server's pid, also while it is started."""
        children = [self._held, self._server.child if self._server is not None else None]
        return {child.identity.pid for child in children if child is not None}

    async def begin(self) -> None:
        """Start the server, if none lives, and return before its imports are done. Raises SpawnFailed."""
        async with self._starting:
            if self._server is not None and not has_ended(self._server.child.pidfd):
                return
            await self._drop()
            self._server = await self._launch()
            self.starts += 1

    async def start(self, command: Command) -> PrewarmedChild:
        """Start a held child of `command.module`, waiting for the server's imports if they still go on. Raises SpawnFailed."""
        assert command.module is not None, "the pool runs modules of ours"
        try:
            log = open_log(command.log)
        except OSError as error:  # the fault of this command: no reason to kill a server of whom others live
            raise SpawnFailed(f"cannot start {command}: {describe_error(error)}") from error
        try:
            for last in (False, True):
                await self.begin()
                try:
                    return await self._fork(command, log)
                except (EOFError, OSError) as error:  # the server has just died, or is not there: one more try with a new one
                    if last:
                        raise SpawnFailed(f"cannot start {command} from the prewarmed pool: {error} (see {self._command.log})") from error
                    if self._server is not None:
                        await _end(self._server.child)
            raise AssertionError("unreachable")
        finally:
            os.close(log)

    async def watch(self) -> None:
        """Ask the server every few seconds whether it is there, until cancelled; one that does not answer, or has ended, is replaced."""
        while True:
            await anyio.sleep(PING_SECONDS)
            server = self._server
            if server is None:
                continue
            if why := await server.fails_to_answer():
                self._replaced(server.child.identity.pid, why)
                await _end(server.child)
                with contextlib.suppress(SpawnFailed):  # the next child that is wanted says so
                    await self.begin()

    async def end(self) -> None:
        """End the server and let go of the children: those that still live are killed by the kernel."""
        with anyio.CancelScope(shield=True):
            async with self._starting:
                await self._drop()
        for descriptor in (self._lifeline, self._our_life):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    async def _launch(self) -> _Server:
        with socket.socket(socket.AF_UNIX) as listener:
            address = self._bind(listener)
            lives, alive = os.pipe()
            answers, answering = os.pipe()
            os.set_blocking(answers, False)
            try:
                given = (listener.fileno(), lives, answering)
                argv = (sys.executable, "-P", "-c", SERVER, *map(str, given), ",".join(self._modules))
                template = self._command
                command = Command(argv=argv, env=template.env, cwd=template.cwd, log=template.log, pass_fds=given)
                self._held = child = start_plain(command)
                server = _Server(child, address, alive, answers)
            except BaseException:
                for descriptor in (address, alive, answers):
                    os.close(descriptor)
                raise
            finally:
                os.close(lives)
                os.close(answering)
        try:
            await release(child, command)
        except BaseException:
            server.close()
            child.close()
            raise
        finally:
            self._held = None
        return server

    def _bind(self, listener: socket.socket) -> int:
        """Bind and listen where only holders of the returned descriptor can connect. Raises OSError."""
        folder = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        name = f".prewarm-{os.getpid()}-{self.starts}"
        path = f"/proc/self/fd/{folder}/{name}"  # a path of any length would not fit into an address
        try:
            listener.bind(path)
            try:
                listener.listen(128)
                return os.open(path, os.O_PATH | os.O_CLOEXEC)
            finally:
                os.unlink(path)
        finally:
            os.close(folder)

    async def _fork(self, command: Command, log: int) -> PrewarmedChild:
        server = self._server
        assert server is not None, "begin() came before"
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            handshake, their_handshake = _pair(ours, theirs)
            status, their_status = _pair(ours, theirs)
            data, their_data = _pair(ours, theirs)
            nothing = os.open(os.devnull, os.O_RDWR)
            theirs.callback(os.close, nothing)
            sent = [their_data.fileno(), their_status.fileno(), nothing, nothing]  # the server's protocol: two for it, two we do without
            sent += [their_handshake.fileno(), log, self._lifeline, *command.pass_fds]
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                client.connect(f"/proc/self/fd/{server.address}")
                reduction.sendfds(client, sent)  # type: ignore[no-untyped-call]
            theirs.close()
            with data:
                await send_all(data, describe(command))
            pid = await receive_number(status)
            identity, pidfd = _identify(pid, server.child.identity.pid)
            ours.callback(os.close, pidfd)
            ours.pop_all()
            return PrewarmedChild(identity, self.tag, pidfd, handshake, status, functools.partial(_end, server.child))

    async def _drop(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        with anyio.move_on_after(END_SECONDS, shield=True):
            await wait_exit(server.child.pidfd)
        if not has_ended(server.child.pidfd):
            server.child.process.kill()
            await wait_exit(server.child.pidfd)
        server.child.collect_now()
        server.child.close()


async def _end(server: PlainChild) -> None:
    """Kill a server that does not serve, and wait until it has ended: then the kernel has given its children to us."""
    pidfd = open_verified(server.identity)  # its own may be closed meanwhile, by whoever replaces it
    if pidfd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with anyio.move_on_after(END_SECONDS, shield=True):
            await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _pair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    mine, other = socket.socketpair()
    mine.setblocking(False)
    return ours.enter_context(mine), theirs.enter_context(other)


def _identify(pid: int, server: int) -> tuple[Identity, int]:
    """Open a handle on a forked child. Raises EOFError when it ended before that."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise EOFError("the child ended at once") from error
    stat = read_stat(pid)
    if stat is None or stat.parent != server:
        os.close(pidfd)
        raise EOFError("the child ended at once")
    return stat.identity, pidfd


def describe(command: Command) -> bytes:
    """Encode what the server's child reads: how to prepare (a name only: no `__main__`, no path), and the process to be."""
    assert command.module is not None, "the pool runs modules of ours"
    order = pool_child.Order(command.module, tuple(command.argv), dict(command.env), str(command.cwd), tuple(command.pass_fds))
    buffer = io.BytesIO()
    process = multiprocess.get_context("spawn").Process(  # type: ignore[attr-defined]
        target=pool_child.run, args=(order,), name=command.module
    )
    multiprocess_context.set_spawning_popen(command)  # type: ignore[no-untyped-call]
    try:
        reduction.dump({"name": command.module}, buffer)  # type: ignore[no-untyped-call]
        reduction.dump(process, buffer)  # type: ignore[no-untyped-call]
    finally:
        multiprocess_context.set_spawning_popen(None)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


async def send_all(to: socket.socket, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[to.send(rest) :]
        except BlockingIOError:
            await anyio.wait_writable(to)


async def receive_number(source: socket.socket) -> int:
    """Receive one number of the server's protocol. Raises EOFError when the other end closes first."""
    data = b""
    while len(data) < NUMBER.size:
        try:
            got = source.recv(NUMBER.size - len(data))
        except BlockingIOError:
            await anyio.wait_readable(source)
            continue
        if not got:
            raise EOFError("the pool's server is gone")
        data += got
    (number,) = NUMBER.unpack(data)
    return int(number)

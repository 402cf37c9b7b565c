"""This module runs the prewarmed pool: a `multiprocess` fork server that has imported what takes seconds, and forks in milliseconds.

The server and what runs in its children are `multiprocess`'s; starting it and talking to it is done here, so that it lives like
any other child (own session, clean environment, log, killed with us), needs no resource tracker, no address that others could
connect to (its socket is unlinked at once and reached through /proc/self/fd), and never blocks the supervisor's loop.
Its children never see the supervisor's `__main__`: nothing about it is sent.
"""

import contextlib
import io
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
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
    "from multiprocess.forkserver import main; main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(','))"
)
NUMBER: Final = struct.Struct("q")
EXIT_CODE_SECONDS: Final = 2.0
END_SECONDS: Final = 1.0


@dataclass
class PrewarmedChild:
    """A child of the pool's server. Its exit code comes from the server, or from the kernel if the server died before it."""

    identity: Identity
    tag: str
    pidfd: int
    handshake: socket.socket = field(repr=False)
    status: socket.socket = field(repr=False)

    async def collect(self) -> Status:
        with anyio.move_on_after(EXIT_CODE_SECONDS):
            with contextlib.suppress(EOFError, OSError):
                code = await receive_number(self.status)
                return Status(code=code) if code >= 0 else Status(signal=-code)
            # the server is gone: the kernel has made the child ours, if we are the nearest subreaper
            return reap(os.P_PIDFD, self.pidfd) or Status()
        return Status()

    def close(self) -> None:
        os.close(self.pidfd)
        self.handshake.close()
        self.status.close()


@dataclass
class _Server:
    child: PlainChild
    address: int  # O_PATH descriptor of its listening socket
    alive: int  # its only reason to live: it ends when this is closed

    def close(self) -> None:
        os.close(self.address)
        os.close(self.alive)


class PrewarmedPool:
    """One pool. `env` is the environment that its imports see; `directory` is ours alone (the socket is born there, and unlinked)."""

    def __init__(self, *, env: Mapping[str, str], tag: str, directory: Path, log: Path, modules: Sequence[str] = PRELOAD) -> None:
        self._command = Command(argv=(), env={**env, "OMP_NUM_THREADS": "1", TAG: tag}, cwd=directory, log=log)
        self._directory = directory
        self._modules = tuple(modules)
        self._server: _Server | None = None
        self._starting = anyio.Lock()
        self._lifeline, self._our_life = os.pipe()
        self.starts = 0

    @property
    def tag(self) -> str:
        """Return the tag that the environment of its children shows to others."""
        return self._command.env[TAG]

    def pids(self) -> set[int]:
        return {self._server.child.identity.pid} if self._server is not None else set()

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
                    await self._confirm_dead()
            raise AssertionError("unreachable")
        finally:
            os.close(log)

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
            try:
                argv = (sys.executable, "-P", "-c", SERVER, str(listener.fileno()), str(lives), ",".join(self._modules))
                template = self._command
                command = Command(argv=argv, env=template.env, cwd=template.cwd, log=template.log, pass_fds=(listener.fileno(), lives))
                child = start_plain(command)
                server = _Server(child, address, alive)
            except BaseException:
                os.close(address)
                os.close(alive)
                raise
            finally:
                os.close(lives)
        try:
            await release(child, command)
        except BaseException:
            server.close()
            child.close()
            raise
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
            return PrewarmedChild(identity, self.tag, pidfd, handshake, status)

    async def _confirm_dead(self) -> None:
        """Kill a server that does not serve."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                self._server.child.process.kill()
            with anyio.move_on_after(END_SECONDS, shield=True):
                await wait_exit(self._server.child.pidfd)

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

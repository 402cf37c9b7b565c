"""The control socket is the operator's line to a running supervisor: one request and one answer a connection, in the attempt's directory.

Only the same user (or root) may speak: the directory is 0700, the socket 0600, and the peer's uid is asked of the kernel.
Sockets are addressed through a descriptor of their directory, because a socket's path may have 107 bytes only.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import anyio
import anyio.abc
import msgspec

from supervisor.errors import SetUpError, SupervisorError, UsageError
from supervisor.host import unix_socket
from supervisor.host.regular_file import user_name
from supervisor.host.unix_socket import peer_uid, short
from supervisor.observe.explanation import PipelineExplanation
from supervisor.observe.status import Status
from trainers.protocol import ids
from trainers.protocol.framing import FrameError, FrameReader, encode
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId

CLIENTS: Final = 8
"""Connections that are served at once; further ones wait."""
MAX_REQUEST: Final = 1 << 16
"""Bytes of one request."""
DEADLINE_S: Final = 30.0
"""Of one connection, from accepted to answered."""

Verb = Literal["stop", "restart", "drain", "pause", "resume", "reset"]


class AllOfPipeline(msgspec.Struct, frozen=True, order=True, tag="pipeline", tag_field="group"):
    """This target is every group of a pipeline."""

    pipeline: PipelineId

    def __str__(self) -> str:
        return self.pipeline


Target = AllOfPipeline | EngineId | TrainerId | GatewayId


def parse_target(text: str) -> Target:
    """Parse what an operator writes: `p1`, `p1/engine/0`, `p1/trainer` or `p1/gateway`. Raises UsageError."""
    found = ids.parse(text)
    if found is None:
        raise UsageError(f"{text!r} names nothing to act on; write p1, p1/engine/0, p1/trainer or p1/gateway.")
    return AllOfPipeline(found) if isinstance(found, str) else found


class _Message(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    pass


class StatusRequest(_Message, frozen=True, tag="status"):
    """Ask how the run stands. Answered by `StatusReply`."""


class StopRequest(_Message, frozen=True, tag="stop"):
    """Stop the run: 1 gracefully, 2 without draining, 3 kill. Answered by `Done` once the stop has begun."""

    level: Literal[1, 2, 3] = 1


class ActRequest(_Message, frozen=True, tag="act"):
    """Do `verb` to `target`. Answered by `Done` or `Declined`."""

    verb: Verb
    target: Target


class ExplainRequest(_Message, frozen=True, tag="explain"):
    """Ask why a pipeline has the engines that it has, and no more. Answered by `ExplainReply` or `Declined`."""

    pipeline: PipelineId


class StatusReply(_Message, frozen=True, tag="status_reply"):
    snapshot: Status


class ExplainReply(_Message, frozen=True, tag="explain_reply"):
    explanation: PipelineExplanation


class Done(_Message, frozen=True, tag="done"):
    """It will be done; `text` says what, for people: a line for each group that it concerns."""

    text: str = ""


class Declined(_Message, frozen=True, tag="declined"):
    """It will not be done; `text` says why, for people."""

    text: str


Request = StatusRequest | StopRequest | ActRequest | ExplainRequest
Reply = StatusReply | ExplainReply | Done | Declined
Handler = Callable[[Request, int], Awaitable[Reply]]
"""It gets a request and the uid of whoever asks, as the kernel knows it."""


class NotRunning(UsageError):
    """No supervisor answers at that path."""


def listen(path: Path) -> socket.socket:
    """Return the listening socket; a dead predecessor's is replaced (the attempt's lock is ours). Raises SetUpError."""
    try:
        folder = os.lstat(path.parent)
        if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.geteuid():
            raise SetUpError(f"{path.parent}: not a directory of ours; the control socket is not put there.")
        os.chmod(path.parent, 0o700)
        with short(path) as name, contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(name).st_mode):
                raise SetUpError(f"{path}: something else lies where the control socket shall be. Remove it.")
        return unix_socket.listen(path)
    except OSError as error:
        raise SetUpError(f"{path}: the control socket cannot be made: {error.strerror}.") from error


async def serve(path: Path, handler: Handler, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Answer requests until cancelled, then remove the socket. Start it with `await tasks.start(serve, path, handler)`.

    A client that speaks nonsense, is another user or never ends its sentence is dropped, and harms nobody. Raises SetUpError.
    """
    listener = listen(path)
    places = anyio.Semaphore(CLIENTS)
    try:
        async with anyio.create_task_group() as tasks:
            task_status.started()
            while True:
                await places.acquire()
                await anyio.wait_readable(listener)
                try:
                    connection, _ = listener.accept()
                except OSError:  # gone again, or no descriptor left: the next wait_readable tells
                    places.release()
                    await anyio.sleep(0.05)
                    continue
                tasks.start_soon(_serve_one, connection, handler, places, name="operator")
    finally:
        listener.close()
        with contextlib.suppress(OSError), short(path) as name:
            os.unlink(name)


async def _serve_one(connection: socket.socket, handler: Handler, places: anyio.Semaphore) -> None:
    connection.setblocking(False)
    try:
        with connection, contextlib.suppress(OSError, FrameError), anyio.move_on_after(DEADLINE_S):
            uid = peer_uid(connection)
            if uid not in (0, os.geteuid()):
                return
            request = await _receive(connection)
            if request is None:
                return
            try:
                answer = encode(await handler(request, uid))
            except SupervisorError as error:
                answer = encode(Declined(str(error)))
            while answer:
                await anyio.wait_writable(connection)
                answer = answer[connection.send(answer) :]
    finally:
        places.release()


async def _receive(connection: socket.socket) -> Request | None:
    reader: FrameReader[Request] = FrameReader(Request, MAX_REQUEST)
    while True:
        await anyio.wait_readable(connection)
        data = connection.recv(65536)
        if not data:
            return None
        for request in reader.feed(data):
            return request


def ask(path: Path, request: Request, timeout_s: float = DEADLINE_S) -> Reply:
    """Send one request to the supervisor that listens at `path`, and return its answer. Raises NotRunning or UsageError."""
    try:
        with short(path) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            found = os.lstat(name)
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
                raise UsageError(f"{path} is not a socket of yours (it belongs to {user_name(found.st_uid)}); nothing was sent.")
            connection.settimeout(timeout_s)
            connection.connect(name)
            if (owner := peer_uid(connection)) not in (os.geteuid(), 0):
                raise UsageError(f"At {path} a process of {user_name(owner)} listens; nothing was sent.")
            connection.sendall(encode(request))
            return _answer(connection, path)
    except TimeoutError as error:
        raise UsageError(f"The supervisor at {path.parent} does not answer within {timeout_s:.0f} s.") from error
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        raise NotRunning(f"No supervisor runs at {path.parent}.") from error
    except OSError as error:
        raise UsageError(f"The supervisor at {path.parent} cannot be asked: {error.strerror}.") from error


def _answer(connection: socket.socket, path: Path) -> Reply:
    reader: FrameReader[Reply] = FrameReader(Reply)
    while data := connection.recv(65536):
        try:
            for reply in reader.feed(data):
                return reply
        except FrameError as error:
            raise UsageError(f"The supervisor at {path.parent} answers in another version's words: {error}.") from error
    raise UsageError(f"The supervisor at {path.parent} ended the conversation without an answer; see its log.")

"""The operator's socket: real sockets, a real loop."""

import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from supervisor.errors import SetUpError, UsageError
from supervisor.observe import control_socket
from supervisor.observe.control_socket import (
    ActRequest,
    Declined,
    Done,
    NotRunning,
    Reply,
    Request,
    StatusReply,
    StatusRequest,
    StopRequest,
    ask,
    serve,
)
from supervisor.observe.status import Status
from trainers.protocol.framing import HEADER
from trainers.protocol.ids import EngineId, PipelineId

SNAPSHOT = Status(run="q-1", started_at=1.0, uptime_s=2.0)


async def answer(request: Request, uid: int) -> Reply:
    assert uid == os.geteuid()
    match request:
        case StatusRequest():
            return StatusReply(SNAPSHOT)
        case StopRequest(level=level):
            return Done(f"stopping, level {level}")
        case ActRequest(verb=verb, target=target):
            if str(target) == "p9":
                raise UsageError("there is no pipeline p9")
            return Declined(f"{verb} {target}: no")


def served(path: Path, client: Callable[[], Awaitable[None]]) -> None:
    """Runs `client` beside a server."""

    async def main() -> None:
        with anyio.fail_after(15):
            async with anyio.create_task_group() as tasks:
                await tasks.start(serve, path, answer)
                await client()
                tasks.cancel_scope.cancel()

    anyio.run(main)


def in_thread(request: Request, path: Path) -> Awaitable[Reply]:
    return anyio.to_thread.run_sync(lambda: ask(path, request, 5))


def modes(*paths: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in paths]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True, mode=0o755)
    return deep / "control.sock"


def test_requests_and_replies_at_a_path_longer_than_a_socket_may_have(path: Path) -> None:
    async def client() -> None:
        assert await in_thread(StatusRequest(), path) == StatusReply(SNAPSHOT)
        assert await in_thread(StopRequest(2), path) == Done("stopping, level 2")
        assert await in_thread(ActRequest("restart", EngineId(PipelineId("p1"), 3)), path) == Declined("restart p1/engine/3: no")
        assert await in_thread(ActRequest("pause", control_socket.AllOfPipeline(PipelineId("p9"))), path) == Declined(
            "there is no pipeline p9"
        )
        assert modes(path, path.parent) == [0o600, 0o700]

    served(path, client)
    assert not path.exists(), "it is removed at the end"


NONSENSE = [b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\5\xff\xfe\xfd\xfc\xfb", b""]
DEEP = HEADER.pack(50_006) + b'{"zz":' + b"[" * 50_000


@pytest.mark.parametrize("nonsense", [*NONSENSE, DEEP], ids=range(len(NONSENSE) + 1))
def test_a_client_that_speaks_nonsense_harms_nobody(path: Path, nonsense: bytes) -> None:
    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection, control_socket.short(path) as short:
            connection.settimeout(5)
            connection.connect(short)
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(100)

    async def client() -> None:
        assert await anyio.to_thread.run_sync(talk) == b""
        assert await in_thread(StatusRequest(), path) == StatusReply(SNAPSHOT)

    served(path, client)


def test_silent_clients_do_not_keep_others_out_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "DEADLINE_S", 0.3)

    async def client() -> None:
        silent = []
        with control_socket.short(path) as short:
            for _ in range(control_socket.CLIENTS):
                silent.append(socket.socket(socket.AF_UNIX))
                silent[-1].connect(short)
        assert await in_thread(StatusRequest(), path) == StatusReply(SNAPSHOT)
        for connection in silent:
            connection.close()

    served(path, client)


def test_nobody_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="No supervisor runs"):
        ask(path, StatusRequest())
    with pytest.raises(NotRunning):
        ask(tmp_path / "absent" / "control.sock", StatusRequest())
    listener = control_socket.listen(path)
    listener.close()  # a supervisor that was killed leaves its socket behind
    with pytest.raises(NotRunning):
        ask(path, StatusRequest())
    control_socket.listen(path).close()


def test_a_supervisor_that_hangs_is_given_up(path: Path) -> None:
    with control_socket.listen(path):
        began = time.monotonic()
        with pytest.raises(UsageError, match="does not answer"):
            ask(path, StatusRequest(), timeout_s=0.2)
        assert time.monotonic() - began < 3


def test_links_and_files_are_refused(path: Path, tmp_path: Path) -> None:
    with control_socket.listen(tmp_path / "real.sock"):
        path.symlink_to(tmp_path / "real.sock")
        with pytest.raises(UsageError, match="not a socket of yours"):
            ask(path, StatusRequest())
    with pytest.raises(SetUpError, match="something else"):
        control_socket.listen(path)
    path.unlink()
    path.write_text("")
    with pytest.raises(SetUpError, match="something else"):
        control_socket.listen(path)
    with pytest.raises(UsageError):
        ask(path, StatusRequest())


def test_another_users_call_is_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid() + 1
    real = control_socket.peer_uid
    calls: list[int] = []

    def foreign(connection: socket.socket) -> int:
        calls.append(1)
        return uid if len(calls) == 2 else real(connection)  # first the client asks about the server, then the server about the client

    async def client() -> None:
        with pytest.raises(UsageError):
            await in_thread(StatusRequest(), path)
        assert await in_thread(StatusRequest(), path) == StatusReply(SNAPSHOT)

    monkeypatch.setattr(control_socket, "peer_uid", foreign)
    served(path, client)

"""Clients that come together are heard together."""

import asyncio
import errno
import socket
from collections.abc import Iterator

import pytest
import uvloop

from engines.gateway.routes import acceptor
from engines.gateway.routes.acceptor import Acceptor

CLIENTS = 200


class Scarce(socket.socket):
    """A listener in a process that has no descriptors left, so many times."""

    left = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture
def listener() -> Iterator[Scarce]:
    with Scarce() as made:
        made.bind(("127.0.0.1", 0))
        made.listen(CLIENTS)
        made.setblocking(False)
        yield made


def accepted(listener: Scarce, clients: int, turns: int, seconds: float = 0.0) -> tuple[int, list[str]]:
    """How many of so many clients have a protocol after so many turns of the gateway's own loop, and what was said."""
    made: list[asyncio.Protocol] = []
    said: list[str] = []

    class Heard(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(self)

    async def play() -> None:
        acceptor = Acceptor(listener, Heard, said.append)
        acceptor.start()
        await asyncio.sleep(seconds)
        for _ in range(turns):
            await asyncio.sleep(0)
        acceptor.stop()

    sockets = [socket.create_connection(listener.getsockname()) for _ in range(clients)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(play())
    for each in sockets:
        each.close()
    return len(made), said


def test_all_who_wait_are_taken_within_a_few_turns(listener: Scarce) -> None:
    assert accepted(listener, CLIENTS, turns=6) == (CLIENTS, [])


def test_without_descriptors_it_says_so_and_looks_again(listener: Scarce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "FULL_S", 0.02)
    listener.left = 2
    made, said = accepted(listener, 3, turns=6, seconds=0.5)
    assert made == 3
    assert said == ["no more connections can be taken now: [Errno 24] Too many open files"] * 2


def test_nobody_is_taken_after_the_stop(listener: Scarce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "FULL_S", 0.02)
    listener.left = 1
    assert accepted(listener, 1, turns=6)[0] == 0, "stopped while it waits for descriptors"
    listener.left = 0
    listener.setblocking(False)
    taken, _ = listener.accept()
    taken.close()

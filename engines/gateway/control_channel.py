"""This module is the channel to the supervisor: orders come in; ready, answers and progress go out."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

from trainers.protocol.framing import FrameReader, encode
from trainers.protocol.gateway_messages import CloseRollout, Done, Forget, Order, Progress, Ready, Report, Unroute

REPORT_EVERY_S: Final = 0.05
"""At most so often the picture is sent, and only if it has changed."""
WRITE_S: Final = 30.0
"""A supervisor that does not read for so many seconds has failed."""
_READ: Final = 1 << 16


class Channel:
    """The gateway's end of the channel. `run` returns when the supervisor has closed its end. Raises FrameError for what is no frame of ours."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._changed = asyncio.Event()

    @classmethod
    async def on_socket(cls, connection: socket.socket) -> "Channel":
        """Make a channel of a connected socket, which it then owns."""
        connection.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=connection))

    def send(self, report: Report) -> None:
        """Send one report; a lost connection is noticed by `run`."""
        if not self._writer.is_closing():
            self._writer.write(encode(report))

    def done(self, done: Done) -> None:
        """Answer an order."""
        self.send(done)

    def changed(self) -> None:
        """Note that the picture may have changed."""
        self._changed.set()

    async def run(self, order: Callable[[Order], None], progress: Callable[[], Progress]) -> None:
        """Send ready, then give every order to `order`, and report `progress`."""
        self.send(Ready())
        reporting = asyncio.create_task(self._report(progress))
        reading = asyncio.create_task(self._read(order, progress))
        try:
            done, _ = await asyncio.wait({reading, reporting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (reading, reporting):
                task.cancel()
            await asyncio.gather(reading, reporting, return_exceptions=True)
            self._writer.close()

    async def _read(self, order: Callable[[Order], None], progress: Callable[[], Progress]) -> None:
        frames: FrameReader[Order] = FrameReader(Order)
        while data := await self._received():
            for message in frames.feed(data):
                if isinstance(message, CloseRollout | Forget | Unroute):
                    # the last figures of what the next picture no longer shows; and no later one can be older than the answer
                    self.send(progress())
                order(message)

    async def _received(self) -> bytes:
        """Return what comes next; empty at the end. There is no deadline: a supervisor without orders is silent, and one that dies ends this."""
        with contextlib.suppress(ConnectionError):
            return await self._reader.read(_READ)
        return b""

    async def _report(self, progress: Callable[[], Progress]) -> None:
        sent = Progress(())
        while True:
            await self._changed.wait()
            self._changed.clear()
            if (picture := progress()) != sent:
                self.send(picture)
                sent = picture
            try:
                async with asyncio.timeout(WRITE_S):
                    await self._writer.drain()
            except (ConnectionError, TimeoutError):
                return
            await asyncio.sleep(REPORT_EVERY_S)

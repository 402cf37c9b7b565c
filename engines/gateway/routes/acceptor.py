"""This module accepts new connections, as many as have come, and closes those from which nothing is heard.

libuv accepts one in each iteration of its loop, and an iteration of a busy gateway lasts a tenth of a second: the last of 256 clients
that come together would first be served when others have had ten answers each.

Whoever may not ask can still connect. So a connection over which nothing was asked that may be asked is closed after a time, and the oldest
of such connections when there are many: a client that sends its request at once is never among those.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

AT_ONCE: Final = 1024
"""So many are accepted in one iteration of the loop: as many as the kernel keeps."""
FULL_S: Final = 1.0
"""Where there are no descriptors, the listener is looked at again after so many seconds."""
SILENT_S: Final = 30.0
"""So many seconds a connection may say nothing that is listened to."""
MAX_SILENT: Final = 1024
"""So many such connections there may be."""
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(slots=True)
class _Silent:
    since: float
    transport: asyncio.BaseTransport | None = None


class Acceptor:
    """An acceptor gives each connection to `listener` (bound, listening, not blocking) a protocol of `factory`, from `start` to `stop`."""

    def __init__(self, listener: socket.socket, factory: Callable[[], asyncio.BaseProtocol], problem: Callable[[str], object]) -> None:
        self._listener, self._factory, self._problem = listener, factory, problem
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[object]] = set()
        self._later: asyncio.TimerHandle | None = None
        self._silent: dict[asyncio.BaseProtocol, _Silent] = {}  # in the order of their arrival
        self._watch: asyncio.TimerHandle | None = None

    def heard(self, protocol: asyncio.BaseProtocol) -> None:
        """Note that who is at the other end may ask: its connection may be silent from now on."""
        self._silent.pop(protocol, None)

    def start(self) -> None:
        """Accept from now on."""
        self._later = None
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept nobody any more; the listener stays open."""
        self._loop.remove_reader(self._listener)
        for timer in (self._later, self._watch):
            if timer is not None:
                timer.cancel()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except (InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._problem(f"no more connections can be taken now: {error}")
                self.stop()
                self._later = self._loop.call_later(FULL_S, self.start)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task: asyncio.Task[object] = self._loop.create_task(self._arrive(connection))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _arrive(self, connection: socket.socket) -> None:
        protocol = self._factory()
        self._silent[protocol] = _Silent(self._loop.time())
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # it has gone already
            connection.close()
            self.heard(protocol)
            return
        if (silent := self._silent.get(protocol)) is not None:
            silent.transport = transport
        self._end_silent()

    def _end_silent(self) -> None:
        """Close what has been silent for too long, and what is too much; look again when the next is due."""
        now = self._loop.time()
        while self._silent and (len(self._silent) > MAX_SILENT or next(iter(self._silent.values())).since + SILENT_S <= now):
            silent = self._silent.pop(next(iter(self._silent)))
            if silent.transport is not None:
                silent.transport.close()
        if self._silent and (self._watch is None or self._watch.when() <= now):
            self._watch = self._loop.call_at(next(iter(self._silent.values())).since + SILENT_S, self._end_silent)

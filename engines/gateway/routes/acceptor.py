"""This module accepts new connections, as many as have come.

libuv accepts one in each iteration of its loop, and an iteration of a busy gateway lasts a tenth of a second: the last of 256 clients
that come together would first be served when others have had ten answers each.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

AT_ONCE: Final = 1024
"""So many are accepted in one iteration of the loop: as many as the kernel keeps."""
FULL_S: Final = 1.0
"""Where there are no descriptors, the listener is looked at again after so many seconds."""
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """An acceptor gives each connection to `listener` (bound, listening, not blocking) a protocol of `factory`, from `start` to `stop`."""

    def __init__(self, listener: socket.socket, factory: Callable[[], asyncio.BaseProtocol], problem: Callable[[str], object]) -> None:
        self._listener, self._factory, self._problem = listener, factory, problem
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[object]] = set()
        self._later: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._later = None
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept nobody any more; the listener stays open."""
        self._loop.remove_reader(self._listener)
        if self._later is not None:
            self._later.cancel()

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
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:  # it has gone already
            connection.close()

"""This module makes Unix sockets that only our own user can open by a path: mode 0600, the peer's uid as the kernel knows it, a path of any length."""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import anyio

BACKLOG: Final = 64
"""Connections that wait to be accepted; a launcher's ranks come together."""


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """Yield the same socket under a path that is short whatever the directory's is: the kernel takes 107 bytes."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def peer_uid(connection: socket.socket) -> int:
    """Return the uid of whoever has connected."""
    _pid, uid, _gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    return int(uid)


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, in place of a dead predecessor's. Raises OSError."""
    with short(path) as name:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(name)
            os.chmod(name, 0o600)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener


async def accept(listener: socket.socket, path: Path, accepted: Callable[[socket.socket], None]) -> None:
    """Hand on every connection of our own user, until we are cancelled; then close the listener and remove the socket."""
    try:
        while True:
            await anyio.wait_readable(listener)
            try:
                connection, _ = listener.accept()
            except OSError:
                await anyio.sleep(0.05)  # no descriptor left, or gone again: the next wait tells. Whoever is cancelled is heard here, too.
                continue
            if peer_uid(connection) in (0, os.geteuid()):
                accepted(connection)
            else:
                connection.close()
    finally:
        listener.close()
        with contextlib.suppress(OSError), short(path) as name:
            os.unlink(name)

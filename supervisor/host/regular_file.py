"""This module opens files at paths that a child, or another user, may have replaced, and says who else may write in a folder.

What is opened is a regular file, or the open fails.

A FIFO would block the loop in `open` until somebody opens its other end, a link would lead elsewhere, a device would do anything. Nothing
here waits, and nothing reads more than it was asked for: a file may say that it has 60 GiB.
"""

import errno
import os
import pwd
import stat
from pathlib import Path
from typing import Final

SAFE: Final = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
LARGEST: Final = 16 << 20
"""Bytes of a record of ours that is read whole."""


NOBODY: Final = 65534


class NotOurs(OSError):
    """The file, or what lies in its place, is not what we have made. It is an OSError, because such a file cannot be used either."""


def open_regular(path: Path, flags: int = os.O_RDONLY, *, ours: bool = False) -> int:
    """Open a regular file without waiting; the descriptor is closed on exec. With O_CREAT it is made for its owner only.

    `ours`: only a file of our own user that nobody else may write. Raises OSError (NotOurs when something else lies there).
    """
    descriptor = os.open(path, flags | SAFE, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotOurs(errno.EINVAL, "not a regular file", str(path))
        if ours and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
            raise NotOurs(errno.EPERM, "another user may have written it", str(path))
    except OSError:
        os.close(descriptor)
        raise
    os.set_blocking(descriptor, True)  # a child may inherit it
    return descriptor


def shared_with(folder: Path) -> str | None:
    """Return who else can replace what lies in a folder, as the end of a sentence; None when nobody can, or when it is not there.

    Root can anyway. A group that may write is trusted: it is often the user's own (umask 002), or that of a project. Root that is nobody on
    a network's disk (root_squash) makes folders of nobody's.
    """
    try:
        found = os.stat(folder)
    except OSError:
        return None
    if found.st_mode & stat.S_IWOTH:
        return "every user of this machine can write there"
    us = os.geteuid()
    if found.st_uid in (0, us) or (us == 0 and found.st_uid == NOBODY):
        return None
    return f"it belongs to {user_name(found.st_uid)}"


def user_name(uid: int) -> str:
    """Return what to call a user: a name, or `uid 1234` where this machine knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"uid {uid}"


def read_regular(path: Path, limit: int = LARGEST) -> bytes:
    """Return the content of a small file. Raises OSError, also for one of more than `limit` bytes."""
    with open(open_regular(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise NotOurs(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return data


def tail(path: Path, limit: int, start: int = 0) -> bytes:
    """Return the last `limit` bytes of a file, none of them before `start` (unless the file has become shorter). Empty when it cannot be read."""
    try:
        with open(open_regular(path), "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - limit, start if start <= end else 0))  # somebody may have emptied it
            return file.read(limit)
    except OSError:
        return b""

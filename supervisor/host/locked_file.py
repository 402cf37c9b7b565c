"""A locked file says something of a living process to every user of this machine; only its owner can make it, change it or keep it alive.

It lies in a folder that is root's and sticky, so that nobody removes or renames what is another's, under a random name, which cannot be taken
beforehand. It comes to be with its content and its flock in one step (O_TMPFILE, then a link): one that is not locked is of somebody dead.
What the kernel says is believed (the owner is the file's uid), what the file says is shown.
"""

import errno
import fcntl
import os
import secrets
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.host.processes.proc import read_stat
from supervisor.host.regular_file import open_regular

FOLDER: Final = Path("/dev/shm")
_LARGEST: Final = 64 << 10
"""Bytes of a file: nobody can make us read without end."""


class NoPlace(Exception):
    """Such files cannot be kept on this machine. The text says why."""


class Entry:
    """A file of this process, until `close`, or until we die."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def close(self) -> None:
        """Withdraw the file. A second call does nothing."""
        if self._descriptor < 0:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


@dataclass(frozen=True, slots=True)
class Found:
    """A file that somebody locks. `uid` is its owner's, by the kernel's word; `age` is in seconds."""

    path: Path
    uid: int
    age: float
    content: bytes


def require_place(folder: Path) -> None:
    """Raises NoPlace when others could remove what lies in the folder."""
    try:
        found = os.stat(folder)
    except OSError as error:
        raise NoPlace(f"{folder}: {error.strerror}") from error
    if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
        raise NoPlace(f"{folder}: others could remove what lies there")


def enter(folder: Path, prefix: str, content: bytes) -> Entry:
    """Make a file of ours: nobody sees it before it is whole and locked. Raises NoPlace."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise NoPlace(f"{folder}: {error.strerror}") from error
    try:
        os.fchmod(descriptor, 0o644)  # whatever the umask is
        os.write(descriptor, content)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = folder / f"{prefix}{secrets.token_hex(8)}"
        here = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # with a descriptor given, Python calls linkat, which alone follows this link
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=here, follow_symlinks=True)
        finally:
            os.close(here)
        return Entry(path, descriptor)
    except OSError as error:
        os.close(descriptor)
        raise NoPlace(f"{folder}: {error.strerror}") from error


def locked_files(folder: Path, prefix: str, most: int, *, clear: bool = False) -> Iterator[Found]:
    """Yield the files that somebody locks, of all users, at most `most` of one user: nobody can hide what is another's behind his own.

    `clear` removes those that nobody locks any more, as far as they are ours to remove.
    """
    seen: Counter[int] = Counter()
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(prefix))
    except OSError:
        return
    for name in names:
        try:
            owner = os.lstat(folder / name).st_uid
            seen[owner] += 1
            if seen[owner] > most:
                continue
            found = _read(folder / name, clear)
        except OSError:  # withdrawn meanwhile, or made unreadable by whoever wanted to say nothing
            continue
        if found is not None:
            yield found


def _read(path: Path, clear: bool) -> Found | None:
    """Read one file; None when nobody locks it. Raises OSError."""
    descriptor = open_regular(path)
    try:
        about = os.fstat(descriptor)
        if not _locked(descriptor):
            if clear:
                path.unlink()
            return None
        return Found(path, about.st_uid, time.time() - about.st_ctime, os.read(descriptor, _LARGEST))
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return True
    return False


def lives(pid: int, start: int, of_namespace: int, uid: int) -> bool:
    """Return whether the process that a file names lives, and is its owner's: anybody can lock a dead man's file, and so keep it.

    A process of another namespace (a container) cannot be looked at, nor one that /proc hides from us (hidepid): then the lock is believed.
    """
    if of_namespace != namespace():
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return False
    found = read_stat(pid)
    if found is None:
        return True
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return True
    return found.start == start and owner == uid


def namespace(of: str = "pid") -> int:
    """Return what tells this container's numbers of processes (`net`: its ports) from those of another."""
    try:
        return os.stat(f"/proc/self/ns/{of}").st_ino
    except OSError:
        return 0

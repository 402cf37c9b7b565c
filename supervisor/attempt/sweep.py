"""After a double kill (guardian and supervisor at once) the next start removes what is left, by the journals of earlier runs.

A journal is believed when it is a file of ours in an attempt of ours: whoever could write one could have anything killed and removed.
A process is killed only on a full match: same boot, same pid, same start time, and the tag in its environment; and never what a living run
holds. A living run locks its folder in shared memory (`hold`), so that it is known wherever its journal lies.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.attempt.journal import NAME, Began, Ended, Gone, Line, Process, Shared, Spawned, read, writer
from supervisor.host.processes.guardian import SWEPT_PREFIX, remove_traces
from supervisor.host.processes.proc import Identity, Stat, boot_id, read_stat, table, tag_of
from trainers.remove_tree import remove_what_can_be


@dataclass
class Swept:
    """What a sweep did. `running` are journals whose run lives; they are left alone."""

    killed: list[int] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    running: list[Path] = field(default_factory=list)


def sweep(*folders: Path) -> Swept:
    """Look through every attempt in these folders. Cheap when all ended well: one file read per run. Never raises for what others left."""
    swept = Swept()
    left: list[list[Line]] = []
    held = _Held()
    for journal in sorted(path for folder in folders for path in folder.glob(f"*/{NAME}") if _is_ours(path.parent)):
        try:
            lines = list(read(journal, ours=True))
        except OSError:  # not ours
            continue
        if not lines or isinstance(lines[-1].what, Ended):
            continue
        last = writer(lines)
        shared = {line.what.path for line in lines if isinstance(line.what, Shared)}
        if (last is not None and last[0] == boot_id() and _lives(last[1])) or any(is_held(Path(path)) for path in shared):
            swept.running.append(journal)
            members, born = _left(lines)
            held.add(members, born, shared)
        else:
            left.append(lines)
    for lines in left:
        _kill_left(lines, swept, held)
        _remove_left(lines, swept, held)
    return swept


@dataclass
class _Held:
    """What living runs hold: no journal has it killed or removed."""

    members: set[Identity] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)

    def add(self, members: dict[Identity, str], born: dict[str, int], shared: set[str]) -> None:
        self.members |= members.keys()
        self.tags |= born.keys()
        self.shared |= shared


def _is_ours(attempt: Path) -> bool:
    """Return whether nobody but us could put a file there."""
    try:
        found = attempt.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def hold(shared: Path) -> int:
    """Lock the folder of a living run in shared memory until the descriptor is closed, or until we die. Raises OSError."""
    descriptor = os.open(shared, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def is_held(shared: Path) -> bool:
    try:
        os.close(hold(shared))
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return False


def survivors(journal: Path) -> list[int]:
    """Return the pids that a dead supervisor has left alive, because a guardian that was killed with it could not end them."""
    try:
        members, born = _left(list(read(journal)))
    except OSError:
        return []
    return sorted(one.pid for one in table().values() if members and one.alive and _is_left(one, members, born))


def _left(lines: list[Line]) -> tuple[dict[Identity, str], dict[str, int]]:
    """Members that were not seen to end, with their tags, and when each group was born; nothing when they are of another boot."""
    boot = ""
    left: dict[str, tuple[Process, ...]] = {}
    for line in lines:
        match line.what:
            case Began(boot=boot):
                left.clear()
            case Spawned(group=group, members=spawned):
                left[group] = spawned
            case Gone(group=group):
                left.pop(group, None)
            case _:
                pass
    if boot != boot_id():
        return {}, {}
    members = {Identity(process.pid, process.start): process.tag for some in left.values() for process in some}
    born = {group: min((process.start for process in some), default=0) for group, some in left.items()}
    return members, born


def _kill_left(lines: list[Line], swept: Swept, held: _Held) -> None:
    members, born = _left(lines)
    members = {identity: tag for identity, tag in members.items() if identity not in held.members and tag not in held.tags}
    born = {tag: start for tag, start in born.items() if tag not in held.tags}
    while members:
        found = [one for one in table().values() if one.alive and one.identity not in held.members and _is_left(one, members, born)]
        killed = [one.pid for one in found if _kill(one.identity)]
        swept.killed += killed
        if not killed:
            return


def _is_left(one: Stat, members: dict[Identity, str], born: dict[str, int]) -> bool:
    """Return whether it is a member, or a descendant of one: it bears the group's tag and is not older than the group."""
    tag = tag_of(one.pid)
    return tag is not None and tag != "" and (members.get(one.identity) == tag or one.start >= born.get(tag, 1 << 62))


def _kill(identity: Identity) -> bool:
    """Kill a process and wait for its end (a second at most). The pidfd is opened first, so that the identity checked is the one killed."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not _lives(identity):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _wait(pidfd)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)


def _wait(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(1000)


def _remove_left(lines: list[Line], swept: Swept, held: _Held) -> None:
    for line in lines:
        if isinstance(line.what, Shared) and line.what.path not in held.shared and may_remove(path := Path(line.what.path)):
            with contextlib.suppress(OSError):
                remove_traces(str(path))
            remove_what_can_be(path)
            swept.removed.append(str(path))


def may_remove(path: Path) -> bool:
    """Return whether a path is unmistakably ours: absolute, without detours, our name, our user, a folder and no link."""
    try:
        found = path.lstat()
    except OSError:
        return False
    named = path.is_absolute() and os.path.normpath(path) == str(path) and path.name.startswith(SWEPT_PREFIX)
    return named and found.st_uid == os.getuid() and path.is_dir() and not path.is_symlink()


def _lives(identity: Identity) -> bool:
    found = read_stat(identity.pid)
    return found is not None and found.start == identity.start and found.alive

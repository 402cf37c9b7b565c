"""After a double kill (guardian and supervisor at once) the next start removes what is left, by the journals of earlier runs.

A process is killed only on a full match: same boot, same pid, same start time, and the tag in its environment.
"""

import contextlib
import os
import select
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.attempt.journal import NAME, Began, Ended, Gone, Line, Process, Shared, Spawned, read, writer
from supervisor.host.processes.guardian import SWEPT_PREFIX, remove_traces
from supervisor.host.processes.proc import Identity, Stat, boot_id, read_stat, table, tag_of


@dataclass
class Swept:
    """What a sweep did. `running` are journals whose supervisor lives; they are left alone."""

    killed: list[int] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    running: list[Path] = field(default_factory=list)


def sweep(runs: Path) -> Swept:
    """Look through every run directory below `runs`. Cheap when all ended well: one file read per run. Never raises for what others left."""
    swept = Swept()
    for journal in sorted(runs.glob(f"*/{NAME}")):
        try:
            lines = list(read(journal))
        except OSError:  # not ours to read, or a link
            continue
        if not lines or isinstance(lines[-1].what, Ended):
            continue
        last = writer(lines)
        if last is not None and last[0] == boot_id() and _lives(last[1]):
            swept.running.append(journal)
            continue
        _kill_left(lines, swept)
        _remove_left(lines, swept)
    return swept


def survivors(journal: Path) -> list[int]:
    """Return the pids that a dead supervisor has left alive, because a guardian that was killed with it could not end them."""
    try:
        members, born = _left(list(read(journal)))
    except OSError:
        return []
    return sorted(stat.pid for stat in table().values() if members and stat.alive and _is_left(stat, members, born))


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


def _kill_left(lines: list[Line], swept: Swept) -> None:
    members, born = _left(lines)
    while members:
        found = [stat for stat in table().values() if stat.alive and _is_left(stat, members, born)]
        killed = [stat.pid for stat in found if _kill(stat.identity)]
        swept.killed += killed
        if not killed:
            return


def _is_left(stat: Stat, members: dict[Identity, str], born: dict[str, int]) -> bool:
    """A member, or a descendant of one: it bears the group's tag and is not older than the group."""
    tag = tag_of(stat.pid)
    return tag is not None and tag != "" and (members.get(stat.identity) == tag or stat.start >= born.get(tag, 1 << 62))


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


def _remove_left(lines: list[Line], swept: Swept) -> None:
    for line in lines:
        if isinstance(line.what, Shared) and may_remove(path := Path(line.what.path)):
            with contextlib.suppress(OSError):
                remove_traces(str(path))
            shutil.rmtree(path, ignore_errors=True)
            swept.removed.append(str(path))


def may_remove(path: Path) -> bool:
    """Return whether a path is unmistakably ours: absolute, without detours, our name, our user, a folder and no link."""
    try:
        stat = path.lstat()
    except OSError:
        return False
    named = path.is_absolute() and os.path.normpath(path) == str(path) and path.name.startswith(SWEPT_PREFIX)
    return named and stat.st_uid == os.getuid() and path.is_dir() and not path.is_symlink()


def _lives(identity: Identity) -> bool:
    stat = read_stat(identity.pid)
    return stat is not None and stat.start == identity.start and stat.alive

"""This module reserves ports for groups: contiguous windows from a range below the ephemeral one, so that no outgoing connection can take them first.

A window belongs to one incarnation of one group until that has ended. It is also marked (`/dev/shm/trainshed-ports-<random>`, see `locked_file.py`;
the mark vanishes with us), so that two supervisors on a box never choose the same one. Another user's mark is respected as long as there are
other ports: he can mark what he likes, but only who listens on a port has it.
"""

import itertools
import os
import socket
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from supervisor.errors import SetUpError
from supervisor.host.locked_file import FOLDER, Entry, NoPlace, enter, lives, locked_files, namespace, require_place
from supervisor.host.processes.proc import read_stat
from supervisor.host.regular_file import user_name

WINDOW: Final = 16
"""Ports that a group reserves which asks for no other number: the ranks of a trainer share so many."""
_LISTENING: Final = "0A"
_PREFIX: Final = "trainshed-ports-"
_MOST: Final = 1024
"""Marks of one user that are looked at."""


class PortsUnusable(SetUpError):
    """The operator's `[host] ports` or `metrics_port` cannot be used. It has key, value and remedy."""


class NoPortFree(Exception):
    """No window is free now. The message names who holds the ports."""


@dataclass(frozen=True)
class Window:
    """A window is `count` ports from `first` on. Unused ones may be given to anything of the group."""

    first: int
    count: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.first + self.count))

    def __getitem__(self, index: int) -> int:
        return range(self.first, self.first + self.count)[index]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor says of a window that it has reserved. `start`, `namespace`: the process `pid`; `net`: whose ports they are (a container's)."""

    first: int
    count: int
    run: str
    pid: int
    start: int
    namespace: int
    net: int


@dataclass(frozen=True, slots=True)
class Marked:
    """A mark that lives, and its owner, by the kernel's word."""

    mark: Mark
    uid: int
    path: Path

    @property
    def ports(self) -> range:
        """Return the ports that are marked; a mark that says more than there are says nothing."""
        whole = 0 < self.mark.first <= 65535 and 0 < self.mark.count <= 65535
        return range(self.mark.first, min(self.mark.first + self.mark.count, 65536)) if whole else range(0)

    def __str__(self) -> str:
        run = "".join(sign if sign.isprintable() else "?" for sign in self.mark.run[:100])
        whose = "" if self.uid == os.geteuid() else f" of {user_name(self.uid)}"
        return f"pid {self.mark.pid}{whose}" + (f", run {run}" if run else "")


@dataclass
class _Reserved:
    window: Window
    mark: Entry | None = None


@dataclass(frozen=True)
class Listeners:
    """Who listens on a port: the pids that we can see, and whether there are others that we cannot (`unseen`)."""

    pids: frozenset[int]
    unseen: bool


def _not_reported(port: int, holder: str) -> None:
    """Does nothing: the default of `passed_over`."""


class Ports:
    """Hands out windows of the ports `first` to `last` (both included)."""

    def __init__(
        self, first: int, last: int, run: str = "", passed_over: Callable[[int, str], None] = _not_reported, folder: Path = FOLDER
    ) -> None:
        """`run` is what other supervisors call us by. `passed_over` is called once for each port that somebody has, with its holder.

        Raises PortsUnusable.
        """
        if not 1024 <= first < last <= 65535:
            raise PortsUnusable("two ports from 1024 to 65535 are wanted, the lower one first", key="host.ports", value=[first, last])
        ephemeral = ephemeral_range()
        if ephemeral is not None and first <= ephemeral[1] and last >= ephemeral[0] and outside(*ephemeral) is not None:
            low, high = ephemeral
            problem = f"overlaps the kernel's ephemeral ports {low}..{high}, from which any connection may take one; stay outside"
            raise PortsUnusable(problem, key="host.ports", value=[first, last])
        self._first, self._last = first, last
        self._next = first
        self._reserved: dict[Hashable, _Reserved] = {}
        self._passed_over = passed_over
        self._reported: set[int] = set()
        self._run, self._folder = run, folder

    def reserve(self, owner: Hashable, count: int = WINDOW) -> Window:
        """Reserve a window whose ports can all be bound now. Windows are taken in turn, so that a port is not used again soon.

        Raises NoPortFree. An owner that has a window already is a bug.
        """
        assert owner not in self._reserved, f"{owner} has ports already; they are released when it has ended"
        size = self._last - self._first + 1
        in_turn = (self._first + (self._next - self._first + attempt * count) % size for attempt in range(size // count))
        anywhere = range(self._first, self._last + 2 - count)  # at last anywhere: free windows may lie askew
        windows = [Window(first, count) for first in itertools.chain(in_turn, anywhere) if first + count - 1 <= self._last]
        taken: int | None = None
        elsewhere: Marked | None = None
        for respect in (True, False):  # what other users have marked is taken when nothing else is left, and nobody listens there
            others = [mark for mark in self._others() if respect or mark.uid == os.geteuid()]
            marked = {port: mark for mark in others for port in mark.ports}
            for window in windows:
                if any(self._ours(port) for port in window):
                    continue
                other = next((marked[port] for port in window if port in marked), None)
                if other is not None:
                    elsewhere = other
                    continue
                blocked = next((port for port in window if not can_bind(port)), None)
                if blocked is not None:
                    taken = blocked
                    self._report(blocked)
                    continue
                mark, other = self._mark(window, respect)
                if other is not None:
                    elsewhere = other
                    continue
                self._next = window.first + count
                self._reserved[owner] = _Reserved(window, mark)
                return window
        why = f"; port {taken} is held by {holder(taken)}" if taken is not None else ""
        why += f"; port {elsewhere.ports[0]} is reserved by another supervisor, {elsewhere}" if elsewhere is not None else ""
        why = why or f"; {len(self._reserved)} groups of this run have them"
        raise NoPortFree(f"no {count} free ports in a row in host.ports = [{self._first}, {self._last}]{why}")

    def _ours(self, port: int) -> bool:
        return any(port in reserved.window for reserved in self._reserved.values())

    def _mark(self, window: Window, respect: bool) -> tuple[Entry | None, Marked | None]:
        """Mark a window as ours, or return who has marked a port of it. Whoever marks first writes, then looks: one of two sees the other."""
        stat = read_stat(os.getpid())
        assert stat is not None, "we live"
        mark = Mark(
            first=window.first,
            count=window.count,
            run=self._run,
            pid=stat.pid,
            start=stat.start,
            namespace=namespace(),
            net=namespace("net"),
        )
        try:
            require_place(self._folder)
            entry = enter(self._folder, _PREFIX, msgspec.json.encode(mark))
        except NoPlace:  # then only who listens has a port
            return None, None
        for other in self._others():
            if other.path != entry.path and (respect or other.uid == os.geteuid()) and any(port in other.ports for port in window):
                entry.close()
                return None, other
        return entry, None

    def _others(self) -> list[Marked]:
        ours = {reserved.mark.path for reserved in self._reserved.values() if reserved.mark is not None}
        return [mark for mark in marks(self._folder) if mark.path not in ours]

    def _report(self, port: int) -> None:
        if port not in self._reported:
            self._reported.add(port)
            self._passed_over(port, holder(port))

    def release(self, owner: Hashable) -> None:
        """Take back the window of an owner that has ended; nothing happens when it has none."""
        reserved = self._reserved.pop(owner, None)
        if reserved is not None and reserved.mark is not None:
            reserved.mark.close()

    def blocked(self, owner: Hashable) -> tuple[int, ...]:
        """Return the ports of an owner's window that cannot be bound: something of a group that has ended may still hold them."""
        reserved = self._reserved.get(owner)
        return () if reserved is None else tuple(port for port in reserved.window if not can_bind(port))

    def close(self) -> None:
        for owner in list(self._reserved):
            self.release(owner)


def marks(folder: Path = FOLDER) -> list[Marked]:
    """Return the marks of all supervisors that live on these ports, of all users, ours included."""
    found: list[Marked] = []
    for file in locked_files(folder, _PREFIX, _MOST, clear=True):
        try:
            mark = msgspec.json.decode(file.content, type=Mark)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if mark.net == namespace("net") and lives(mark.pid, mark.start, mark.namespace, file.uid):
            found.append(Marked(mark, file.uid, file.path))
    return found


def can_bind(port: int, address: str = "0.0.0.0") -> bool:
    """Return whether nobody listens on this port at this IPv4 address (by default at any). Connections that linger do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))  # for a moment, never listening
        except OSError:
            return False
    return True


def free_ports(low: int, high: int) -> Iterator[int]:
    """Yields the ports from `low` to `high` that can be bound now and that no supervisor has reserved."""
    reserved = reserved_ports()
    return (port for port in range(low, high + 1) if port not in reserved and can_bind(port))


def reserved_ports() -> frozenset[int]:
    """Returns the ports that supervisors on this machine, we included, have marked as theirs."""
    return frozenset(port for mark in marks() for port in mark.ports)


def metrics_listener(port: int) -> socket.socket:
    """Listens at exactly this port of the loopback interface. Raises PortsUnusable when somebody has it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(16)
    except OSError as error:
        listener.close()
        problem = f"{error.strerror} (held by {holder(port)}); name a free port"
        raise PortsUnusable(problem, key="host.metrics_port", value=port) from error
    return listener


def ephemeral_range() -> tuple[int, int] | None:
    """Returns the first and the last port that the kernel gives to outgoing connections; None where it cannot be read."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
        return int(low), int(high)
    except (OSError, ValueError):
        return None


def outside(low: int, high: int) -> tuple[int, int] | None:
    """Returns the widest window beside the kernel's range of ephemeral ports `low..high`.

    None where that range has nearly all ports: then our window lies within it, and a port found taken is passed over.
    """
    below, above = (max(1024, low - 10000), low - 1), (high + 1, min(65535, high + 10000))
    first, last = max(below, above, key=lambda window: window[1] - window[0])
    return (first, last) if last - first >= 1000 else None


def holder(port: int) -> str:
    """Say who listens on a port, for people: `pid 12 (python)`, or "a process that we may not look into"."""
    found = listeners(port)
    if found.pids:
        return _pid_and_name(min(found.pids))
    if not found.unseen:
        return "nobody who listens any more"
    users = sorted({user_name(uid) for uid in _listening(port).values()})
    return f"a process of {', '.join(users)} that we may not look into" if users else "a process that we may not look into"


def listeners(port: int) -> Listeners:
    """Find who listens on a port, in one pass over the descriptors of every process that we may look into."""
    wanted = set(_listening(port))
    pids: set[int] = set()
    seen: set[str] = set()
    for pid, links in _descriptors() if wanted else ():
        if has := wanted.intersection(links):
            pids.add(pid)
            seen |= has
    return Listeners(frozenset(pids), seen != wanted)


def _pid_and_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"pid {pid} ({file.read().strip()})"
    except OSError:
        return f"pid {pid}"


def _descriptors() -> Iterator[tuple[int, set[str]]]:
    """Yield each process that we may look into, with what its descriptors lead to."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield int(name), {_link(f"/proc/{name}/fd/{number}") for number in os.listdir(f"/proc/{name}/fd")}
            except OSError:  # ended, or not ours to look into
                continue


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed meanwhile
        return ""


def _listening(port: int) -> dict[str, int]:
    """Return what a descriptor of each listening socket leads to, with the socket's user."""
    found: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except FileNotFoundError:  # no IPv6 here
            continue
        listens = [row for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port]
        found |= {f"socket:[{row[9]}]": int(row[7]) for row in listens}
    return found

"""This module reserves ports for groups: contiguous windows from a range below the ephemeral one, so that no outgoing connection can take them first.

A window belongs to one incarnation of one group until that has ended. Every port of it is also marked in the kernel (an abstract socket
named after it, which vanishes with us), so that two supervisors on a box never choose the same one.
"""

import itertools
import os
import socket
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from supervisor.errors import SetUpError

WINDOW: Final = 16
"""Ports that a group reserves which asks for no other number: the ranks of a trainer share so many."""
_LISTENING: Final = "0A"
_PORT_MARK: Final = "trainshed-port-"
_RUN_MARK: Final = "trainshed-run-"
"""The prefix is followed by the pid of the supervisor and by its run."""


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


@dataclass
class _Reserved:
    window: Window
    marks: list[socket.socket] = field(default_factory=list)


@dataclass(frozen=True)
class Listeners:
    """Who listens on a port: the pids that we can see, and whether there are others that we cannot (`unseen`)."""

    pids: frozenset[int]
    unseen: bool


def _not_reported(port: int, holder: str) -> None:
    """Does nothing: the default of `passed_over`."""


class Ports:
    """Hands out windows of the ports `first` to `last` (both included)."""

    def __init__(self, first: int, last: int, run: str = "", passed_over: Callable[[int, str], None] = _not_reported) -> None:
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
        self._run_mark = _mark(f"{_RUN_MARK}{os.getpid()}-{run}")

    def reserve(self, owner: Hashable, count: int = WINDOW) -> Window:
        """Reserve a window whose ports can all be bound now. Windows are taken in turn, so that a port is not used again soon.

        Raises NoPortFree. An owner that has a window already is a bug.
        """
        assert owner not in self._reserved, f"{owner} has ports already; they are released when it has ended"
        size = self._last - self._first + 1
        taken: int | None = None
        elsewhere: int | None = None
        in_turn = (self._first + (self._next - self._first + attempt * count) % size for attempt in range(size // count))
        for first in itertools.chain(in_turn, range(self._first, self._last + 2 - count)):  # at last anywhere: free windows may lie askew
            if first + count - 1 > self._last:
                continue
            window = Window(first, count)
            marks, marked = _mark_all(window)
            if marked is not None:
                elsewhere = marked if not self._ours(marked) else elsewhere
                continue
            blocked = next((port for port in window if not can_bind(port)), None)
            if blocked is None:
                self._next = first + count
                self._reserved[owner] = _Reserved(window, marks)
                return window
            taken = blocked
            self._report(blocked)
            _close(marks)
        why = f"; port {taken} is held by {holder(taken)}" if taken is not None else ""
        why += f"; port {elsewhere} is reserved by another supervisor, {reserver(elsewhere)}" if elsewhere is not None else ""
        why = why or f"; {len(self._reserved)} groups of this run have them"
        raise NoPortFree(f"no {count} free ports in a row in host.ports = [{self._first}, {self._last}]{why}")

    def _ours(self, port: int) -> bool:
        return any(port in reserved.window for reserved in self._reserved.values())

    def _report(self, port: int) -> None:
        if port not in self._reported:
            self._reported.add(port)
            self._passed_over(port, holder(port))

    def release(self, owner: Hashable) -> None:
        """Take back the window of an owner that has ended; nothing happens when it has none."""
        if reserved := self._reserved.pop(owner, None):
            _close(reserved.marks)

    def blocked(self, owner: Hashable) -> tuple[int, ...]:
        """Return the ports of an owner's window that cannot be bound: something of a group that has ended may still hold them."""
        reserved = self._reserved.get(owner)
        return () if reserved is None else tuple(port for port in reserved.window if not can_bind(port))

    def close(self) -> None:
        if self._run_mark is not None:
            self._run_mark.close()
        for owner in list(self._reserved):
            self.release(owner)


def _mark_all(window: Window) -> tuple[list[socket.socket], int | None]:
    """Mark every port of a window. Return the marks, or none of them and the first port that somebody (or we ourselves) had marked."""
    marks: list[socket.socket] = []
    for port in window:
        mark = _mark(f"{_PORT_MARK}{port}")
        if mark is None:
            _close(marks)
            return [], port
        marks.append(mark)
    return marks, None


def _close(marks: list[socket.socket]) -> None:
    for mark in marks:
        mark.close()


def _mark(name: str) -> socket.socket | None:
    """Take an abstract socket's name; None when somebody has it."""
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0{name}")
    except OSError:
        mark.close()
        return None
    return mark


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
    """Returns the ports that supervisors on this machine, we included, have marked as theirs; none where the kernel does not say."""
    try:
        names = [name.removeprefix(_PORT_MARK) for name in _marks() if name.startswith(_PORT_MARK)]
    except OSError:
        return frozenset()
    return frozenset(int(name) for name in names if name.isdigit())


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
    return "a process that we may not look into" if found.unseen else "nobody who listens any more"


def listeners(port: int) -> Listeners:
    """Find who listens on a port, in one pass over the descriptors of every process that we may look into."""
    wanted = _listening(port)
    pids: set[int] = set()
    seen: set[str] = set()
    for pid, links in _descriptors() if wanted else ():
        if has := wanted.intersection(links):
            pids.add(pid)
            seen |= has
    return Listeners(frozenset(pids), seen != wanted)


def reserver(port: int) -> str:
    """Say which supervisor has marked a port, for people: its pid and its run."""
    marks = _marks()
    socket_ = marks.get(f"{_PORT_MARK}{port}")
    pid = next((pid for pid, links in _descriptors() if socket_ in links), None) if socket_ is not None else None
    if pid is None:
        return "whose pid we may not see" if socket_ is not None else "which has given it back by now"
    run = next((name.removeprefix(f"{_RUN_MARK}{pid}-") for name in marks if name.startswith(f"{_RUN_MARK}{pid}-")), "")
    return f"pid {pid}" + (f", run {run}" if run else "")


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


def _marks() -> dict[str, str]:
    """Return the marks of all supervisors by name, each with what a descriptor of it leads to."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
        rows = [line.rstrip("\n").split(maxsplit=7) for line in file.readlines()[1:]]
    return {row[7][1:]: f"socket:[{row[6]}]" for row in rows if len(row) == 8 and row[7].startswith(("@" + _PORT_MARK, "@" + _RUN_MARK))}


def _listening(port: int) -> set[str]:
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except FileNotFoundError:  # no IPv6 here
            continue
        found |= {f"socket:[{row[9]}]" for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port}
    return found

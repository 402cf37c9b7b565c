"""Ports for groups: contiguous windows from a range below the ephemeral one, so that no outgoing connection can take them first.

A window belongs to one incarnation of one group until that is gone. Every window is also marked in the kernel (an abstract socket
named after its first port, which vanishes with us), so that two supervisors on a box never choose the same.
"""

import os
import socket
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final

WINDOW: Final = 16
"""Ports reserved at a time: an engine needs its own, a rendezvous, and a handful of internal ones."""
_LISTENING: Final = "0A"


class PortsUnusable(Exception):
    """The operator's `[host] ports` cannot be used. Says key, value and remedy."""


class NoPortFree(Exception):
    """No window is free now. Names who holds the ports."""


@dataclass(frozen=True)
class Window:
    """`count` ports from `first` on. Unused ones may be given to anything of the group."""

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


class Ports:
    """Windows out of `first..last` (both included). Raises PortsUnusable."""

    def __init__(self, first: int, last: int) -> None:
        where = f"host.ports = [{first}, {last}]"
        if not 1024 <= first < last <= 65535:
            raise PortsUnusable(f"{where}: two ports from 1024 to 65535 are wanted, the lower one first")
        low, high = ephemeral_range()
        if first <= high and last >= low:
            raise PortsUnusable(
                f"{where}: overlaps the kernel's ephemeral ports {low}..{high}, from which any connection may take one; stay outside"
            )
        self._first, self._last = first, last
        self._next = first
        self._reserved: dict[Hashable, _Reserved] = {}

    def reserve(self, owner: Hashable, count: int = WINDOW) -> Window:
        """A window whose ports can all be bound now. Windows are taken in turn, so that a port is not used again soon.

        Raises NoPortFree; an owner that has a window already is a bug.
        """
        assert owner not in self._reserved, f"{owner} has ports already; they are released when it is gone"
        size = self._last - self._first + 1
        taken: int | None = None
        for attempt in range(size // count):
            first = self._first + (self._next - self._first + attempt * count) % size
            if first + count - 1 > self._last:
                continue
            window = Window(first, count)
            marks = _mark(window)
            if marks is None:
                continue
            blocked = next((port for port in window if not can_bind(port)), None)
            if blocked is None:
                self._next = first + count
                self._reserved[owner] = _Reserved(window, marks)
                return window
            taken = blocked
            for mark in marks:
                mark.close()
        who = f"; port {taken} is held by {holder(taken)}" if taken is not None else ""
        raise NoPortFree(f"no {count} free ports in a row in host.ports = [{self._first}, {self._last}]{who}")

    def release(self, owner: Hashable) -> None:
        """Give the window of an owner that is gone back; nothing happens when it has none."""
        if reserved := self._reserved.pop(owner, None):
            for mark in reserved.marks:
                mark.close()

    def bindable(self, owner: Hashable) -> int | None:
        """Of a group that has ended: None when all its ports can be bound again, else the first that cannot."""
        reserved = self._reserved.get(owner)
        return None if reserved is None else next((port for port in reserved.window if not can_bind(port)), None)

    def close(self) -> None:
        for owner in list(self._reserved):
            self.release(owner)


def _mark(window: Window) -> list[socket.socket] | None:
    marks: list[socket.socket] = []
    for port in window:
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0trainshed-port-{port}")
        except OSError:  # another supervisor's, or ours
            mark.close()
            for other in marks:
                other.close()
            return None
        marks.append(mark)
    return marks


def can_bind(port: int) -> bool:
    """Whether nobody listens on this port on any IPv4 address. Connections that linger after their end do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # for a moment, never listening
        except OSError:
            return False
    return True


def metrics_listener(port: int) -> socket.socket:
    """Listens at exactly this port of the loopback interface. Raises PortsUnusable when somebody has it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise PortsUnusable(f"host.metrics_port = {port}: {error.strerror} (held by {holder(port)}); name a free port") from error
    return listener


def ephemeral_range() -> tuple[int, int]:
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        low, high = file.read().split()
    return int(low), int(high)


def holder(port: int) -> str:
    """Who listens on a port, for people: `pid 12 (python)`, or "another user's process"."""
    inodes = _listeners(port)
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            links = (os.readlink(f"/proc/{name}/fd/{number}") for number in os.listdir(f"/proc/{name}/fd"))
            if any(link in inodes for link in links):
                with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                    return f"pid {name} ({file.read().strip()})"
        except OSError:  # ended, or not ours to look into
            continue
    return "a process that we may not look into" if inodes else "nobody who listens any more"


def _listeners(port: int) -> set[str]:
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except FileNotFoundError:  # no IPv6 here
            continue
        found |= {f"socket:[{row[9]}]" for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port}
    return found

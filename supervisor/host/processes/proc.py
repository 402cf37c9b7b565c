"""This module reads /proc: which processes live, whose children they are, and whether a pid still means the process that we think.

A pid alone names nobody, because numbers are used again; a pid with its start time does, until the next boot.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from trainers.protocol.child_env import TAG

TICKS: Final = os.sysconf("SC_CLK_TCK")


class Identity(NamedTuple):
    """An identity names one process of this boot. `start` is in clock ticks since boot, as the kernel counts."""

    pid: int
    start: int


class Stat(NamedTuple):
    pid: int
    state: str
    parent: int
    session: int
    threads: int
    start: int

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.start)

    @property
    def alive(self) -> bool:
        """Return whether it holds anything. A zombie does not, unless other threads of it outlive the first."""
        return self.state not in "ZX" or self.threads > 1


def read_stat(pid: int) -> Stat | None:
    """Read one process. Return None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold anything, even ")"
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[17]), int(fields[19]))


def processor_seconds(pid: int) -> float | None:
    """Return the processor time of a process and of its collected children; None when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return sum(map(int, fields[11:15])) / TICKS


def table() -> dict[int, Stat]:
    """Read every process of the box in one pass (about 15 us each)."""
    stats = (read_stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {stat.pid: stat for stat in stats if stat is not None}


def tag_of(pid: int) -> str | None:
    """Return `TRAINSHED_TAG` of the environment that the process was *executed* with; None without one or without access."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError:  # gone, or another user's
        return None
    start = TAG.encode() + b"="
    return next((os.fsdecode(entry[len(start) :]) for entry in environment.split(b"\0") if entry.startswith(start)), None)


def command_of(pid: int) -> bytes:
    """Return its command line, arguments separated by zero bytes; empty when it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def below(processes: Mapping[int, Stat], roots: Iterable[int]) -> set[int]:
    """Return the pids of all descendants of `roots`, without the roots."""
    by_parent: dict[int, list[int]] = {}
    for stat in processes.values():
        by_parent.setdefault(stat.parent, []).append(stat.pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        born = [pid for pid in by_parent.get(todo.pop(), ()) if pid not in found]
        found.update(born)
        todo += born
    return found

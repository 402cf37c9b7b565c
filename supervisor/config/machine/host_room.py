"""This module reads how much room this machine has for us: memory, as far as its containers let us use it, and shared memory with its limits."""

import os
import shutil
from pathlib import Path
from typing import Final, NamedTuple

_UNLIMITED: Final = 1 << 60
"""The first version of cgroups says a number near 2**63 where there is no limit."""


class SharedMemory(NamedTuple):
    """A folder through which weights are handed over: bytes that are free and in all, and the flags of its mount (`noexec`, `nosuid`)."""

    free: int | None
    total: int | None
    flags: frozenset[str]


def memory_free(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that processes of ours may still take: what the kernel says, or what is left below a container's limit."""
    rooms = [room for room in (_available(proc), *_below_limits(proc, cgroups)) if room is not None]
    return min(rooms, default=None)


def _available(proc: Path) -> int | None:
    try:
        with (proc / "meminfo").open(encoding="ascii") as lines:
            return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError):
        return None


def _below_limits(proc: Path, cgroups: Path) -> list[int]:
    """Return what is left below the limit of each control group that we are in, of both versions. Files in /dev/shm count there too."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    rooms = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top = cgroups if not controllers else cgroups / "memory"
        limit, used = ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(top):
                break
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None and most < _UNLIMITED:
                rooms.append(max(0, most - max(0, now - _cached(folder))))
    return rooms


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):  # "max"
        return None


def _cached(folder: Path) -> int:
    """Return the bytes of files that the kernel would drop first."""
    try:
        with (folder / "memory.stat").open(encoding="ascii") as lines:
            return next((int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "total_inactive_file")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def shared_memory(directory: str, mounts: Path = Path("/proc/self/mountinfo")) -> SharedMemory:
    """Return what a folder has room for, and how it is mounted. Never raises."""
    try:
        usage = shutil.disk_usage(directory)
        free, total = usage.free, usage.total
    except OSError:
        return SharedMemory(None, None, frozenset())
    return SharedMemory(free, total, _flags(os.path.realpath(directory), mounts))


def _flags(directory: str, mounts: Path) -> frozenset[str]:
    best, flags = "", frozenset[str]()
    try:
        with mounts.open(encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                fields = line.split()
                point = fields[4]
                if (directory == point or directory.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                    best, flags = point, frozenset(fields[5].split(","))
    except (OSError, IndexError):
        pass
    return flags

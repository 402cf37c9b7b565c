"""This module measures virtual GPUs: memory that processes hold in memfds named `trainshed-gpu-N`.

It counts the allocated blocks of each such file, once, through any descriptor of it. A file that is only mapped any more still
counts, by its blocks where we may look at them (`map_files`), else by the length of the mapping, which is never too little.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

import anyio
from anyio import to_thread

from supervisor.host.gpus.emptiness import Usage
from supervisor.host.gpus.meter import Gpu, MeasureFailed
from trainers.protocol.ids import GpuId, GroupId

BLOCK: Final = 512
MEASURE_SECONDS: Final = 5.0
_FILE: Final = re.compile(r"/memfd:trainshed-gpu-(\d+) \(deleted\)")
_VANISHED: Final = (FileNotFoundError, ProcessLookupError)

Inode = tuple[int, int]
Held = dict[GpuId, dict[Inode, int]]


class VirtualGpus:
    """This meter has `count` virtual GPUs, numbered from 0."""

    measures_others = False

    def __init__(self, count: int) -> None:
        self.gpus = tuple(Gpu(GpuId(index), "virtual GPU", None, None, f"virtual:{index}") for index in range(count))

    async def measure(self, gpus: Collection[GpuId], pids: Mapping[GroupId, Collection[int]]) -> Usage:
        try:
            with anyio.fail_after(MEASURE_SECONDS):
                return await to_thread.run_sync(
                    measure, tuple(gpus), {group: tuple(some) for group, some in pids.items()}, abandon_on_cancel=True
                )
        except TimeoutError as error:
            raise MeasureFailed(f"/proc did not answer within {MEASURE_SECONDS:g} s") from error
        except OSError as error:
            raise MeasureFailed(f"cannot look into a process: {error}") from error

    def close(self) -> None:
        pass


def measure(gpus: Collection[GpuId], pids: Mapping[GroupId, Collection[int]]) -> Usage:
    """Read /proc of every given pid (about 1 ms each). A process that ends meanwhile holds nothing. Raises OSError."""
    files: dict[GpuId, dict[Inode, int]] = {gpu: {} for gpu in gpus}
    by_group: dict[GpuId, dict[GroupId, dict[Inode, int]]] = {gpu: {} for gpu in gpus}
    by_pid: dict[GpuId, dict[int, int]] = {gpu: {} for gpu in gpus}
    for group, some in pids.items():
        for pid in some:
            for gpu, held in held_by(pid).items():
                if gpu in files:
                    files[gpu].update(held)
                    by_group[gpu].setdefault(group, {}).update(held)
                    by_pid[gpu][pid] = sum(held.values())
    return Usage(
        total={gpu: sum(held.values()) for gpu, held in files.items()},
        by_group={gpu: {group: sum(held.values()) for group, held in groups.items()} for gpu, groups in by_group.items()},
        by_pid=by_pid,
    )


def held_by(pid: int) -> Held:
    """Return the bytes that one process holds, by GPU and file; nothing when it has ended. Raises OSError when we may not look."""
    held: Held = {}
    try:
        for gpu, inode, size in _open_files(pid):
            held.setdefault(gpu, {})[inode] = size
        for gpu, inode, size in _mappings(pid):
            sizes = held.setdefault(gpu, {})
            if inode not in sizes:
                sizes[inode] = size
    except _VANISHED:
        return {}
    return held


def _open_files(pid: int) -> Iterator[tuple[GpuId, Inode, int]]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            match = _FILE.fullmatch(os.readlink(f"{folder}/{name}"))
            if match:
                stat = os.stat(f"{folder}/{name}")
                yield GpuId(int(match[1])), (stat.st_dev, stat.st_ino), stat.st_blocks * BLOCK
        except _VANISHED:  # this descriptor was closed meanwhile
            continue


def _mappings(pid: int) -> Iterator[tuple[GpuId, Inode, int]]:
    lengths: dict[tuple[GpuId, Inode], int] = {}
    exact: dict[tuple[GpuId, Inode], int] = {}
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            if "/memfd:trainshed-gpu-" not in line:
                continue
            extent, _, _, device, number, path = line.rstrip("\n").split(maxsplit=5)
            match = _FILE.fullmatch(path)
            if match is None:
                continue
            major, minor = (int(part, 16) for part in device.split(":"))
            file = GpuId(int(match[1])), (os.makedev(major, minor), int(number))
            start, end = (int(part, 16) for part in extent.split("-"))
            lengths[file] = lengths.get(file, 0) + end - start
            try:
                exact[file] = os.stat(f"/proc/{pid}/map_files/{start:x}-{end:x}").st_blocks * BLOCK
            except (PermissionError, *_VANISHED):
                continue
    for file, length in lengths.items():
        yield *file, exact.get(file, length)

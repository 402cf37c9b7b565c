"""The journal of a run holds what must be known after we were killed: append-only JSON lines. (What was decided is in `recording.py`.)

A group's processes are written down, and are on the disk, before they are released to run. `sweep.py` reads it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from anyio import to_thread

from supervisor.host.processes.child import Child
from supervisor.host.processes.proc import Identity, boot_id
from supervisor.host.regular_file import open_regular

NAME: Final = "journal.jsonl"
_LONGEST: Final = 1 << 20
_LARGEST: Final = 256 << 20
"""Bytes of a line, and of a journal: what is larger is not what we have written."""


class _Entry(msgspec.Struct, frozen=True, tag_field="entry"):
    pass


class Process(msgspec.Struct, frozen=True):
    """A process as the journal knows it. `tag` is what its environment shows to others."""

    pid: int
    start: int
    tag: str


class Began(_Entry, frozen=True, tag="began"):
    """This is the first line of a supervisor: which boot, and who writes."""

    boot: str
    pid: int
    start: int


class Spawned(_Entry, frozen=True, tag="spawned"):
    """Members of one incarnation of a group are held, and about to be released. `group` is the tag in their environment."""

    group: str
    members: tuple[Process, ...]


class Gone(_Entry, frozen=True, tag="gone"):
    """Nothing of this incarnation lives any more."""

    group: str


class Shared(_Entry, frozen=True, tag="shared"):
    """A path outside the run directory is in use; it must not outlive the run."""

    path: str


class Ended(_Entry, frozen=True, tag="ended"):
    """This is the last line of an orderly end: there is nothing to sweep."""


Entry = Began | Spawned | Gone | Shared | Ended


class Line(msgspec.Struct, frozen=True):
    """A line of the journal. `time` is in seconds since the epoch, for people."""

    time: float
    what: Entry


class Journal:
    """The journal writes one line at a time. `clock` gives seconds since the epoch. A full disk loses lines (counted in `lost`), never the run."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Open the file and write who writes. Raises OSError, also for a path that is a link."""
        self.path = path
        self.lost = 0
        self._clock = clock
        self._file = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._whole = True
        with open("/proc/self/stat", "rb") as stat:
            start = int(stat.read().rpartition(b")")[2].split()[19])
        self._write(Began(boot_id(), os.getpid(), start))

    async def spawned(self, tag: str, children: Sequence[Child]) -> None:
        """Record the members of a group (it has the shape of `group.Record`); return when the disk has it."""
        self._write(Spawned(tag, tuple(Process(child.identity.pid, child.identity.start, child.tag) for child in children)))
        await to_thread.run_sync(self._sync)

    def gone(self, tag: str) -> None:
        self._write(Gone(tag))

    def shared(self, path: Path) -> None:
        self._write(Shared(str(path)))
        self._sync()

    def end(self) -> None:
        self._write(Ended())
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, entry: Entry) -> None:
        line = msgspec.json.encode(Line(self._clock(), entry)) + b"\n"
        if not self._whole:
            line = b"\n" + line  # the rest of a line that did not fit stays alone on its line
        try:
            self._whole = os.write(self._file, line) == len(line)
        except OSError:
            self._whole = False
        self.lost += not self._whole

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file)
        except OSError:
            self.lost += 1


def read(path: Path, *, ours: bool = False) -> Iterator[Line]:
    """Yield the readable lines; one that was cut short or does not make sense is left out. With `ours`, only from a file that nobody but us
    can have written. Raises OSError."""
    decoder = msgspec.json.Decoder(Line)
    with open(open_regular(path, ours=ours), "rb") as file:
        for line in iter(lambda: file.readline(_LONGEST), b""):
            if file.tell() > _LARGEST:
                return
            try:
                yield decoder.decode(line)
            except (ValueError, RecursionError):
                continue


def writer(lines: Sequence[Line]) -> tuple[str, Identity] | None:
    """Return the boot and the process of the supervisor that wrote these lines last."""
    began = [line.what for line in lines if isinstance(line.what, Began)]
    return (began[-1].boot, Identity(began[-1].pid, began[-1].start)) if began else None

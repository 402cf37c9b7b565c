"""`bin/supervise logs [-f]`: the supervisor's records and the children's own log files as one stream of lines, each with its source.

Children write straight to their files, so there is nothing to subscribe to: sizes are looked at, at most ten times a second.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from supervisor.errors import UsageError
from supervisor.runtime.lines import colour_of, paint, readable
from supervisor.runtime.plain import one_line

SUPERVISOR: Final = "supervisor"
_CHUNK: Final = 1 << 16
_LONGEST: Final = 1 << 16
"""Bytes of a line without an end that are waited for; then it is cut."""
_PATIENCE: Final = 10
"""Looks at an unfinished line before it is shown as it is."""
_FILE: Final = re.compile(
    r"^(?P<pipeline>[a-z][a-z0-9_-]{0,31})\.(?P<kind>engine|trainer|gateway)(?:\.(?P<rank>[0-9]{1,6}))?(?:\.(?P<member>[0-9]{1,6}))?\.log\Z"
)
_TARGET: Final = re.compile(r"^(?P<pipeline>[a-z][a-z0-9_-]{0,31})(?:/(?P<kind>engine|trainer|gateway)(?:/(?P<rank>[0-9]{1,6}))?)?\Z")


@dataclass(frozen=True, slots=True)
class Selection:
    """What to show. All None is everything."""

    supervisor_only: bool = False
    pipeline: str | None = None
    kind: str | None = None
    rank: int | None = None

    def takes_record(self, record: dict[str, Any]) -> bool:
        """Of the supervisor's records those about what was chosen."""
        if self.supervisor_only or self.pipeline is None:
            return True
        if record.get("pipeline") != self.pipeline:
            return False
        if self.kind == "engine":
            return record.get("engine") is not None and self.rank in (None, record["engine"])
        return self.kind is None or (record.get("group", self.kind) == self.kind and record.get("engine") is None)

    def source_of(self, name: str) -> str | None:
        """The source of a log file (`p1/engine/0`), or None when it is not wanted or none of ours."""
        match = _FILE.match(name)
        if match is None or self.supervisor_only:
            return None
        rank = int(match["rank"]) if match["rank"] else None
        wanted = self.pipeline in (None, match["pipeline"]) and self.kind in (None, match["kind"]) and self.rank in (None, rank)
        parts = (match["pipeline"], match["kind"], match["rank"], match["member"])
        return "/".join(part for part in parts if part is not None) if wanted else None


def parse_target(text: str | None) -> Selection:
    """`p1`, `p1/engine/0`, `p1/trainer`, `p1/gateway`, `supervisor` or nothing. Raises UsageError."""
    if text is None:
        return Selection()
    if text == SUPERVISOR:
        return Selection(supervisor_only=True)
    match = _TARGET.match(text)
    if match is None:
        raise UsageError(f"{text!r} names no logs; write p1, p1/engine/0, p1/trainer, p1/gateway or supervisor.")
    return Selection(pipeline=match["pipeline"], kind=match["kind"], rank=int(match["rank"]) if match["rank"] else None)


@dataclass(slots=True)
class Tail:
    """One growing file, read in pieces. Begins afresh when the file was replaced (rotated) or has become shorter (truncated)."""

    path: Path
    _descriptor: int = -1
    _rest: bytes = b""
    _waited: int = 0
    _lines: list[bytes] = field(default_factory=list)

    def lines(self) -> list[bytes]:
        """What became whole since the last call; an unfinished line is shown after a while, and at once when its file ends."""
        grown = self._read()
        if self._descriptor >= 0 and self._replaced():
            self._end_line()
            self.close()
            grown |= self._read()
        self._waited = 0 if grown or not self._rest else self._waited + 1
        if self._waited >= _PATIENCE:
            self._end_line()
        found, self._lines = self._lines, []
        return found

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def finish(self) -> list[bytes]:
        """The rest, also without an end of line."""
        self._end_line()
        found, self._lines = self._lines, []
        return found

    def _end_line(self) -> None:
        if self._rest:
            self._lines.append(self._rest)
            self._rest = b""

    def _replaced(self) -> bool:
        try:
            now, ours = os.stat(self.path), os.fstat(self._descriptor)
        except OSError:  # deleted: its rest was read, a new one may come
            return False
        return (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino)

    def _read(self) -> bool:
        """Reads to the end; whether there was anything."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                return False
        grown = False
        with contextlib.suppress(OSError):
            if os.fstat(self._descriptor).st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR):
                self._end_line()
                os.lseek(self._descriptor, 0, os.SEEK_SET)
            while data := os.read(self._descriptor, _CHUNK):
                grown = True
                *whole, self._rest = (self._rest + data).split(b"\n")
                self._lines += whole
                if len(self._rest) > _LONGEST:
                    self._end_line()
        return grown


class Merge:
    """All the files of one attempt that are wanted, the new ones included; `lines` gives what arrived, readable."""

    def __init__(self, directory: Path, selection: Selection, colour: bool) -> None:
        self._directory = directory
        self._selection = selection
        self._colour = colour
        self._tails: dict[str, tuple[str, Tail]] = {}

    def lines(self, end: bool = False) -> Iterator[str]:
        """What arrived since the last call, file after file; at the `end` unfinished lines too."""
        for source, lines in self.batches(end):
            yield from (self._show(source, line) for line in lines)

    def history(self, last: int | None) -> list[str]:
        """What is there already: whole files, the one written to last at the end; of each at most `last` lines."""
        shown: list[tuple[float, list[str]]] = []
        for source, lines in self.batches(False):
            kept = lines if last is None else lines[max(0, len(lines) - last) :]
            shown.append((self._changed(source), [self._show(source, line) for line in kept]))
        return [line for _, lines in sorted(shown, key=lambda item: item[0]) for line in lines]

    def batches(self, end: bool) -> list[tuple[str, list[bytes]]]:
        self._look()
        batches = []
        for source, tail in self._tails.values():
            lines = tail.lines() + (tail.finish() if end else [])
            wanted = [line for line in lines if self._wants(source, line)]
            if wanted:
                batches.append((source, wanted))
        return batches

    def close(self) -> None:
        for _, tail in self._tails.values():
            tail.close()

    def _changed(self, source: str) -> float:
        path = next(tail.path for name, tail in self._tails.values() if name == source)
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

    def _look(self) -> None:
        """Files appear as children are started."""
        if SUPERVISOR not in self._tails:
            self._tails[SUPERVISOR] = (SUPERVISOR, Tail(self._directory / "supervisor.jsonl"))
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self._directory / "logs")):
                if name not in self._tails and (source := self._selection.source_of(name)) is not None:
                    self._tails[name] = (source, Tail(self._directory / "logs" / name))

    def _wants(self, source: str, line: bytes) -> bool:
        if not line.strip():
            return False
        if source != SUPERVISOR:
            return True
        record = _record(line)
        return self._selection.pipeline is None if record is None else self._selection.takes_record(record)

    def _show(self, source: str, line: bytes) -> str:
        if source == SUPERVISOR and (record := _record(line)) is not None:
            text = readable(record, self._colour)
        else:
            text = one_line(line.decode("utf-8", "replace"), 4000)
        return f"{paint(f'{source:16}', colour_of(source), self._colour)} {text}"


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def follow(merge: Merge, write: Callable[[str], None], wait: Callable[[], None], alive: Callable[[], bool]) -> None:
    """Writes what arrives until the run has ended and nothing is left. `wait` sleeps a tenth of a second or more."""
    while True:
        living = alive()  # asked before reading, so that the last words are read after the end
        for line in merge.lines(end=not living):
            write(line)
        if not living:
            return
        wait()

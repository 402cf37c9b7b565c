"""`bin/supervise logs [-f]` shows the supervisor's records and the children's own log files, each line with its source.

Records of the supervisor and of the gateways say when they were written: they are one stream, by time. Children write straight to their
files, and their lines have no time that we could know: what a file holds already is a block of its own, under a heading, before that
stream; with -f its new lines are shown as they arrive. There is nothing to subscribe to: sizes are looked at, at most ten times a second.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from supervisor.errors import UsageError
from supervisor.observe.log_format import colour_of, paint, readable
from supervisor.observe.sanitize import one_line
from supervisor.views.log_sources import SUPERVISOR, Selection, Source, source_of

_CHUNK: Final = 1 << 16
_LONGEST: Final = 1 << 16
"""Bytes of a line without an end that are waited for; then it is cut."""
_PATIENCE: Final = 10
"""Looks at an unfinished line before it is shown as it is."""
_OURS: Final = Source(SUPERVISOR)


@dataclass(slots=True)
class Tail:
    """A tail reads one growing file in pieces. It begins afresh when the file was replaced (rotated) or has become shorter (truncated)."""

    path: Path
    _descriptor: int = -1
    _rest: bytes = b""
    _waited: int = 0
    _lines: list[bytes] = field(default_factory=list)

    def lines(self) -> list[bytes]:
        """Return the lines completed since the last call; an unfinished line is shown after a while, and at once when its file ends."""
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
        """Return the rest, also without an end of line."""
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
        """Read to the end; return whether there was anything."""
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


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a source. `time` orders lines that have one (text that sorts by time, in UTC; "" is unknown). `record` is None for plain text."""

    source: Source
    text: bytes
    time: str = ""
    record: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which lines are wanted, whoever wrote them. A line without a level or a time is not, where one is asked for: nobody can tell.

    `level` is the lowest; `since` a time in UTC as records have it; `text` is looked for in what would be shown.
    """

    level: str = "debug"
    since: str = ""
    text: re.Pattern[str] | None = None

    def takes(self, line: "_Line", shown: str) -> bool:
        level = str((line.record or {}).get("level", "")) if line.record is not None else ""
        if self.level != "debug" and _LEVELS.get(level, -1) < _LEVELS[self.level]:
            return False
        return line.time >= self.since and (self.text is None or self.text.search(shown) is not None)


_LEVELS: Final = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def since(text: str, now: datetime) -> str:
    """Return a point in time as records have it, in UTC: `90s`, `30m`, `2h`, `1d` before `now`, `14:30` of today, or a local date and time.

    Raises UsageError.
    """
    if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
        point = now - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    else:
        try:
            clock = f"{now.astimezone().date()}T{text}" if re.fullmatch(r"\d\d:\d\d(:\d\d)?", text) else text
            point = datetime.fromisoformat(clock)
        except ValueError as error:
            raise UsageError(f"--since {text!r} is no time: write 30m, 2h, 1d, 14:30 or 2026-11-27T14:30.") from error
    return point.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")


class Merge:
    """All files of one attempt that are wanted, new ones included. `history` returns what is there, `lines` what arrived since."""

    def __init__(self, directory: Path, selection: Selection, colour: bool, keep: Filter | None = None) -> None:
        self._directory = directory
        self._keep = keep
        self._selection = selection
        self._colour = colour
        self._tails: dict[str, tuple[Source, Tail]] = {}
        self._dated = False
        self._width = 0

    def history(self, last: int | None) -> list[str]:
        """Return what is there already, of each log at most the `last` lines: a block for each child, in natural order, then all that has times."""
        found = [(source, lines if last is None else lines[max(0, len(lines) - last) :]) for source, lines in self._batches(False)]
        blocks = [(source, lines) for source, lines in found if lines and not source.timed]
        stream = [line for source, lines in found if source.timed for line in lines]
        stream.sort(key=lambda line: line.time)
        days = {line.time[:10] for line in stream if line.time}
        self._dated = len(days) > 1
        shown: list[str] = []
        for source, lines in blocks:
            if len(blocks) > 1 or stream:
                shown.append(self._heading(f"{source}: {len(lines)} {'line' if len(lines) == 1 else 'lines'} without times"))
            shown += [self._show(line) for line in lines]
        if blocks and stream:
            names = ", ".join(str(source) for source in sorted({line.source for line in stream}, key=lambda source: source.order))
            shown.append(self._heading(f"{names}: by time"))
        return shown + [self._show(line) for line in stream]

    def lines(self, end: bool = False) -> Iterator[str]:
        """Yield what arrived since the last call; at the `end` unfinished lines too."""
        found = [line for _, lines in self._batches(end) for line in lines]
        found.sort(key=lambda line: (line.source.timed, line.time))  # a sort keeps the order within a file
        yield from (self._show(line) for line in found)

    def close(self) -> None:
        for _, tail in self._tails.values():
            tail.close()

    def _batches(self, end: bool) -> list[tuple[Source, list[_Line]]]:
        """Return new lines that are wanted, file after file in natural order."""
        self._look()
        batches = []
        for source, tail in sorted(self._tails.values(), key=lambda item: item[0].order):
            lines = tail.lines() + (tail.finish() if end else [])
            wanted = [line for line in _read(source, lines) if self._wants(line)]
            if wanted:
                batches.append((source, wanted))
        self._width = max((len(str(source)) for source, _ in self._tails.values()), default=0)
        return batches

    def _look(self) -> None:
        """Find files that appeared, as they do when children are started."""
        if SUPERVISOR not in self._tails:
            self._tails[SUPERVISOR] = (_OURS, Tail(self._directory / "supervisor.jsonl"))
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory / "logs"):
                if name not in self._tails and (source := source_of(name)) is not None and self._selection.takes(source):
                    self._tails[name] = (source, Tail(self._directory / "logs" / name))

    def _wants(self, line: _Line) -> bool:
        return self._selects(line) and (self._keep is None or self._keep.takes(line, self._text(line, colour=False)))

    def _selects(self, line: _Line) -> bool:
        if line.source != _OURS:
            return True
        return self._selection.takes_record(line.record or {})

    def _heading(self, text: str) -> str:
        return paint(f"==> {text} <==", "1", self._colour)

    def _show(self, line: _Line) -> str:
        name = str(line.source)
        text = self._text(line, self._colour)
        return f"{paint(f'{name:{self._width}}', colour_of(name), self._colour)}  {text}"

    def _text(self, line: _Line, colour: bool) -> str:
        if line.record is not None:
            return readable(_record_to_show(line), colour, dated=self._dated)
        return one_line(line.text.decode("utf-8", "replace"), _LONGEST)


def _record_to_show(line: _Line) -> dict[str, Any]:
    """Return a gateway's record without what its source says already; it may be about an engine."""
    record = line.record or {}
    if line.source == _OURS:
        return record
    known = ("source",) if "engine" in record else ("source", "pipeline")
    return {key: value for key, value in record.items() if key not in known}


def _read(source: Source, lines: list[bytes]) -> Iterator[_Line]:
    """Make lines of a file's text, without the empty ones. What a file of records holds beside them (a traceback) belongs to the record before it."""
    time = ""
    for text in lines:
        if not text.strip():
            continue
        record = _record(text) if source.timed else None
        if record is not None:
            time = str(record.get("timestamp", time)).removesuffix("Z")
        yield _Line(source, text, time, record)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (ValueError, RecursionError):
        return None


def follow(merge: Merge, write: Callable[[str], None], wait: Callable[[], None], alive: Callable[[], bool]) -> None:
    """Write what arrives until the run has ended and everything is shown. `wait` sleeps a tenth of a second or more."""
    while True:
        living = alive()  # asked before reading, so that the last lines are read after the end
        for line in merge.lines(end=not living):
            write(line)
        if not living:
            return
        wait()

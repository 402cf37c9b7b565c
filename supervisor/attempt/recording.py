"""A recording holds every event that the scheduler was given, when, and what it decided: enough to decide it all again (`replay.py`).

`<attempt>/events/000001.jsonl` and so on hold a JSON line each: `opened` first, then for every event `heard` (written before it is handled, so
that an event which breaks us is there too), where it led to actions `decided`, and where it changed something that people look at `changed`
(`supervisor.history`). `closed` is the last line of a life that ended in order. A segment that is full is compressed beside the run; the oldest
are removed when all of them together are too large, and of each remains `000001.history.gz`: what changed, without events and decisions. The
first segment of a supervisor's life names the box; a later one bears the scheduler's whole state (`state_codec.py`), so that it can be
replayed without those before it, and its first `changed` tells all that holds then.
"""

import contextlib
import gzip
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from supervisor.attempt.state_codec import plain
from supervisor.history.changes import Changes
from supervisor.history.facts import Fact
from supervisor.host.regular_file import open_regular
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import Event, Stop
from supervisor.scheduler.spec import BoxSpec

FOLDER: Final = "events"
SEGMENT_BYTES: Final = 8 << 20
KEPT_BYTES: Final = 256 << 20
HISTORY_SUFFIX: Final = ".history.gz"
"""Of what remains of a segment that was removed."""
RETRY_S: Final = 60.0
"""After a line could not be written: when a new segment is tried, on the clock of the events."""


class _Line(msgspec.Struct, frozen=True, tag_field="line"):
    pass


class Opened(_Line, frozen=True, tag="opened"):
    """A segment begins. `at` is the clock of the events, `handled` counts this life's events before it; either `box` (a life begins) or `state` is given.

    `wall` is the same moment in seconds since the epoch; 0 in recordings of before it was written, which have no `changed` either.
    """

    at: float
    handled: int
    box: BoxSpec | None = None
    state: msgspec.Raw = msgspec.Raw(b"null")
    wall: float = 0.0


class Heard(_Line, frozen=True, tag="heard"):
    """The scheduler was given an event."""

    at: float
    event: Event


class Decided(_Line, frozen=True, tag="decided"):
    """The event before this line led to these actions; no such line means none."""

    actions: msgspec.Raw


class Changed(_Line, frozen=True, tag="changed"):
    """The event before this line has changed this, for those who look at the run."""

    at: float
    facts: list[Fact]


class Closed(_Line, frozen=True, tag="closed"):
    """The supervisor ends in order; `why`, in words. A life without this line runs on, or was killed."""

    at: float
    why: str


Line = Opened | Heard | Decided | Changed | Closed


class RecordedScheduler:
    """A scheduler that is written down while it is used. A full disk loses the recording (until a new segment can begin), never the run."""

    def __init__(
        self,
        scheduler: Scheduler,
        now: float,
        folder: Path,
        *,
        segment: int = SEGMENT_BYTES,
        kept: int = KEPT_BYTES,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`now` is what the scheduler was made with. `segment` and `kept` are bytes; `wall` gives seconds since the epoch."""
        self.handled = 0
        self.lost = 0
        self._scheduler = scheduler
        self._folder = folder
        self._segment, self._kept = segment, kept
        self._encoder = msgspec.json.Encoder()
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._number = max((_number(path) for path in segments(folder)), default=0)
        self._file = -1
        self._written = 0
        self._retry_at: float | None = None
        self._changes = Changes()
        self._now = now
        self._why = ""
        self._wall = wall
        self._open(Opened(now, 0, box=scheduler.box, wall=wall()))

    @property
    def deadline(self) -> float | None:
        return self._scheduler.deadline

    @property
    def finished(self) -> bool:
        return self._scheduler.finished

    def handle(self, event: Event, now: float) -> list[Action]:
        """Record the event, have the scheduler handle it, and record the actions."""
        self._rotate(now)
        self._write(Heard(now, event), now)
        actions = self._scheduler.handle(event, now)
        self.handled += 1
        if actions:
            self._write(Decided(msgspec.Raw(self._encoder.encode(actions))), now)
        self._now = now
        if isinstance(event, Stop) and not self._why:
            self._why = f"stopped ({event.why or 'asked for'})"
        if facts := self._changes.after(event, self._scheduler, now):
            self._write(Changed(now, facts), now)
        return actions

    def close(self) -> None:
        """Write down that the life has ended, and why; end the packing."""
        if self._file >= 0:
            self._write(
                Closed(self._now, self._why or ("every pipeline has ended" if self.finished else "before every pipeline had ended")),
                self._now,
            )
        self._close_segment()
        self._packer.shutdown(wait=True)

    # -- segments

    def _rotate(self, now: float) -> None:
        """Begin a new segment when this one is full or a line of it was lost."""
        if self._retry_at is None and self._written < self._segment:
            return
        if self._retry_at is not None and now < self._retry_at:
            return
        self._close_segment()
        self._packer.submit(_pack, self._folder, self._number, self._kept)
        state = msgspec.Raw(self._encoder.encode(plain(self._scheduler)))
        self._open(Opened(now, self.handled, state=state, wall=self._wall()))
        self._changes.tell_whole()

    def _open(self, line: Opened) -> None:
        self._number += 1
        self._written = 0
        self._retry_at = None
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path = self._folder / f"{self._number:06}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            self._lose(line.at)
        else:
            self._write(line, line.at)

    def _close_segment(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, line: Line, now: float) -> None:
        if self._retry_at is not None:
            self.lost += 1
            return
        try:
            data = self._encoder.encode(line) + b"\n"
            written = os.write(self._file, data)
        except (OSError, ValueError):  # ValueError: what a child sent is no text
            self._lose(now)
            return
        self._written += written
        if written < len(data):
            self._lose(now)

    def _lose(self, now: float) -> None:
        """Stop writing until a new segment can begin: what follows would make no sense after a hole."""
        self.lost += 1
        self._retry_at = now + RETRY_S


def _pack(folder: Path, number: int, kept: int) -> None:
    """Compress one segment, and remove the oldest beyond `kept` bytes. A full disk changes nothing."""
    plain = folder / f"{number:06}.jsonl"
    part = folder / f"{number:06}.part"
    with contextlib.suppress(OSError):
        descriptor = open_regular(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(open_regular(plain), "rb") as source, open(descriptor, "wb") as raw, gzip.open(raw, "wb", 5) as packed:
            shutil.copyfileobj(source, packed)
        part.rename(plain.with_suffix(".jsonl.gz"))
        plain.unlink()
    with contextlib.suppress(OSError):
        sizes = [(path, path.stat().st_size) for path in segments(folder)]
        while len(sizes) > 2 and sum(size for _, size in sizes) > kept:
            oldest, _ = sizes.pop(0)
            _keep_history(oldest)
            oldest.unlink()


def _keep_history(segment: Path) -> None:
    """Write what changed in a segment beside it, because it goes. A damaged one leaves as much as can be read."""
    part = segment.with_name(f"{_number(segment):06}.history.part")
    descriptor = open_regular(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with open(descriptor, "wb") as raw, gzip.open(raw, "wb", 6) as packed, contextlib.suppress(EOFError, zlib.error):
        for text in _texts(segment):
            if text.startswith(_OPENED):
                packed.write(msgspec.json.encode(msgspec.structs.replace(_OPENED_LINE.decode(text), state=msgspec.Raw(b"null"))) + b"\n")
            elif text.startswith(_TOLD):
                packed.write(text)
    part.rename(part.with_name(f"{_number(segment):06}{HISTORY_SUFFIX}"))


def segments(folder: Path) -> list[Path]:
    """Return the segments, oldest first. One that is there twice (we were killed while it was compressed) counts as the plain one."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("[0-9]*.jsonl*")):
        if path.suffix in (".jsonl", ".gz"):
            found.setdefault(_number(path), path)
    return [found[number] for number in sorted(found)]


def histories(folder: Path) -> list[Path]:
    """Return where the history of the run can be read, oldest first: what remains of each segment that was removed, then the segments."""
    there = segments(folder)
    known = {_number(path) for path in there}
    remains = {_number(path): path for path in folder.glob(f"[0-9]*{HISTORY_SUFFIX}")}
    return [remains[number] for number in sorted(remains) if number not in known] + there


def _number(path: Path) -> int:
    return int(path.name.partition(".")[0])


_OPENED: Final = b'{"line":"opened"'
_TOLD: Final = (_OPENED, b'{"line":"changed"', b'{"line":"closed"')
"""How the lines begin that a history is made of. Those of events and decisions are many more, and are passed over unread."""
_OPENED_LINE: Final = msgspec.json.Decoder(Opened)
_TOLD_LINE: Final = msgspec.json.Decoder(Opened | Changed | Closed)


def told(texts: Iterable[bytes]) -> Iterator[Opened | Changed | Closed]:
    """Yield what the history is made of, of the lines of a segment, up to the first of these that is incomplete or damaged."""
    for text in texts:
        if text.startswith(_TOLD):
            try:
                yield _TOLD_LINE.decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return


def _texts(segment: Path) -> Iterator[bytes]:
    """Yield the lines of a segment as they are. Raises OSError, EOFError, zlib.error."""
    with open(open_regular(segment), "rb") as raw, gzip.open(raw, "rb") if segment.suffix == ".gz" else raw as file:
        yield from file


def read(segment: Path) -> Iterator[tuple[int, Line | None]]:
    """Yield the lines with their numbers, from 1, up to the first that is incomplete, which is None. Raises OSError, EOFError."""
    decoder = msgspec.json.Decoder(Line)
    for number, text in enumerate(_texts(segment), 1):
        try:
            if text.endswith(b"\n"):
                yield number, decoder.decode(text)
                continue
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        yield number, None
        return

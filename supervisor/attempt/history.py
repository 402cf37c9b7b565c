"""This module reads the history of an attempt from its recording: of a run that goes on, one that has ended, and one that was killed.

It only reads files, and asks no supervisor. A reader that is kept (`HistoryReader`) reads at each `poll` what has been written since.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from supervisor.attempt.directory import is_running
from supervisor.attempt.recording import FOLDER, Changed, Closed, Heard, Opened, histories, read, told
from supervisor.attempt.state_codec import Damaged, restored
from supervisor.errors import UsageError
from supervisor.history.changes import Changes
from supervisor.history.fold import History
from supervisor.host.regular_file import open_regular
from supervisor.scheduler import Scheduler

_BLOCK: Final = 1 << 20


class HistoryReader:
    """Folds an attempt's recording, as far as it is written. `history` is what has been read."""

    def __init__(self, attempt: Path) -> None:
        self.attempt = attempt
        self.history = History()
        self._folder = attempt / FOLDER
        self._done: Path | None = None  # the newest segment that has been read to its end
        self._open: tuple[Path, IO[bytes]] | None = None  # the one that is still written to
        self._rest = b""

    def poll(self, now: float | None = None) -> bool:
        """Read what has been written since; return whether it was anything. `now`, in seconds since the epoch: a live run's lanes go on until then.

        Raises UsageError: a segment cannot be read.
        """
        before = self.history.facts, len(self.history.lives)
        running = is_running(self.attempt)  # asked first: what is written before the end is read, then
        try:
            self._read_on()
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{self._folder}: {error}. What lies before it can be read: move the damaged file away.") from error
        if now is not None:
            self.history.stands(now, running=running)
        return before != (self.history.facts, len(self.history.lives))

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _read_on(self) -> None:
        if self._open is not None:
            path, file = self._open
            later = any(
                other.name.partition(".")[0] > path.name.partition(".")[0] for other in histories(self._folder)
            )  # asked before the last look
            self._take(self._lines(file))
            if not later:
                return
            self.close()
            self._done = path
        for path in histories(self._folder):
            if self._done is not None and path.name.partition(".")[0] <= self._done.name.partition(".")[0]:
                continue
            self._begin(path)

    def _begin(self, path: Path) -> None:
        """Read a segment to its end; stay at the end of one that may be written to."""
        self._rest = b""
        if path.suffix == ".gz":
            with open(open_regular(path), "rb") as raw, gzip.open(raw, "rb") as packed:
                self._take(packed, path)
            self._done = path
            return
        if self._open is not None:
            self._done = self._open[0]
            self.close()
        file = os.fdopen(open_regular(path), "rb")
        self._open = path, file
        self._take(self._lines(file), path)

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield the complete lines that are there; what is not yet complete waits for the next look."""
        while block := file.read(_BLOCK):
            *lines, self._rest = (self._rest + block).split(b"\n")
            yield from lines

    def _take(self, texts: Iterator[bytes] | IO[bytes], path: Path | None = None) -> None:
        history = self.history
        for line in told(texts):
            match line:
                case Changed(at=at, facts=facts):
                    history.changed(at, facts)
                case Opened():
                    history.opened(line.at, line.wall, life=line.box is not None)
                    if not line.wall and path is not None:
                        self._decide_again(path, line)
                        return
                case Closed(at=at, why=why):
                    history.closed(at, why)

    def _decide_again(self, path: Path, opened: Opened) -> None:
        """A recording of before facts were written: its events are handled again by the scheduler of today, and that is looked at."""
        scheduler = _scheduler(path, opened)
        changes = Changes()
        for _, line in read(path):
            if isinstance(line, Heard):
                scheduler.handle(line.event, line.at)
                self.history.changed(line.at, changes.after(line.event, scheduler, line.at))


def _scheduler(path: Path, opened: Opened) -> Scheduler:
    if opened.box is not None:
        return Scheduler(opened.box, opened.at)
    try:
        state = restored(msgspec.json.decode(opened.state))
    except (Damaged, msgspec.DecodeError) as error:
        raise UsageError(f"{path}: the state in its first line cannot be read: {error}.") from error
    if not isinstance(state, Scheduler):
        raise UsageError(f"{path}: the state in its first line is no scheduler's.")
    return state


def read_history(attempt: Path, now: float) -> History:
    """Return the history of an attempt up to `now`, in seconds since the epoch. Raises UsageError when nothing is recorded or it cannot be read."""
    reader = HistoryReader(attempt)
    try:
        reader.poll(now)
    finally:
        reader.close()
    if not reader.history.pipelines:
        raise UsageError(f"{attempt} has no history: nothing is recorded in its folder {FOLDER}.")
    return reader.history

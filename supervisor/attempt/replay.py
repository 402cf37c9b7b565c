"""This module decides the recording of a run again, by the scheduler of today, and compares it action by action."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from supervisor.attempt.recording import FOLDER, Decided, Heard, Line, Opened, read, segments
from supervisor.attempt.state_codec import Damaged, restored
from supervisor.errors import UsageError
from supervisor.scheduler import Scheduler


class Difference(msgspec.Struct, frozen=True):
    """The first difference: `recorded` and `replayed` are the actions that differ (`null`: there is none), `event` what they answer."""

    segment: str
    line: int
    at: float
    event: msgspec.Raw
    recorded: msgspec.Raw
    replayed: msgspec.Raw
    raised: str = ""


@dataclass
class Replayed:
    """What a replay found. `lives` counts supervisors (a resumed run has several), `gaps` places where the recording goes on from a state."""

    segments: int = 0
    lives: int = 0
    events: int = 0
    actions: int = 0
    gaps: int = 0
    cut: list[str] = field(default_factory=list)  # segments that end within a line: their writer was killed there
    difference: Difference | None = None


def replay(attempt: Path) -> Replayed:
    """Replay every segment of an attempt, oldest first, up to the first difference. Raises UsageError when there is nothing to replay."""
    paths = segments(attempt / FOLDER)
    if not paths:
        raise UsageError(f"{attempt} has no recording: there is nothing in its folder {FOLDER}.")
    done = Replayed()
    scheduler: Scheduler | None = None
    handled = 0
    for path in paths:
        lines = _Lines(path)
        opened = lines.opened()
        if opened is None:
            done.cut.append(path.name)
            continue
        if opened.box is not None:
            scheduler, handled = Scheduler(opened.box, opened.at), 0
            done.lives += 1
        elif scheduler is None or opened.handled != handled:
            done.gaps += scheduler is not None
            done.lives += scheduler is None
            scheduler, handled = _state(path, opened), opened.handled
        done.segments += 1
        for number, heard, recorded in lines.events():
            done.difference = _decide(scheduler, path, number, heard, recorded, done)
            if done.difference is not None:
                return done
            handled += 1
        if lines.cut:
            done.cut.append(path.name)
    return done


def _state(path: Path, opened: Opened) -> Scheduler:
    try:
        state = restored(msgspec.json.decode(opened.state))
    except (Damaged, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: the state in its first line cannot be read: {error}.") from error
    if not isinstance(state, Scheduler):
        raise UsageError(f"{path}: the state in its first line is no scheduler's.")
    return state


def _decide(scheduler: Scheduler, path: Path, line: int, heard: Heard, recorded: bytes | None, done: Replayed) -> Difference | None:
    """Handle one event and compare. `recorded` is None where the supervisor was killed before it wrote what it had decided."""
    raised = ""
    decided = b""
    try:
        actions = scheduler.handle(heard.event, heard.at)
    except Exception as error:  # what it raised then it may raise now: it is what we look for
        raised = f"{type(error).__name__}: {error}"
    else:
        done.events += 1
        done.actions += len(actions)
        decided = msgspec.json.encode(actions)
    if not raised and (recorded is None or recorded == decided):
        return None
    was, now = _first(recorded or b"[]", decided or b"[]")
    return Difference(f"{FOLDER}/{path.name}", line, heard.at, msgspec.Raw(msgspec.json.encode(heard.event)), was, now, raised)


def _first(recorded: bytes, replayed: bytes) -> tuple[msgspec.Raw, msgspec.Raw]:
    """Return the first action of each side that differs."""
    both = [msgspec.json.decode(text, type=list[msgspec.Raw]) for text in (recorded, replayed)]
    none = msgspec.Raw(b"null")
    for place in range(max(map(len, both))):
        one, other = (actions[place] if place < len(actions) else none for actions in both)
        if bytes(one) != bytes(other):
            return one, other
    return none, none


class _Lines:
    """The lines of a segment: the opening one, then every event with what was decided."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cut = False
        self._lines = self._read()

    def _read(self) -> Iterator[tuple[int, Line]]:
        try:
            for number, line in read(self._path):
                if line is None:
                    self.cut = True
                else:
                    yield number, line
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{self._path}: {error}.") from error

    def opened(self) -> Opened | None:
        first = next(self._lines, None)
        return first[1] if first is not None and isinstance(first[1], Opened) else None

    def events(self) -> Iterator[tuple[int, Heard, bytes | None]]:
        """Yield each event with its line's number; what was decided is not known of the last one, if no line follows it."""
        waiting: tuple[int, Heard] | None = None
        for number, line in self._lines:
            if isinstance(line, Heard):
                if waiting is not None:
                    yield *waiting, b"[]"
                waiting = number, line
            elif isinstance(line, Decided) and waiting is not None:
                yield *waiting, bytes(line.actions)
                waiting = None
        if waiting is not None:
            yield *waiting, None

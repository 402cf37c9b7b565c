"""Where each pipeline's trainer resumes: which checkpoints it has said it saved, and which weight version was the last."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from supervisor.host.atomic_file import write_atomically
from supervisor.host.regular_file import read_regular
from trainers.remove_tree import remove_tree

_FILE: Final = "resume.json"
_HOPS: Final = 40
"""Links that a path may pass through: the kernel's own limit."""


class Saved(msgspec.Struct, frozen=True):
    """The state after `step` lies at `path`."""

    step: int
    path: str


class Remembered(msgspec.Struct, frozen=True):
    """The record of one pipeline, the newest checkpoint last. `version` is the last weight version that was published."""

    checkpoints: tuple[Saved, ...] = ()
    version: int = 0

    @property
    def steps_done(self) -> int:
        return self.checkpoints[-1].step + 1 if self.checkpoints else 0

    @property
    def newest(self) -> str | None:
        return self.checkpoints[-1].path if self.checkpoints else None


def remembered(directory: Path) -> Remembered:
    """Reads what is recorded of one pipeline there; a checkpoint that is not on the disk any more does not count."""
    try:
        known = msgspec.json.decode(read_regular(directory / _FILE), type=Remembered)
    except (OSError, ValueError, RecursionError):
        known = Remembered()
    return _present(known)


def _present(known: Remembered) -> Remembered:
    return msgspec.structs.replace(known, checkpoints=tuple(saved for saved in known.checkpoints if os.path.exists(saved.path)))


def resumable(checkpoints: Path) -> dict[str, int]:
    """Returns the steps done of each pipeline that has a checkpoint, by its name; `checkpoints` is `<attempt>/checkpoints`."""
    try:
        names = sorted(os.listdir(checkpoints))
    except OSError:
        return {}
    found = {name: remembered(checkpoints / name) for name in names}
    return {name: known.steps_done for name, known in found.items() if known.checkpoints}


@dataclass(slots=True)
class Checkpoints:
    """The record of one pipeline, in `directory/resume.json`; at most `keep` checkpoints stay on the disk, and whatever those need.

    `unwritten` is called when the disk does not take a version. That is no reason to refuse the weights: a resume only counts from an older one.
    """

    directory: Path
    keep: int
    known: Remembered
    unwritten: Callable[[OSError], None]

    @classmethod
    def open(cls, directory: Path, keep: int, unwritten: Callable[[OSError], None]) -> "Checkpoints":
        """Opens the record that an earlier life left there, or an empty one."""
        return cls(directory, keep, remembered(directory), unwritten)

    def record(self, step: int, path: str) -> None:
        """Records that the state after `step` lies at `path`, then removes what fell out of the record.

        Raises OSError (nothing is recorded) when the path is not there or the record cannot be written.
        """
        os.stat(path)
        earlier = [saved for saved in self.known.checkpoints if saved.step < step]  # a restart that went back writes its steps again
        checkpoints = (*earlier, Saved(step, path))
        self._write(msgspec.structs.replace(self.known, checkpoints=checkpoints[-self.keep :]))
        if dropped := checkpoints[: -self.keep]:
            needed = _needed(Path(saved.path) for saved in self.known.checkpoints)
            for old in dropped:
                self._remove(Path(old.path), needed)

    def usable(self) -> Remembered:
        """Returns the record without checkpoints that are not on the disk now. The record itself keeps them, as they may come back."""
        return _present(self.known)

    def published(self, version: int) -> None:
        """Records the newest weight version, from which versions go on after a resume.

        Where the disk does not take it now, the next checkpoint records it.
        """
        known = msgspec.structs.replace(self.known, version=version)
        try:
            self._write(known)
        except OSError as error:
            self.known = known
            self.unwritten(error)

    def _write(self, known: Remembered) -> None:
        write_atomically(self.directory / _FILE, msgspec.json.format(msgspec.json.encode(known)) + b"\n")
        self.known = known

    def _remove(self, path: Path, needed: Collection[Path]) -> None:
        """Removes an old checkpoint that lies in our own directory, unless a kept one needs it.

        What is needed now stays for good, because the record does not name it any more.
        """
        own = self.directory.resolve()
        *_, place = _places(path, follow_last=False)
        if own not in place.parents or own not in path.resolve().parents:
            return
        if any(place == each or place in each.parents or each in place.parents for each in needed):
            return
        with contextlib.suppress(FileNotFoundError):
            if place.is_dir() and not place.is_symlink():
                remove_tree(place)
            else:
                place.unlink()


def _needed(kept: Iterable[Path]) -> set[Path]:
    """Returns the places that must stay, with all that lies in them, so that the `kept` checkpoints can be read.

    These are the checkpoints themselves, every link on the way to one, and whatever a link inside one leads to.
    """
    needed: set[Path] = set()
    todo = list(kept)
    while todo:
        *links, place = _places(todo.pop())
        needed.update(links)
        if place not in needed:
            needed.add(place)
            for folder, folders, files in os.walk(place):
                inside = (Path(folder, name) for name in (*folders, *files))
                todo += [entry for entry in inside if entry.is_symlink()]
    return needed


def _places(path: Path, follow_last: bool = True) -> Iterator[Path]:
    """Yields each link that `path` passes through, then where it ends. All are free of links and detours before their last part."""
    place, parts, hops = Path("/"), deque(path.absolute().parts[1:]), 0
    while parts:
        part = parts.popleft()
        here = place.parent if part == ".." else place / part
        if here.is_symlink() and (parts or follow_last) and hops < _HOPS:
            yield here
            hops += 1
            target = here.readlink()
            place = Path("/") if target.is_absolute() else place
            parts.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        else:
            place = here
    yield place

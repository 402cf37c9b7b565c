"""Where each pipeline's trainer resumes: what it has said it saved, and which weight version was the last."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from supervisor.host.atomic_file import write_whole

_FILE: Final = "resume.json"


class Saved(msgspec.Struct, frozen=True):
    """The state after `step` lies at `path`."""

    step: int
    path: str


class Remembered(msgspec.Struct, frozen=True):
    """Newest checkpoint last. `version` is the last weight version that was published."""

    checkpoints: tuple[Saved, ...] = ()
    version: int = 0

    @property
    def steps_done(self) -> int:
        return self.checkpoints[-1].step + 1 if self.checkpoints else 0

    @property
    def newest(self) -> str | None:
        return self.checkpoints[-1].path if self.checkpoints else None


def remembered(directory: Path) -> Remembered:
    """What is recorded of one pipeline there; a checkpoint that is no longer on the disk does not count."""
    try:
        known = msgspec.json.decode((directory / _FILE).read_bytes(), type=Remembered)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        known = Remembered()
    present = tuple(saved for saved in known.checkpoints if os.path.exists(saved.path))
    return msgspec.structs.replace(known, checkpoints=present)


def resumable(checkpoints: Path) -> dict[str, int]:
    """`<attempt>/checkpoints` -> the steps done, of each pipeline that has a checkpoint."""
    try:
        names = sorted(os.listdir(checkpoints))
    except OSError:
        return {}
    found = {name: remembered(checkpoints / name) for name in names}
    return {name: known.steps_done for name, known in found.items() if known.checkpoints}


@dataclass(slots=True)
class Checkpoints:
    """The record of one pipeline, in `directory/resume.json`; at most `keep` checkpoints stay on the disk.

    `unwritten` is told when the disk does not take a version: that is no reason to refuse the weights, a resume only counts from an older one.
    """

    directory: Path
    keep: int
    known: Remembered
    unwritten: Callable[[OSError], None]

    @classmethod
    def open(cls, directory: Path, keep: int, unwritten: Callable[[OSError], None]) -> "Checkpoints":
        """With what an earlier life left there."""
        return cls(directory, keep, remembered(directory), unwritten)

    def record(self, step: int, path: str) -> None:
        """Raises OSError (nothing recorded) when the path is not there or the record cannot be written."""
        os.stat(path)
        kept = [saved for saved in self.known.checkpoints if saved.step < step]  # a restart that went back writes its steps again
        checkpoints = (*kept, Saved(step, path))
        self._write(msgspec.structs.replace(self.known, checkpoints=checkpoints[-self.keep :]))
        for old in checkpoints[: -self.keep]:
            self._remove(Path(old.path))

    def published(self, version: int) -> None:
        """Versions go on from here after a resume; the next checkpoint records it where the disk does not take it now."""
        known = msgspec.structs.replace(self.known, version=version)
        try:
            self._write(known)
        except OSError as error:
            self.known = known
            self.unwritten(error)

    def _write(self, known: Remembered) -> None:
        write_whole(self.directory / _FILE, msgspec.json.format(msgspec.json.encode(known)) + b"\n")
        self.known = known

    def _remove(self, path: Path) -> None:
        """Only what lies in our own directory is ours to delete."""
        if not path.resolve().is_relative_to(self.directory.resolve()) or path.resolve() == self.directory.resolve():
            return
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

"""Where each pipeline's trainer resumes: what it has said it saved, and which weight version was the last."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

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


@dataclass(slots=True)
class Checkpoints:
    """The record of one pipeline, in `directory/resume.json`; at most `keep` checkpoints stay on the disk."""

    directory: Path
    keep: int
    known: Remembered

    @classmethod
    def open(cls, directory: Path, keep: int) -> "Checkpoints":
        """What an earlier life left there; a checkpoint that is no longer on the disk does not count."""
        try:
            known = msgspec.json.decode((directory / _FILE).read_bytes(), type=Remembered)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            known = Remembered()
        present = tuple(saved for saved in known.checkpoints if os.path.exists(saved.path))
        return cls(directory, keep, msgspec.structs.replace(known, checkpoints=present))

    def record(self, step: int, path: str) -> None:
        """Raises OSError (nothing recorded) when the path is not there or the record cannot be written."""
        os.stat(path)
        kept = [saved for saved in self.known.checkpoints if saved.step < step]  # a restart that went back writes its steps again
        checkpoints = (*kept, Saved(step, path))
        self._write(msgspec.structs.replace(self.known, checkpoints=checkpoints[-self.keep :]))
        for old in checkpoints[: -self.keep]:
            self._remove(Path(old.path))

    def published(self, version: int) -> None:
        """Versions go on from here after a resume. Raises OSError."""
        self._write(msgspec.structs.replace(self.known, version=version))

    def _write(self, known: Remembered) -> None:
        new = self.directory / f".{_FILE}.new"
        new.write_bytes(msgspec.json.format(msgspec.json.encode(known)) + b"\n")
        os.replace(new, self.directory / _FILE)
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

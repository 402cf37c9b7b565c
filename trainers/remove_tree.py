"""Removes a folder with all that lies in it, however deep somebody has made it.

`shutil.rmtree` calls itself for each level: a few hundred levels are a RecursionError, and a few thousand a path that the kernel does not take.
Here a folder's folders are moved up beside it before it is removed, so no path is longer than two names. Links are removed, never followed,
also when somebody puts one in a folder's place meanwhile.
"""

import contextlib
import os
import stat
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Removes a folder, or whatever stands in its place; nothing happens when it is not there. Raises OSError for the first of what stays."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        top = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    removal = _Removal(top)
    try:
        removal.run()
    finally:
        os.close(top)
    try:
        path.rmdir()
    except OSError as error:
        raise removal.failure or error from None


def remove_what_can_be(path: Path) -> None:
    """Removes a folder as far as it can be removed."""
    with contextlib.suppress(OSError):
        remove_tree(path)


class _Removal:
    """The folder `top` is emptied. What cannot be removed stays, and the rest goes."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._moved = 0
        self.failure: OSError | None = None

    def run(self) -> None:
        todo = self._emptied(self._top)
        while todo:
            name = todo.pop()
            try:
                inner = os.open(name, _FOLDER, dir_fd=self._top)
                try:
                    todo += self._emptied(inner)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=self._top)
            except OSError as error:
                self.failure = self.failure or error

    def _emptied(self, folder: int) -> list[str]:
        """Removes the files of a folder, and returns the names of its folders, which lie in the top then. Raises OSError if it cannot be read."""
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        folders = []
        for name, is_folder in found:
            try:
                if not is_folder:
                    os.unlink(name, dir_fd=folder)
                elif folder == self._top:
                    folders.append(name)
                else:
                    self._moved += 1
                    place = f".removed-{os.getpid()}-{self._moved}"
                    os.rename(name, place, src_dir_fd=folder, dst_dir_fd=self._top)
                    folders.append(place)
            except OSError as error:
                self.failure = self.failure or error
        return folders

"""Weight snapshots as the supervisor sees them: folders `v<version>` in a pipeline's weights folder in shared memory.

A trainer writes `<weights>/<name>/` in Hugging Face layout, then says `Publish(name)`; `adopt` looks at it and renames it in one
step. Nothing a trainer writes or says is trusted: names and links that lead elsewhere are refused, and only headers are read,
within limits. Nothing is synced to disk: a snapshot is worth nothing after the run.
"""

import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Final

MAX_HEADER: Final = 64 << 20
"""Bytes of a safetensors header (a description of about 100 bytes a tensor)."""
MAX_FILES: Final = 10_000
"""Entries of one snapshot."""
TIED: Final = frozenset({"lm_head.weight"})
"""Tied to the embedding in many models: their files leave it out, a trainer's state has it."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION: Final = re.compile(r"v[0-9]+")


class SnapshotError(Exception):
    """A snapshot that a trainer announced cannot be used: the trainer has failed to publish, nobody else has."""


def path_of(weights_dir: Path, version: int) -> Path:
    """Where version `version` (1 or more; 0 is the model path itself) lives."""
    if version < 1:
        raise ValueError(f"version {version} is no snapshot")
    return weights_dir / f"v{version}"


def adopt(weights_dir: Path, name: str, version: int, layout: frozenset[str] = frozenset()) -> Path:
    """Makes the snapshot `name` version `version`: looks at it, renames it, returns its new path. Raises SnapshotError, and removes it then.

    `layout`: names of the tensors of version 0, for engines that skip names they do not know without a word (SGLang). A snapshot that has
    others *instead* is refused: the engine would say that it has the version, and keep what it had.
    """
    if not _NAME.fullmatch(name) or _VERSION.fullmatch(name):
        raise SnapshotError(f"{name[:64]!r} is not a name for a snapshot")
    source, target = weights_dir / name, path_of(weights_dir, version)
    try:
        _compare(name, _inspect(source), layout)
        # An empty or stale target would be our own mistake; rename onto a full folder fails.
        os.rename(source, target)
    except OSError as error:
        _remove(source)
        raise SnapshotError(f"snapshot {name} in {weights_dir}: {error.strerror or error}") from error
    except SnapshotError:
        _remove(source)
        raise
    return target


def drop(weights_dir: Path, version: int) -> None:
    """Removes a version; nothing happens when it is gone already."""
    _remove(path_of(weights_dir, version))


def abandon(weights_dir: Path) -> None:
    """Removes what was being written: its trainer has died. Versions stay."""
    if weights_dir.is_dir():
        for entry in weights_dir.iterdir():
            if not _VERSION.fullmatch(entry.name):
                _remove(entry)


def sweep(weights_dir: Path) -> None:
    """Removes the folder with everything in it; nothing happens when it is gone already."""
    _remove(weights_dir)


def room(directory: Path) -> int:
    """Bytes that can still be written to the file system of `directory`."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


def _remove(path: Path) -> None:
    """Removes a folder or whatever stands in its place; a link is removed itself, never followed."""
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return


def layout_of(folder: Path) -> frozenset[str]:
    """Names of all tensors of a model; empty where its files do not say. For `adopt` and `missing`."""
    try:
        return _inspect(folder, links=True)
    except (SnapshotError, OSError):
        return frozenset()


def missing(folder: Path, layout: frozenset[str]) -> list[str]:
    """Names of the layout that a snapshot does not have, in order. Raises SnapshotError, OSError."""
    return sorted(layout - _inspect(folder)) if layout else []


def _compare(name: str, names: frozenset[str], layout: frozenset[str]) -> None:
    absent, strange = layout - names, names - layout - TIED
    if layout and absent and strange:
        raise SnapshotError(
            f"snapshot {name} names its tensors in another way than the model: it has {min(strange)[:200]!r} and {len(strange) - 1} more that"
            f" the model has not, and lacks {min(absent)[:200]!r} and {len(absent) - 1} more; publish them under the names of the model's files"
        )


def _inspect(folder: Path, links: bool = False) -> frozenset[str]:
    """The names of its tensors. `links`: files may be links, as in a cache of models.

    Raises SnapshotError (or OSError) unless this is a real, flat folder of real files with at least one sane safetensors file.
    """
    if not stat.S_ISDIR((folder.stat() if links else folder.lstat()).st_mode):
        raise SnapshotError(f"{folder} is not a folder")
    found: list[frozenset[str]] = []
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= MAX_FILES:
                raise SnapshotError(f"{folder} holds more than {MAX_FILES} files")
            if not links and not entry.is_file(follow_symlinks=False):
                raise SnapshotError(f"{entry.path} is not a plain file")
            if entry.name.endswith(".safetensors"):
                found.append(_inspect_tensors(Path(os.path.realpath(entry.path) if links else entry.path)))
    if not found:
        raise SnapshotError(f"{folder} holds no *.safetensors")
    return frozenset().union(*found)


def _inspect_tensors(path: Path) -> frozenset[str]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(MAX_HEADER, size - 8):
            raise SnapshotError(f"{path}: a header of {length} bytes in a file of {size}")
        header = file.read(length)
    try:
        tensors = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{path}: the header is no JSON ({error})") from error
    if not isinstance(tensors, dict):
        raise SnapshotError(f"{path}: the header is no table of tensors")
    ends = [_end(path, name, tensor) for name, tensor in tensors.items() if name != "__metadata__"]
    if not ends or max(ends) != size - 8 - length:
        raise SnapshotError(f"{path}: the tensors end at byte {max(ends, default=0)}, the file's data at {size - 8 - length}")
    return frozenset(tensors) - {"__metadata__"}


def _end(path: Path, name: str, tensor: object) -> int:
    """Where the tensor's bytes end, counted from the end of the header."""
    if isinstance(tensor, dict) and isinstance(tensor.get("dtype"), str) and isinstance(tensor.get("shape"), list):
        offsets = tensor.get("data_offsets")
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets):
            start, end = offsets
            if 0 <= start <= end:
                return int(end)
    raise SnapshotError(f"{path}: tensor {name[:64]!r} is described wrongly")

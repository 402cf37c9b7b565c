"""This module keeps weight snapshots for the supervisor: folders `v<version>` in a pipeline's weights folder in shared memory.

A trainer writes `<weights>/<name>/` in Hugging Face layout, then sends `Publish(name)`; `adopt` inspects the folder and renames it in one
step. Nothing that a trainer writes or sends is trusted: names and links that lead elsewhere are refused, and only the headers of
safetensors files are read, within limits. Nothing is synced to disk: a snapshot is worth nothing after the run.
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
"""The output layer is tied to the embedding in many models: their files leave it out, and a trainer's state has it."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION: Final = re.compile(r"v[0-9]+")


class SnapshotError(Exception):
    """A snapshot that a trainer announced cannot be used: the trainer has failed to publish, nobody else has."""


def path_of(weights_dir: Path, version: int) -> Path:
    """Returns the folder of version `version`, 1 or more (version 0 is the model path itself). Raises ValueError."""
    if version < 1:
        raise ValueError(f"version {version} is no snapshot")
    return weights_dir / f"v{version}"


def adopt(weights_dir: Path, name: str, version: int, layout: frozenset[str] = frozenset()) -> Path:
    """Makes the snapshot `name` version `version`: inspects it, renames it, returns its new path. Raises SnapshotError; the snapshot is removed then.

    `layout` has the names of the tensors of version 0, for engines that silently skip names that they do not know (SGLang). A snapshot that
    has other names *instead* is refused: such an engine would confirm the version and keep its old weights.
    """
    if not _NAME.fullmatch(name) or _VERSION.fullmatch(name):
        raise SnapshotError(f"{name[:64]!r} is not a name for a snapshot")
    source, target = weights_dir / name, path_of(weights_dir, version)
    try:
        _compare_names(name, _inspect(source), layout)
        # A target that is there already would be our own mistake; rename onto a full folder fails.
        os.rename(source, target)
    except OSError as error:
        _remove(source)
        raise SnapshotError(f"snapshot {name} in {weights_dir}: {error.strerror or error}") from error
    except SnapshotError:
        _remove(source)
        raise
    return target


def drop(weights_dir: Path, version: int) -> None:
    """Removes a version; does nothing when it is not there."""
    _remove(path_of(weights_dir, version))


def abandon(weights_dir: Path) -> None:
    """Removes what a trainer that has died was writing. Versions stay."""
    if weights_dir.is_dir():
        for entry in weights_dir.iterdir():
            if not _VERSION.fullmatch(entry.name):
                _remove(entry)


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
    """Returns the names of all tensors of a model, for `adopt` and `missing`; an empty set where its files do not tell."""
    try:
        return _inspect(folder, links=True)
    except (SnapshotError, OSError):
        return frozenset()


def missing(folder: Path, layout: frozenset[str]) -> list[str]:
    """Returns the names of the layout that a snapshot lacks, in order. Raises SnapshotError, OSError."""
    return sorted(layout - _inspect(folder)) if layout else []


def _compare_names(name: str, names: frozenset[str], layout: frozenset[str]) -> None:
    """Raises SnapshotError when the snapshot has other names in place of some of the layout's."""
    absent, unknown = layout - names, names - layout - TIED
    if layout and absent and unknown:
        raise SnapshotError(
            f"snapshot {name} names its tensors in another way than the model: it has {min(unknown)[:200]!r} and {len(unknown) - 1} more that"
            f" the model has not, and lacks {min(absent)[:200]!r} and {len(absent) - 1} more; publish them under the names of the model's files"
        )


def _inspect(folder: Path, links: bool = False) -> frozenset[str]:
    """Returns the names of a snapshot's tensors. With `links` files may be links, as in a cache of models.

    Raises SnapshotError (or OSError) unless this is a real, flat folder of real files with at least one valid safetensors file.
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
    """Returns the names of the tensors of one safetensors file, from its header. Raises SnapshotError, OSError."""
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
    """Returns where the tensor's bytes end, counted from the end of the header. Raises SnapshotError for a wrong description."""
    if isinstance(tensor, dict) and isinstance(tensor.get("dtype"), str) and isinstance(tensor.get("shape"), list):
        offsets = tensor.get("data_offsets")
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets):
            start, end = offsets
            if 0 <= start <= end:
                return int(end)
    raise SnapshotError(f"{path}: tensor {name[:64]!r} is described wrongly")

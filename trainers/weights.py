"""This module keeps weight snapshots for the supervisor: folders `v<version>` in a pipeline's weights folder in shared memory.

A trainer writes `<weights>/<name>/` in Hugging Face layout, then sends `Publish(name)`; `adopt` inspects the folder, compares its tensors with
the model's and renames it in one step. Nothing that a trainer writes or sends is trusted: names and links that lead elsewhere are refused, and
only the headers of safetensors files are read, within limits. Their values are not read here, as a snapshot may have gigabytes: whether they are
finite the client checks, which has them in hand. Nothing is synced to disk: a snapshot is worth nothing after the run.
"""

import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec

from trainers.remove_tree import remove_tree

MAX_HEADERS: Final = 32 << 20
"""Bytes of all safetensors headers of one snapshot, and of its index (about 120 bytes a tensor)."""
MAX_TENSORS: Final = 1 << 18
"""Tensors of one snapshot. The largest models of today have 90,000."""
MAX_FILES: Final = 10_000
"""Entries of one snapshot."""
MAX_CONFIG: Final = 1 << 20
TIED: Final = frozenset({"lm_head.weight"})
"""The output layer is tied to the embedding in many models: their files leave it out, and a trainer's state has it, or the other way round."""
COMPUTED: Final = re.compile(
    r"\.(?:rotary_emb\.(?:inv_freq|cos_cached|sin_cached)|(?:attn|attention)\.(?:bias|masked_bias)|position_ids)\Z"
)
"""The end of a tensor's name that engines compute and never load; old files have them, and a trainer's state has not."""
FILE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
"""One file, or an index that names the file of each tensor: so are a model's tensors laid out."""
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Engines convert one of these into another."""
_BYTES: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_NAMED: Final = 3
"""Tensors that a refusal names."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION: Final = re.compile(r"v[0-9]+")


class SnapshotError(Exception):
    """A snapshot that a trainer announced cannot be used: the trainer has failed to publish, nobody else has.

    `code` is for programs: `bad_snapshot` (no snapshot at all), `does_not_fit` (other names, shapes or types than the model's), `incomplete`.
    """

    def __init__(self, text: str, code: str = "bad_snapshot") -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class TensorType:
    """What a safetensors header says of one tensor; `dtype` in its words (`F32`, `BF16`, `I8` …)."""

    dtype: str
    shape: tuple[int, ...]

    def loads_into(self, other: "TensorType") -> bool:
        """Tells whether an engine can load this tensor where the model's files have `other`: a float's width is converted, nothing else is."""
        return self.shape == other.shape and (self.dtype == other.dtype or {self.dtype, other.dtype} <= _FLOATS)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a model by name. `tied`: its configuration says that the output layer is the embedding."""

    tensors: Mapping[str, TensorType] = field(default_factory=dict)
    tied: bool = False


UNKNOWN: Final = Layout()
"""The layout of a model whose files do not tell: nothing is compared with it."""


_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_DESCRIPTION: Final = 4096
_Place = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Tensor(msgspec.Struct, frozen=True):
    """A tensor in a safetensors header."""

    dtype: str
    shape: Annotated[tuple[_Place, ...], msgspec.Meta(max_length=64)]
    data_offsets: tuple[_Place, _Place]


class _Index(msgspec.Struct, frozen=True):
    """The part of an index that says where each tensor lies."""

    weight_map: dict[str, str]


class _TextConfig(msgspec.Struct, frozen=True):
    tie_word_embeddings: bool | None = None


class _Config(msgspec.Struct, frozen=True):
    """What a model's config.json says of its output layer."""

    tie_word_embeddings: bool | None = None
    text_config: _TextConfig | None = None


_TENSORS: Final = msgspec.json.Decoder(_Tensor)


@dataclass(slots=True)
class _Room:
    """What the headers of one snapshot may still bring.

    A decoder makes an object of every bracket before it finds that none is wanted, and holds the interpreter's lock meanwhile: so they are
    counted first.
    """

    size: int = MAX_HEADERS
    brackets: int = 3 * MAX_TENSORS
    colons: int = 8 * MAX_TENSORS

    def take(self, path: Path, text: bytes) -> None:
        """Counts one more header or index. Raises SnapshotError when there is no room for it."""
        self.size -= len(text)
        self.brackets -= text.count(b"[") + text.count(b"{")
        self.colons -= text.count(b":")
        if min(self.size, self.brackets, self.colons) < 0:
            raise SnapshotError(
                f"{path}: the headers of a snapshot describe at most {MAX_TENSORS} tensors, in {MAX_HEADERS} bytes all together"
            )


def path_of(weights_dir: Path, version: int) -> Path:
    """Returns the folder of version `version`, 1 or more (version 0 is the model path itself). Raises ValueError."""
    if version < 1:
        raise ValueError(f"version {version} is no snapshot")
    return weights_dir / f"v{version}"


def adopt(weights_dir: Path, name: str, version: int, model: Layout = UNKNOWN) -> Path:
    """Makes the snapshot `name` version `version`: inspects it, compares it with the model's tensors, renames it, returns its new path.

    Raises SnapshotError (or whatever a file system makes of it); the snapshot is removed then.
    """
    if not _NAME.fullmatch(name) or _VERSION.fullmatch(name):
        raise SnapshotError(f"{name[:64]!r} is not a name for a snapshot")
    source, target = weights_dir / name, path_of(weights_dir, version)
    try:
        _refuse_unfit(_inspect(source), model)
        # A target that is there already would be our own mistake; rename onto a full folder fails.
        os.rename(source, target)
    except OSError as error:
        remove_tree(source)
        raise SnapshotError(f"snapshot {name} in {weights_dir}: {error.strerror or error}") from error
    except Exception:
        remove_tree(source)
        raise
    return target


def drop(weights_dir: Path, version: int) -> None:
    """Removes a version; does nothing when it is not there."""
    remove_tree(path_of(weights_dir, version))


def abandon(weights_dir: Path) -> None:
    """Removes what a trainer that has died was writing. Versions stay."""
    if weights_dir.is_dir():
        for entry in weights_dir.iterdir():
            if not _VERSION.fullmatch(entry.name):
                remove_tree(entry)


def layout_of(folder: Path) -> Layout:
    """Returns the tensors of a model, for `adopt`; UNKNOWN where its files do not tell. They may be links, as in a cache of models."""
    try:
        room = _Room()
        files = _indexed(Path(os.path.realpath(folder / INDEX)), room) if (folder / INDEX).exists() else None
        names = {FILE} if (folder / FILE).exists() else {path.name for path in folder.glob("*.safetensors")}
        shards = sorted(names if files is None else set(files.values()))
        read = [_inspect_tensors(Path(os.path.realpath(folder / file)), room) for file in shards]
    except (SnapshotError, OSError):
        return UNKNOWN
    return Layout({name: tensor for tensors in read for name, tensor in tensors.items()}, _tied(folder / "config.json"))


def _tied(config: Path) -> bool:
    """Returns what a model's configuration says of its output layer, or of that of the text part of the model."""
    try:
        said = msgspec.json.decode(_beginning(config, MAX_CONFIG, follow=True), type=_Config)
    except (OSError, ValueError, RecursionError):
        return False
    text = said.text_config.tie_word_embeddings if said.text_config is not None else None
    return bool(text if said.tie_word_embeddings is None else said.tie_word_embeddings)


def _refuse_unfit(found: Mapping[str, TensorType], model: Layout) -> None:
    """Raises SnapshotError unless an engine that has the model's tensors can load all of them from the snapshot.

    Tensors besides the model's are passed over by every engine, so they are allowed, unless they stand *instead* of the model's.
    """
    wanted = model.tensors
    if not wanted:
        return
    spared = TIED if model.tied else frozenset()
    absent = [name for name in wanted if name not in found and name not in spared and not COMPUTED.search(name)]
    unknown = [name for name in found if name not in wanted and name not in TIED]
    if absent and unknown:
        raise SnapshotError(
            f"the snapshot names its tensors in another way than the model: it has {_few(unknown)} that the model has not,"
            f" and lacks {_few(absent)}; publish them under the names of the model's files",
            "does_not_fit",
        )
    unlike = [
        f"{_quoted(name)} is {tensor}, and {wanted[name]} in the model's files"
        for name, tensor in found.items()
        if name in wanted and not tensor.loads_into(wanted[name])
    ]
    if unlike:
        raise SnapshotError(
            f"{len(unlike)} of {len(found)} tensors do not fit the model: {_listed(unlike, '; ')}. Publish the shapes of the model's files"
            " (without padding, not transposed, not flattened) and their kind of number: the width of a float may differ, nothing else",
            "does_not_fit",
        )
    if absent:
        raise SnapshotError(
            f"the snapshot lacks {len(absent)} of the model's {len(wanted)} tensors: {_few(absent)};"
            " publish all of them, or publish(weights, partial=True), which takes the others from the version before",
            "incomplete",
        )


def _quoted(name: str) -> str:
    return repr(name[:200])


def _few(names: list[str]) -> str:
    """Returns the first names, and how many there are besides."""
    return _listed(map(_quoted, sorted(names)), ", ")


def _listed(parts: Iterable[str], between: str) -> str:
    every = list(parts)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return between.join(every[:_NAMED]) + more


def _inspect(folder: Path) -> Mapping[str, TensorType]:
    """Returns the tensors that an engine finds in a snapshot. Raises SnapshotError (or OSError) unless this is a real, flat folder of real
    files in Hugging Face layout: `model.safetensors`, or files that an index names.
    """
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise SnapshotError(f"{folder} is not a folder")
    read: dict[str, Mapping[str, TensorType]] = {}
    room = _Room()
    indexed = False
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= MAX_FILES:
                raise SnapshotError(f"{folder} holds more than {MAX_FILES} files")
            if not entry.is_file(follow_symlinks=False):
                raise SnapshotError(f"{entry.path} is not a plain file")
            if entry.name.endswith(".safetensors"):
                read[entry.name] = _inspect_tensors(Path(entry.path), room)
            indexed = indexed or entry.name == INDEX
    if not indexed:
        if set(read) != {FILE}:
            raise SnapshotError(f"{folder} holds neither {FILE} alone nor {INDEX} beside its *.safetensors")
        return read[FILE]
    files = _indexed(folder / INDEX, room)
    for name, file in files.items():
        if name not in read.get(file, ()):
            raise SnapshotError(f"{folder}: {INDEX} says that {_quoted(name)} is in {_quoted(file)}, and it is not")
    found: dict[str, TensorType] = {}
    for file in sorted(set(files.values())):
        if twice := found.keys() & read[file].keys():
            raise SnapshotError(f"{folder} holds {_few(list(twice))} twice")
        found.update(read[file])
    return found


def _indexed(index: Path, room: _Room) -> Mapping[str, str]:
    """Returns the file of each tensor, as an index says. Raises SnapshotError, OSError."""
    text = _beginning(index, MAX_HEADERS + 1)
    room.take(index, text)
    try:
        files = msgspec.json.decode(text, type=_Index).weight_map
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{index} is no index ({type(error).__name__}: {error})") from error
    if not all(os.path.basename(file) == file for file in files.values()):
        raise SnapshotError(f"{index} names no files of its folder")
    return files


def _beginning(path: Path, limit: int, *, follow: bool = False) -> bytes:
    """Returns at most `limit` bytes of a plain file. Raises OSError."""
    with open(os.open(path, _READ if follow else _READ | os.O_NOFOLLOW), "rb") as file:
        return file.read(limit)


def _inspect_tensors(path: Path, room: _Room) -> Mapping[str, TensorType]:
    """Returns the tensors of one safetensors file, from its header. Raises SnapshotError, OSError."""
    with open(os.open(path, _READ | os.O_NOFOLLOW), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(MAX_HEADERS, size - 8):
            raise SnapshotError(f"{path}: a header of {length} bytes in a file of {size}")
        header = file.read(length)
    room.take(path, header)
    try:
        tensors = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{path}: the header is no table of tensors ({error})") from error
    found: dict[str, TensorType] = {}
    last = 0
    for name, tensor in tensors.items():
        if name != "__metadata__":
            found[name], end = _described(path, name, tensor)
            last = max(last, end)
    if not found or last != size - 8 - length:
        raise SnapshotError(f"{path}: the tensors end at byte {last}, the file's data at {size - 8 - length}")
    return found


def _described(path: Path, name: str, tensor: msgspec.Raw) -> tuple[TensorType, int]:
    """Returns a tensor's type, and where its bytes end, counted from the end of the header. Raises SnapshotError for a wrong description."""
    try:
        said = _TENSORS.decode(tensor) if len(bytes(tensor)) <= _MAX_DESCRIPTION else None
    except (ValueError, RecursionError):
        said = None
    if said is not None:
        start, end = said.data_offsets
        count = end - start
        if count >= 0 and (said.dtype not in _BYTES or count == math.prod(said.shape) * _BYTES[said.dtype]):
            return TensorType(said.dtype, said.shape), end
    raise SnapshotError(f"{path}: tensor {name[:64]!r} is described wrongly")

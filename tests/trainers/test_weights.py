import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers import weights


def write(folder: Path, header: object = None, data: bytes = b"12345678", length: int | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = {"__metadata__": {}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} if header is None else header
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    size = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + data)
    return folder


def test_adopt_renames_and_drop_removes(tmp_path: Path) -> None:
    (write(tmp_path / "snapshot-0") / "config.json").write_text("{}")
    path = weights.adopt(tmp_path, "snapshot-0", 1)
    assert path == weights.path_of(tmp_path, 1) == tmp_path / "v1"
    assert sorted(entry.name for entry in path.iterdir()) == ["config.json", "model.safetensors"]
    weights.drop(tmp_path, 1)
    weights.drop(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_abandon_keeps_versions(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside")
    folder = tmp_path / "weights"
    weights.adopt(folder, write(folder / "a").name, 1)
    write(folder / "half")
    (folder / "link").symlink_to(outside)
    weights.abandon(folder)
    assert [entry.name for entry in folder.iterdir()] == ["v1"]
    weights.abandon(tmp_path / "not there")
    assert (outside / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "v1", "v01", "-x", "a\0b", "a\nb", "x" * 200, "ä", "\u202e"])
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "x")
    folder = tmp_path / "weights"
    folder.mkdir()
    with pytest.raises(weights.SnapshotError):
        weights.adopt(folder, name, 1)
    assert (tmp_path / "x" / "model.safetensors").exists()


HEADERS: list[tuple[object, bytes, int | None]] = [
    (b"", b"", None),
    (b"{", b"", None),
    (b"\xff\xff", b"", None),
    (b"[" * 100_000, b"", None),
    ([], b"", None),
    ({}, b"", None),
    ({"__metadata__": {}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 8]}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [False, 8]}}, b"12345678", None),
    ({"w": {"dtype": 3, "shape": [2], "data_offsets": [0, 8]}}, b"12345678", None),
    ({"w": 3}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 8]}}, b"12345678", None),
    ({"w": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 8]}}, b"12345678", None),
    (None, b"12345678", 2**63),
    (None, b"12345678", 10_000),
]


@pytest.mark.parametrize(("header", "data", "length"), HEADERS, ids=range(len(HEADERS)))
def test_bad_headers_are_refused_and_removed(tmp_path: Path, header: object, data: bytes, length: int | None) -> None:
    write(tmp_path / "a", header, data, length)
    with pytest.raises(weights.SnapshotError):
        weights.adopt(tmp_path, "a", 1)
    assert list(tmp_path.iterdir()) == []


def nothing(tmp_path: Path) -> None:
    """There is no such folder."""


def empty(tmp_path: Path) -> None:
    (tmp_path / "w" / "a").mkdir(parents=True)


def link_to_folder(tmp_path: Path) -> None:
    (tmp_path / "w" / "a").symlink_to(write(tmp_path / "outside"))


def link_to_file(tmp_path: Path) -> None:
    write(tmp_path / "outside")
    write(tmp_path / "w" / "a")
    (tmp_path / "w" / "a" / "x.safetensors").symlink_to(tmp_path / "outside" / "model.safetensors")


def a_file(tmp_path: Path) -> None:
    (tmp_path / "w" / "a").write_text("x")


def a_folder_inside(tmp_path: Path) -> None:
    write(tmp_path / "w" / "a" / "b")
    write(tmp_path / "w" / "a")


def a_pipe(tmp_path: Path) -> None:
    (tmp_path / "w" / "a").mkdir()
    os.mkfifo(tmp_path / "w" / "a" / "model.safetensors")


def the_version_is_there(tmp_path: Path) -> None:
    write(tmp_path / "w" / "a")
    write(tmp_path / "w" / "v1")


CASES = [nothing, empty, link_to_folder, link_to_file, a_file, a_folder_inside, a_pipe, the_version_is_there]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_no_snapshot_is_refused_and_removed(tmp_path: Path, case: Callable[[Path], None]) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    case(tmp_path)
    with pytest.raises(weights.SnapshotError):
        weights.adopt(folder, "a", 1)
    assert not (folder / "a").is_symlink()
    assert not (folder / "a").exists()
    if (tmp_path / "outside").exists():
        assert (tmp_path / "outside" / "model.safetensors").exists()


def test_version_0_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="version 0"):
        weights.drop(tmp_path, 0)

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers import weights
from trainers.remove_tree import remove_tree


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


HUGE = {
    "lists": b'{"a":[' + b"[]," * 10_000_000 + b"[]]}",
    "objects": b'{"a":[' + b"{}," * 10_000_000 + b"{}]}",
    "numbers": b'{"a":[' + b"1," * 15_000_000 + b"1]}",
    "names": b"{" + b",".join(b'"%07d":1' % number for number in range(2_500_000)) + b"}",
    "tensors": b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,0]}' % number for number in range(600_000)) + b"}",
    "a string": b'{"a":"' + b"x" * (30 << 20) + b'"}',
    "one more byte": b" " * (32 << 20) + b"{",
}
MEASURE = """
import pathlib, resource, sys, threading, time
from trainers import weights
from trainers.remove_tree import remove_tree
folder = pathlib.Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = []
def adopt():
    try:
        weights.adopt(folder, "a", 1)
    except weights.SnapshotError as error:
        refused.append(str(error))
thread = threading.Thread(target=adopt)
thread.start()
longest, last = 0.0, time.monotonic()
while thread.is_alive():
    time.sleep(0.001)
    now = time.monotonic()
    longest, last = max(longest, now - last), now
print(len(refused), longest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_header_stops_no_other_thread_and_takes_little_memory(tmp_path: Path, kind: str) -> None:
    header = HUGE[kind]
    write(tmp_path / "a", header)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    refused, silent, grown = done.stdout.split()
    assert refused == "1"
    assert float(silent) < 0.5, "the loop of the supervisor stands for so long"
    assert int(grown) < 300, "MiB"
    assert not (tmp_path / "a").exists()


def test_the_headers_of_all_files_count_together(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    for number in range(9):
        shard = write(tmp_path / "shard", b'{"a":"' + b"x" * (4 << 20) + b'"}') / "model.safetensors"
        folder.mkdir(exist_ok=True)
        shard.rename(folder / f"model-{number}.safetensors")
    (folder / weights.INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(weights.SnapshotError):
        weights.adopt(tmp_path, "a", 1)
    room = weights._Room()
    header = b'{"%d":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    room.take(folder, header * 90_000)
    with pytest.raises(weights.SnapshotError, match="at most 262144 tensors"):
        room.take(folder, header * 200_000)


def test_the_largest_models_of_today_fit(tmp_path: Path) -> None:
    name = "model.layers.%d.mlp.experts.255.down_proj.weight_scale_inv"
    header = {name % number: {"dtype": "F8_E4M3", "shape": [7168, 0], "data_offsets": [0, 0]} for number in range(100_000)}
    folder = write(tmp_path / "a", header, b"")
    (folder / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(header, "model.safetensors")}))
    assert weights.adopt(tmp_path, "a", 1).exists()


def test_a_folder_that_is_too_deep_for_a_path_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "stays").mkdir(parents=True)
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        os.mkdir("deep", dir_fd=here)
        for depth in range(1200):
            inner = os.open("deep" if depth == 0 else "in", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
            os.mkdir("in", dir_fd=here)
            os.symlink(outside, "link", dir_fd=here)
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
    remove_tree(tmp_path / "deep")
    assert [entry.name for entry in tmp_path.iterdir()] == ["outside"]
    assert [entry.name for entry in outside.iterdir()] == ["stays"], "links are not followed"

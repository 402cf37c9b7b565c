"""What a child may have put in the place of a file neither blocks us nor fills our memory."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.attempt import summary
from supervisor.attempt.checkpoints import Remembered, remembered
from supervisor.attempt.sweep import survivors
from supervisor.host import disk
from supervisor.host.atomic_file import write_atomically
from supervisor.host.processes.child import open_log
from supervisor.host.regular_file import open_regular, read_regular, tail

PLACED: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere"),
    "a folder": Path.mkdir,
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("what", PLACED)
def test_only_a_regular_file_is_read(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    PLACED[what](path)
    assert tail(path, 100) == b""
    with pytest.raises(OSError, match=r"\[Errno"):
        read_regular(path)


@pytest.mark.parametrize("what", ["a FIFO", "a link", "a folder"])
def test_only_a_regular_file_is_written(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    PLACED[what](path)
    with pytest.raises(OSError, match=r"\[Errno"):
        open_regular(path, os.O_WRONLY | os.O_CREAT)


def test_a_fifo_that_somebody_reads_is_no_file_either(tmp_path: Path) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path, os.O_WRONLY)
    os.close(reader)


def test_what_others_may_write_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    os.close(open_regular(path, ours=True))
    path.chmod(0o620)
    with pytest.raises(OSError, match="another user"):
        open_regular(path, ours=True)


def test_the_tail_of_a_log_of_any_size_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\nlast\n")
    assert tail(path, 100) == b"first\nlast\n"
    assert tail(path, 5) == b"last\n"
    assert tail(path, 100, start=6) == b"last\n"
    assert tail(path, 100, start=50) == b"first\nlast\n", "it was emptied since"
    os.truncate(path, 60 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tail(path, 1 << 10) == bytes(1 << 10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
    with pytest.raises(OSError, match="larger than"):
        read_regular(path, 1 << 10)


@pytest.mark.parametrize("what", ["a FIFO", "a link", "a link to nowhere", "nothing"])
def test_a_log_that_a_child_has_replaced_is_made_anew(tmp_path: Path, what: str) -> None:
    path = tmp_path / "log"
    PLACED[what](path)
    for line in (b"one\n", b"two\n"):
        log = open_log(path)
        os.write(log, line)
        os.close(log)
    assert path.lstat().st_mode == 0o100600
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_folder_in_the_place_of_a_log_is_a_failure_and_stays(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(OSError, match="directory"):
        open_log(tmp_path / "log")
    assert (tmp_path / "log").is_dir()


def test_a_fifo_in_the_place_of_an_unfinished_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "resume.json"
    os.mkfifo(tmp_path / ".resume.json.new")
    write_atomically(path, b"{}")
    assert path.read_bytes() == b"{}"


@pytest.mark.parametrize("what", PLACED)
def test_records_of_ours_that_a_child_has_replaced(tmp_path: Path, what: str) -> None:
    """None of these may wait: each is read while a run starts, goes on, or is looked for."""
    for name in ("resume.json", "summary.json", "figures.json", "journal.jsonl", ".room"):
        PLACED[what](tmp_path / name)
    assert remembered(tmp_path) == Remembered()
    assert summary.read(tmp_path) is None
    assert summary.figures(tmp_path) is None
    assert survivors(tmp_path / "journal.jsonl") == []
    assert disk.full(tmp_path) == ""

"""A log line that the disk does not take costs a line, never the program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.lossy_log import LossyFile, lost_lines

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, logging, sys, warnings
from trainers.lossy_log import tolerate_full_disk

tolerate_full_disk()
print("a line", flush=True)
sys.stderr.write("another\\n")
warnings.warn("a warning")
logging.getLogger("asyncio").error("an error of the loop")
sys.exit(7)
"""


def test_lines_are_dropped_counted_and_reported_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    full, own = os.open("/dev/full", os.O_WRONLY), os.dup(log)
    file = LossyFile(log, lost_lines)
    assert file.write(b"one\n") == 4
    os.dup2(full, log)
    assert file.write(b"two\nthree\n") == 10
    assert file.write(b"four\n") == 5
    assert file.lost == 3
    os.dup2(own, log)
    assert file.write(b"five\n") == 5
    assert file.lost == 0
    assert path.read_text() == f"one\n{lost_lines(3)}\nfive\n"
    for descriptor in (log, full, own):
        os.close(descriptor)


def test_a_line_that_fits_in_part_stays_alone_on_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    file, write = LossyFile(log, lost_lines), os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
        file.write(b"torn line\n")
    file.write(b"next\n")
    assert path.read_text() == f"tor\n{lost_lines(1)}\nnext\n"
    os.close(log)


def test_a_program_without_a_disk_ends_as_it_wants() -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([sys.executable, "-P", "-c", PROGRAM], stdout=full, stderr=full, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert ended.returncode == 7

"""A full disk is named, whatever makes it full."""

import errno
import os
import re
from pathlib import Path

import pytest

from supervisor.host import disk


def test_a_disk_with_room(tmp_path: Path) -> None:
    assert disk.full(tmp_path) == ""
    assert list(tmp_path.iterdir()) == [], "the trial is gone"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"the disk of .* is full \([0-9.]+ MiB of [0-9]+ MiB are free\)"),
        (errno.EDQUOT, "the disk quota for .* is used up"),
        (errno.EFBIG, "largest size"),
        (errno.EIO, "^$"),
    ],
)
def test_what_is_said_of_it(number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    found = disk.full(tmp_path)
    assert re.search(words, found), found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_not_full(tmp_path: Path) -> None:
    assert disk.full(tmp_path / "gone") == ""

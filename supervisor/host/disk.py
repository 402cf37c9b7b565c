"""This module names a full disk: what fails because of it seldom says so, as its own log line does not fit either."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from supervisor.host.regular_file import open_regular

TRIAL_BYTES: Final = 16 << 10
_TRIAL: Final = ".room"


def full(directory: Path) -> str:
    """Return why nothing more can be written there, or "". It is found by writing a little, as a quota shows nowhere else."""
    trial = directory / _TRIAL
    try:
        descriptor = open_regular(trial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.posix_fallocate(descriptor, 0, TRIAL_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        return reason(error, directory)
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()
    return ""


def reason(error: OSError, directory: Path) -> str:
    """Return the sentence for an error of writing below `directory`, or "" when it is about something else than room."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ""
    if error.errno == errno.EDQUOT:
        return f"the disk quota for {directory} is used up"
    if error.errno == errno.EFBIG:
        return f"a file below {directory} has reached the largest size that is allowed (ulimit -f)"
    return f"the disk of {directory} is full ({_size(directory)})"


def _size(directory: Path) -> str:
    try:
        space = os.statvfs(directory)
    except OSError:
        return "its size is not known"
    free, size = (blocks * space.f_frsize / 2**20 for blocks in (space.f_bavail, space.f_blocks))
    return f"{free:.1f} MiB of {size:.0f} MiB are free"

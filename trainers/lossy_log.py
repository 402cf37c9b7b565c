"""This module makes standard output and error of our own programs lossy: what the disk does not take is dropped and counted, never an error.

A gateway and an engine need no disk. Without this, the log line of a full one would be an OSError in the middle of a request.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STREAMS: Final = ("stdout", "stderr")


def lost_lines(lost: int) -> str:
    return f"{lost} lines of this log were lost: the disk did not take them"


def tolerate_full_disk(notice: Callable[[int], str] = lost_lines) -> None:
    """Replace `sys.stdout` and `sys.stderr`. When the disk takes lines again, `notice(number of lines lost)` is the first of them."""
    for name in STREAMS:
        stream = getattr(sys, name)
        if stream is not None:
            lossy = LossyFile(stream.fileno(), notice)
            setattr(sys, name, io.TextIOWrapper(lossy, "utf-8", "backslashreplace", line_buffering=True, write_through=True))


class LossyFile(io.RawIOBase):
    """Writes to a descriptor, which it does not own. `lost` counts lines that were not taken and not reported yet."""

    def __init__(self, descriptor: int, notice: Callable[[int], str]) -> None:
        self._descriptor = descriptor
        self._notice = notice
        self._torn = False
        self.lost = 0

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        """Take everything, whatever becomes of it."""
        text = bytes(data)
        before = b"\n" if self._torn else b""
        if self.lost:
            before += self._notice(self.lost).encode() + b"\n"
        whole = before + text
        try:
            written = os.write(self._descriptor, whole)
        except OSError:
            written = 0
        if written < len(whole):
            self._torn = self._torn or written > 0
            self.lost += max(1, text.count(b"\n"))
        else:
            self._torn, self.lost = False, 0
        return len(text)

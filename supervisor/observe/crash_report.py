"""This module says why a child ended, from how it ended and the last lines of its log.

It is for people. One thing is decided by it: a script that ends twice with the same `error` of its own is not started a third time.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from supervisor.host.processes.child import Status
from supervisor.host.regular_file import tail
from supervisor.observe.sanitize import plain

KEPT_LINES: Final = 20
KEPT_COLUMNS: Final = 400
TAIL: Final = 32 << 10
"""Bytes of a child's log that its crash record is made from."""
_MARGIN: Final = 4 << 10
"""Longer than any secret."""
SIGKILL, SIGTERM = 9, 15


class CrashClass(Enum):
    """What to call the end of a child."""

    CLEAN = "clean"
    MEMORY = "out of memory"
    PORT = "port"
    DEVICE = "CUDA/NCCL"
    CONFIG = "config"
    KILLED = "killed"
    SIGNAL = "crashed"
    ERROR = "error"


_SIGNS: Final = (
    (CrashClass.MEMORY, re.compile(r"out of memory|OutOfMemory|MemoryError|Cannot allocate memory|can't allocate memory|oom-kill", re.I)),
    (CrashClass.PORT, re.compile(r"address already in use|EADDRINUSE|port \d+ is (already )?(in use|taken|not available)", re.I)),
    (CrashClass.DEVICE, re.compile(r"CUDA error|cuda(Error|rt)|CUDA driver|NCCL (error|WARN)|nccl\w*Error|Xid|device-side assert", re.I)),
    (
        CrashClass.CONFIG,
        re.compile(
            r"ModuleNotFoundError|ImportError|No module named|FileNotFoundError|No such file or directory|unrecognized arguments|error: argument"
            r"|invalid choice|does not appear to have a file named|is not a valid model identifier|PermissionError|usage: ",
            re.I,
        ),
    ),
)


_OWN_ERROR: Final = re.compile(
    r"(?:(?:Type|Attribute|Name|UnboundLocal|Key|Index|Lookup|Value|Assertion|ZeroDivision|Overflow|Arithmetic|NotImplemented|Syntax|Indentation"
    r"|Tab|Import|ModuleNotFound|Recursion|Unicode\w*|Runtime)Error"
    r"|trainshed\.\w+: (?:[^:]* samples failed; sample \d+: )?(?:bad_request|out_of_order|nested_lease|unknown_role|own_gpus)\b)"
)
"""Exceptions that a script raises by itself: Python's for mistakes, torch's for shapes (RuntimeError), and what the client refuses as wrong."""
_FROM_OUTSIDE: Final = re.compile(
    r"\b(?:connect|timed? ?out|gloo|nccl|socket|peer|network|store|disk|space left|worker|unavailable|temporar)", re.I
)


@dataclass(frozen=True)
class CrashRecord:
    """The class of an exit, and the last lines of the child's log, fit for a terminal."""

    crash: CrashClass
    last_lines: tuple[str, ...]

    @property
    def said(self) -> str:
        """The last line that says something: launchers draw a rule below their reports."""
        return next((line for line in reversed(self.last_lines) if any(map(str.isalnum, line))), "")

    @property
    def error(self) -> str:
        """Return the exception that a Python script itself has raised, as its last line says it; empty when something else may be to blame.

        So for a signal, memory, a device, a port, and for whatever a network, a disk or another process may have caused.
        """
        last = self.said
        own = self.crash in (CrashClass.ERROR, CrashClass.CONFIG) and _OWN_ERROR.match(last) is not None and not _FROM_OUTSIDE.search(last)
        return last if own else ""


def exit_class(log_tail: bytes, status: Status, hide: Callable[[str], str] = str) -> CrashRecord:
    """Classify an exit. `log_tail` is the end of the child's log (a few ten KiB do); later lines count more than earlier ones.

    `hide` takes secrets out of a text. It sees each line before it is cut, so that no head of a secret remains, and again without the escape
    sequences that may have parted one.
    """
    last = _last_lines(log_tail, hide)
    if status.code == 0:
        return CrashRecord(CrashClass.CLEAN, last)
    for line in reversed(last):
        for crash, sign in _SIGNS:
            if sign.search(line):
                return CrashRecord(crash, last)
    if status.signal in (SIGKILL, SIGTERM) or status.code in (128 + SIGKILL, 128 + SIGTERM):
        return CrashRecord(CrashClass.KILLED, last)
    return CrashRecord(CrashClass.SIGNAL if status.signal is not None else CrashClass.ERROR, last)


def crash_record(log: Path, status: Status, hide: Callable[[str], str], start: int = 0) -> CrashRecord:
    """Classify the exit of a child by the end of its log; what lies before `start` bytes is of earlier lives. A log that is not there is empty."""
    found = tail(log, TAIL + _MARGIN, start)
    if len(found) > TAIL:  # what its cut has left of a secret at the beginning is not known as one
        found = hide(found.decode("utf-8", "replace"))[len(found) - TAIL :].encode()
    return exit_class(found, status, hide)


def _last_lines(log_tail: bytes, hide: Callable[[str], str]) -> tuple[str, ...]:
    """Return the last lines that are not empty, sanitized and cut, without secrets."""
    text = hide(log_tail.decode("utf-8", "replace")).replace("\r\n", "\n").replace("\r", "\n")
    lines = (hide(plain(line)).replace("\t", "    ")[:KEPT_COLUMNS].rstrip() for line in text.split("\n"))
    return tuple([line for line in lines if line.strip()][-KEPT_LINES:])

"""Why a child ended, from how it ended and what it said last. PURE: for people, never for decisions."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

KEPT_LINES: Final = 20
KEPT_COLUMNS: Final = 400
SIGKILL, SIGTERM = 9, 15
_ESCAPES: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class CrashClass(Enum):
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


@dataclass(frozen=True)
class CrashRecord:
    crash: CrashClass
    last_lines: tuple[str, ...]


def clean(text: str) -> str:
    """Without escape sequences and control characters, so that a child's words cannot steer a terminal or break a log line."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")))


def exit_class(log_tail: bytes, code: int | None, signal: int | None) -> CrashRecord:
    """What to call this end. `log_tail` is the end of the child's log (a few ten KiB do); later lines count more than earlier ones."""
    lines = [line[:KEPT_COLUMNS].rstrip() for line in clean(log_tail.decode("utf-8", "replace")).split("\n") if line.strip()]
    last = tuple(lines[-KEPT_LINES:])
    if code == 0:
        return CrashRecord(CrashClass.CLEAN, last)
    for line in reversed(last):
        for crash, sign in _SIGNS:
            if sign.search(line):
                return CrashRecord(crash, last)
    if signal in (SIGKILL, SIGTERM) or code in (128 + SIGKILL, 128 + SIGTERM):
        return CrashRecord(CrashClass.KILLED, last)
    return CrashRecord(CrashClass.SIGNAL if signal is not None else CrashClass.ERROR, last)

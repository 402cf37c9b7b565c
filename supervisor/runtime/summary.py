"""What is left to say when a run has ended: `summary.json`."""

import os
from pathlib import Path
from typing import Final

import msgspec

FILE: Final = "summary.json"


class PipelineSummary(msgspec.Struct, frozen=True, kw_only=True):
    """`samples` were delivered to the trainer; `pauses` and `resumes` are of its engines; `waited_s` the time its trainer waited for GPUs."""

    steps: int
    samples: int = 0
    first_reward: float | None = None
    last_reward: float | None = None
    weight_version: int = 0
    pauses: int = 0
    resumes: int = 0
    restarts: int = 0
    waited_s: float = 0.0


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`exit` is the exit code; `wall_s` the time from the start of the supervisor to the end."""

    run: str
    exit: int
    wall_s: float
    pipelines: dict[str, PipelineSummary]
    lost_log_lines: int = 0


def write(directory: Path, summary: Summary) -> None:
    """Replaces `summary.json` as a whole. Raises OSError."""
    new = directory / f".{FILE}.new"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    os.replace(new, directory / FILE)


def read(directory: Path) -> Summary | None:
    """The summary of a run that has ended; None when there is none or it is not one."""
    try:
        return msgspec.json.decode((directory / FILE).read_bytes(), type=Summary)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None

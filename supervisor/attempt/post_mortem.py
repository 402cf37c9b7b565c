"""This module says how an attempt stands whose supervisor does not answer: it ended in order, was killed, or is only just starting."""

import os
from datetime import datetime
from pathlib import Path

import msgspec

from supervisor.attempt import summary
from supervisor.attempt.checkpoints import resumable
from supervisor.attempt.directory import is_running
from supervisor.attempt.find import display_path
from supervisor.attempt.sweep import survivors


class Killed(msgspec.Struct, frozen=True, kw_only=True):
    """The supervisor was killed. `at` is its last sign of life, in seconds since the epoch; `left` are processes of it that still live;
    `steps` those that can be resumed from; `resume` is the command."""

    directory: str
    at: float
    left: tuple[int, ...]
    steps: dict[str, int]
    resume: str

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        pids = ", ".join(map(str, self.left))
        ended = f"processes {pids} of it still live, the next start ends them" if self.left else "its processes were ended with it"
        done = (
            ", ".join(f"{name} after {steps} steps" for name, steps in self.steps.items()) or "from the beginning, there is no checkpoint"
        )
        return (
            f"{self.directory}: the supervisor was killed or crashed at {when} (its last sign of life); {ended}. "
            f"Go on ({done}) with `{self.resume}`."
        )


class Unresponsive(msgspec.Struct, frozen=True, kw_only=True):
    """A supervisor has the attempt, and does not answer."""

    directory: str

    def __str__(self) -> str:
        return f"{self.directory}: its supervisor does not answer: it is just starting or ending. Look again."


def post_mortem(attempt: Path) -> summary.Summary | Killed | Unresponsive:
    """Say how an attempt stands that nobody answers for."""
    if is_running(attempt):
        return Unresponsive(directory=display_path(attempt))
    if (ended := summary.read(attempt)) is not None:
        return ended
    return Killed(
        directory=display_path(attempt),
        at=_last_sign_of_life(attempt),
        left=tuple(survivors(attempt / "journal.jsonl")),
        steps=resumable(attempt / "checkpoints"),
        resume=f"bin/supervise run --resume {display_path(attempt)}",
    )


def _last_sign_of_life(attempt: Path) -> float:
    found = [attempt, attempt / "supervisor.jsonl", attempt / "journal.jsonl", *attempt.glob("events/*.jsonl")]
    return max((os.stat(path).st_mtime for path in found[1:] if path.exists()), default=found[0].stat().st_mtime)

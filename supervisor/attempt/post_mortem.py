"""How an attempt stands whose supervisor does not answer: it has ended in order, it was killed, or it is only just starting."""

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from supervisor.attempt import summary
from supervisor.attempt.checkpoints import resumable
from supervisor.attempt.directory import is_running
from supervisor.attempt.find import called
from supervisor.attempt.sweep import survivors


class Killed(msgspec.Struct, frozen=True, kw_only=True):
    """There is no word of an end. `at` is the last sign of life, in seconds since the epoch; `left` are processes of it that still live;
    `steps` those that can be resumed from; `resume` is the command."""

    directory: str
    at: float
    left: tuple[int, ...]
    steps: dict[str, int]
    resume: str

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        pids = ", ".join(map(str, self.left))
        ended = f"processes {pids} of it still live, the next start ends them" if self.left else "its processes were ended with it"
        done = (
            ", ".join(f"{name} after {steps} steps" for name, steps in self.steps.items()) or "from the beginning, there is no checkpoint"
        )
        return (
            f"{self.directory}: the supervisor was killed or crashed at {when} (its last sign of life); {ended}. "
            f"Go on ({done}) with `{self.resume}`."
        )


class Starting(msgspec.Struct, frozen=True, kw_only=True):
    """A supervisor has the attempt, and does not answer yet."""

    directory: str

    def __str__(self) -> str:
        return f"{self.directory}: its supervisor does not answer: it is just starting or ending. Look again."


def ending(attempt: Path) -> summary.Summary | Killed | Starting:
    """What can be said of an attempt that nobody answers for."""
    if is_running(attempt):
        return Starting(directory=called(attempt))
    if (ended := summary.read(attempt)) is not None:
        return ended
    return Killed(
        directory=called(attempt),
        at=_last_sign(attempt),
        left=tuple(survivors(attempt / "journal.jsonl")),
        steps=resumable(attempt / "checkpoints"),
        resume=f"bin/supervise run --resume {called(attempt)}",
    )


def _last_sign(attempt: Path) -> float:
    found = [attempt, attempt / "supervisor.jsonl", attempt / "journal.jsonl", *attempt.glob("events/*.jsonl")]
    return max((os.stat(path).st_mtime for path in found[1:] if path.exists()), default=found[0].stat().st_mtime)

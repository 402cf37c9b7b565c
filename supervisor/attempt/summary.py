"""The summary says what a run has come to: `figures.json` while it goes on, `summary.json` when it has ended. Both count over every start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from supervisor.host.atomic_file import write_atomically
from supervisor.host.regular_file import read_regular

FILE: Final = "summary.json"
FIGURES: Final = "figures.json"

Outcome = Literal["done", "failed", "stopped", "unknown"]
"""Its trainer ended by itself with exit code 0, whatever steps it did; it failed for good; the operator ended it before; not known (yet)."""


class PipelineSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one pipeline came to. `steps` of `of` are done: up to the last checkpoint, or what its trainer last reported when it ended by itself.

    `samples` were delivered to the trainer, also for steps that were done again after a restart; `pauses` and `resumes` are of its engines;
    `waited_s` the time its trainer waited for GPUs. `why` it failed, and the `log` (below the attempt) that tells more.
    """

    steps: int
    of: int = 0
    outcome: Outcome = "unknown"
    why: str = ""
    log: str = ""
    samples: int = 0
    first_reward: float | None = None
    last_reward: float | None = None
    weight_version: int = 0
    pauses: int = 0
    resumes: int = 0
    restarts: int = 0
    waited_s: float = 0.0

    @property
    def complete(self) -> bool:
        return self.outcome == "done" and self.steps >= self.of


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Each pipeline as of its last checkpoint, or of the end. `starts` counts those of the attempt, `wall_s` is the time of all of them."""

    starts: int = 1
    wall_s: float = 0.0
    pipelines: dict[str, PipelineSummary] = {}


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. `exit` is the exit code; `wall_s` the time from the supervisor's start to its end, summed over the attempt's `starts`.

    `stopped_by` says in words what ended the run before its end: a signal, a closed terminal, a user's `stop`.
    `notes` are what else somebody must know, a sentence each: a full disk, for example.
    """

    run: str
    exit: int
    wall_s: float
    starts: int = 1
    pipelines: dict[str, PipelineSummary]
    lost_log_lines: int = 0
    stopped_by: str = ""
    notes: tuple[str, ...] = ()


def together(earlier: PipelineSummary, now: PipelineSummary) -> PipelineSummary:
    """Add what was counted before a resume to what was counted since. `now` says how it stands."""
    return msgspec.structs.replace(
        now,
        samples=earlier.samples + now.samples,
        first_reward=now.first_reward if earlier.first_reward is None else earlier.first_reward,
        last_reward=earlier.last_reward if now.last_reward is None else now.last_reward,
        weight_version=max(earlier.weight_version, now.weight_version),
        pauses=earlier.pauses + now.pauses,
        resumes=earlier.resumes + now.resumes,
        restarts=earlier.restarts + now.restarts,
        waited_s=round(earlier.waited_s + now.waited_s, 3),
    )


def all_together(earlier: Mapping[str, PipelineSummary], now: Mapping[str, PipelineSummary]) -> dict[str, PipelineSummary]:
    """Add up by pipeline; those that were not started again stay as they were."""
    names = dict.fromkeys([*earlier, *now])
    return {
        name: now[name] if name not in earlier else earlier[name] if name not in now else together(earlier[name], now[name])
        for name in names
    }


_Kept = TypeVar("_Kept", Summary, Figures)


def write(directory: Path, kept: Summary | Figures) -> None:
    """Replace `summary.json` or `figures.json` in one step. Raises OSError."""
    name = FILE if isinstance(kept, Summary) else FIGURES
    write_atomically(directory / name, msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")


def read(directory: Path) -> Summary | None:
    """Read the summary of a run that has ended; None when there is none, or it cannot be read."""
    return _read(directory / FILE, Summary)


def figures(directory: Path) -> Figures | None:
    """Read what an attempt had come to when it was last written down."""
    return _read(directory / FIGURES, Figures)


def forget(directory: Path) -> None:
    """Remove the summary, because a run that goes on has not ended. Raises OSError."""
    (directory / FILE).unlink(missing_ok=True)


def _read(path: Path, kind: type[_Kept]) -> _Kept | None:
    try:
        return msgspec.json.decode(read_regular(path), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None

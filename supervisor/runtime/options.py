"""How a run was asked for on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from supervisor.runtime.logs import Console
from supervisor.runtime.snapshot import Snapshot

ShowProgress = Callable[[Snapshot, float], Sequence[str]]
"""(state, now in monotonic seconds) -> console lines that are worth printing now, often none. Given by the command line, as views stand above the runtime."""


@dataclass(frozen=True, slots=True)
class Options:
    """`resume`: every pipeline goes on from its newest checkpoint in this directory. `source`: the configuration file's bytes, for the record."""

    console: Console = "readable"
    resume: bool = False
    source: bytes = b""
    progress: ShowProgress | None = None

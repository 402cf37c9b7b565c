"""How a run was asked for on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from supervisor.observe.logs import Console
from supervisor.observe.status import Snapshot
from supervisor.scheduler import Scheduler

ShowProgress = Callable[[Snapshot, float], Sequence[str]]
"""(state, now in monotonic seconds) -> console lines that are worth printing now, often none. Given by the command line, as views stand above the runtime."""


class Exposition(Protocol):
    """What is counted for `/metrics`; a view, too."""

    def tell(self, scheduler: Scheduler) -> None:
        """After every event."""

    def page(self, scheduler: Scheduler, snapshot: Snapshot, longest_lag: float) -> bytes:
        """When somebody asks. `longest_lag` in seconds: by how much our own loop was late, at most."""


@dataclass(frozen=True, slots=True)
class Options:
    """`source`: the configuration file's bytes, for the record; none leaves the record of the attempt as it is.

    `detach`: somebody waits until everything has started, and lets go of the terminal then. `begun` is called once, when nothing more can
    refuse the run and before anything of it is started. Whether it goes on from checkpoints, the directory says.
    """

    console: Console = "readable"
    source: bytes = b""
    progress: ShowProgress | None = None
    metrics: Exposition | None = None
    detach: bool = False
    begun: Callable[[], None] = lambda: None

"""What every rule works on: the records, the leases, what is under way, and the time of this event."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from supervisor.scheduler.groups.faults import KEPT, Fault
from trainers.protocol.ids import GpuId, GroupId, PipelineId

from .actions import Action
from .inflight import InFlight
from .leases import LeaseBook
from .records import Fleet
from .spec import BoxSpec

About = GroupId | PipelineId | GpuId


@dataclass(slots=True)
class Desk:
    """`now` is the time of the event being handled; `alarm` the earliest moment at which a rule wants to look again."""

    box: BoxSpec
    fleet: Fleet
    leases: LeaseBook
    inflight: InFlight
    now: float
    alarm: float | None = None
    stopping: int = 0  # level of the operator's stop: 0 none, 1 graceful, 2 without draining, 3 kill
    stop_at: float = 0.0  # when a graceful stop loses patience
    faults: deque[Fault] = field(default_factory=lambda: deque(maxlen=KEPT))  # of engine groups, ended
    turns: list[tuple[str, Fault]] = field(default_factory=list)  # ("failed", or how it ended; of which failure) of this event, in order
    notes: list[tuple[str, About, str]] = field(default_factory=list)  # (level, about whom, what) of this event, for the log

    def do(self, make: Callable[[int], Action], within: float) -> int:
        """Emit an action that must be answered within so many seconds; returns its id."""
        return self.inflight.start(make, self.now + within)

    def look_again(self, at: float) -> None:
        """A rule waits for a moment: the scheduler's deadline will not be later."""
        if at > self.now and (self.alarm is None or at < self.alarm):
            self.alarm = at

    def due(self, at: float) -> bool:
        """Whether that moment has come; if not, it will be looked at again then."""
        self.look_again(at)
        return at <= self.now

    def note(self, level: str, about: About, what: str) -> None:
        """Something an operator should read. `level` is info, warning or error."""
        self.notes.append((level, about, what))

"""Actions in flight are answered once, or their deadline comes. An answer that comes later is dropped here and nowhere else."""

from collections.abc import Callable
from dataclasses import dataclass

from .actions import Action


@dataclass(frozen=True, slots=True)
class Awaited:
    action: Action
    deadline: float


class InFlight:
    def __init__(self) -> None:
        self._next = 1
        self._awaited: dict[int, Awaited] = {}
        self._out: list[Action] = []
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._awaited)

    @property
    def awaited(self) -> list[Awaited]:
        return list(self._awaited.values())

    def start(self, make: Callable[[int], Action], deadline: float) -> int:
        """Emit the action `make(id)`; returns its id."""
        action = make(self._next)
        self._next += 1
        self._awaited[action.id] = Awaited(action, deadline)
        self._out.append(action)
        return action.id

    def answered(self, id: int) -> Action | None:
        """Return the action that this answer belongs to, or None when nobody waits for it any more."""
        awaited = self._awaited.pop(id, None)
        if awaited is None:
            self.dropped += 1
            return None
        return awaited.action

    def awaits(self, id: int | None) -> bool:
        return id in self._awaited

    def forget(self, id: int | None) -> None:
        """Wait for this answer no longer."""
        if id is not None:
            self._awaited.pop(id, None)

    def overdue(self, now: float) -> list[Action]:
        """Take out and return the actions whose deadline has come."""
        late = [awaited.action for awaited in self._awaited.values() if awaited.deadline <= now]
        for action in late:
            del self._awaited[action.id]
        return late

    @property
    def deadline(self) -> float | None:
        return min((awaited.deadline for awaited in self._awaited.values()), default=None)

    def take(self) -> list[Action]:
        """Return the actions that were emitted since the last call."""
        out, self._out = self._out, []
        return out

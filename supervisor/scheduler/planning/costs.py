"""Costs say what a move costs and what it brings: seconds measured on the engines and samples themselves, the newest counting most."""

from dataclasses import dataclass

from engines.lifecycle.state import Transition

NEWEST = 0.3
"""Weight of the newest measurement."""
ENOUGH = 8
"""Samples finished before their mean says anything."""
REMEMBERED = 256
"""Samples that the mean is about; older ones count half as often with every so many."""


def blend(old: float, new: float) -> float:
    """Return an exponentially weighted mean; 0 means that nothing was measured yet."""
    return new if old == 0.0 else old + NEWEST * (new - old)


@dataclass(slots=True)
class MoveCost:
    """What it costs to move one engine, in seconds; 0 until measured.

    `down` is the time from the decision that it leaves to GPUs seen empty (drain, pause, measurement), `up` from the lease to weights loaded
    (wake, load).
    """

    down: float = 0.0
    up: float = 0.0
    began: float | None = None

    def observe(self, transition: Transition, now: float) -> None:
        """Take note of a transition of the engine. A move that is broken off teaches nothing."""
        match transition:
            case Transition.DRAIN | Transition.WAKE:
                self.began = now
                return
            case Transition.DRAINED | Transition.STALE:
                return  # the move goes on
            case Transition.EMPTY if self.began is not None:
                self.down = blend(self.down, now - self.began)
            case Transition.CURRENT if self.began is not None:
                self.up = blend(self.up, now - self.began)
            case _:
                pass
        self.began = None


@dataclass(slots=True)
class Pace:
    """The mean seconds that a sample of one pipeline runs, from what was in flight and what has ended (Little's law)."""

    busy: float = 0.0  # sample-seconds in flight
    ended: float = 0.0  # samples
    rollout: int | None = None
    running: int = 0
    done: int = 0
    at: float = 0.0

    def absorb(self, rollout: int, running: int, done: int, now: float) -> None:
        """Take note that so many of the rollout run now and so many are done. Between two rollouts nothing is counted."""
        if rollout == self.rollout:
            self.busy += self.running * (now - self.at)
            self.ended += max(0, done - self.done)
        self.rollout, self.running, self.done, self.at = rollout, running, done, now
        if self.ended > REMEMBERED:
            self.busy, self.ended = self.busy / 2, self.ended / 2

    @property
    def seconds(self) -> float:
        """Return the mean; 0 until enough have ended."""
        return self.busy / self.ended if self.ended >= ENOUGH else 0.0

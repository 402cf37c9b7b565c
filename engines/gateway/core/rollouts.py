"""This module keeps the rollouts of one pipeline: which are open, whose answers are kept, and which one a request belongs to."""

from collections.abc import Callable, Iterator
from typing import Final

from engines.gateway.core.records import Phase, Rollout, Work
from engines.gateway.core.samples import Failure
from trainers.protocol.gateway_messages import RolloutProgress

QUIET: Final = 5.0
"""An implicit rollout closes after so many seconds with nothing waiting or running."""
GRACE: Final = 8.0
"""For so many seconds a request may name a rollout that is not open yet (the gateway has just restarted, or the order is on its way)."""
MAX_EXPECTED: Final = 64
"""So many rollouts that are not open may be named at a time: every event looks at all of them."""
KEPT_OPENS: Final = 2
"""Answers of a closed rollout are kept until this many others have opened after it."""


class Rollouts:
    """All rollouts that are known, by number."""

    def __init__(self) -> None:
        self._rollouts: dict[int, Rollout] = {}
        self._serial = 0
        self._implicit = 0
        self._last_closed = -1

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self._rollouts.values())

    def get(self, number: int) -> Rollout | None:
        """Return the rollout of this number, in whatever phase it is."""
        return self._rollouts.get(number)

    def open(self, number: int, target: int, now: float) -> Rollout:
        """Open it, or raise the target of an open one. A closed one of that number begins anew."""
        rollout = self._rollouts.get(number)
        if rollout is None or rollout.phase is Phase.CLOSED:
            rollout = self._new(number, Phase.OPEN, now)
            self._expire_answers(rollout)
        elif rollout.phase is Phase.EXPECTED:
            rollout.phase, rollout.since = Phase.OPEN, now
            self._expire_answers(rollout)
        rollout.target = target
        return rollout

    def open_implicit(self, now: float) -> Rollout:
        """Open a rollout for a request that came while none was open; its number is negative."""
        self._implicit -= 1
        rollout = self._new(self._implicit, Phase.OPEN, now)
        self._expire_answers(rollout)
        return rollout

    def expect(self, number: int, now: float) -> Rollout | Failure:
        """Return a place to wait for a rollout that may be about to open, or why there is none."""
        if number <= self._last_closed:
            return Failure(404, "rollout_closed", f"rollout {number} is closed")
        if sum(rollout.phase is Phase.EXPECTED for rollout in self) >= MAX_EXPECTED:
            return Failure(503, "full", f"{MAX_EXPECTED} rollouts that are not open are waited for already; ask again when this one is")
        return self._new(number, Phase.EXPECTED, now)

    def place(self, number: int | None, now: float) -> Rollout | Failure:
        """Return where a request belongs that names rollout `number`, or none; or why it cannot be taken."""
        if number is not None:
            return self.get(number) or self.expect(number, now)
        return self.oldest_open() or self.open_implicit(now)

    def oldest_open(self) -> Rollout | None:
        """Return where a request without a rollout belongs: a trainer's own rollout before an implicit one."""
        candidates = (rollout for rollout in self if rollout.phase is Phase.OPEN)
        return min(candidates, key=lambda rollout: (rollout.implicit, rollout.serial), default=None)

    def close(self, rollout: Rollout) -> None:
        """End it; its answers stay."""
        rollout.phase = Phase.CLOSED
        self._last_closed = max(self._last_closed, rollout.number)

    def drop(self, rollout: Rollout) -> None:
        """Remove it and its answers."""
        self._rollouts.pop(rollout.number, None)

    def forget(self) -> list[Rollout]:
        """Remove every rollout, so that numbers may come again. Returns them."""
        forgotten = list(self)
        self._rollouts.clear()
        self._last_closed = -1
        return forgotten

    def overdue(self, now: float) -> list[Rollout]:
        """Return implicit rollouts that have been quiet and expected ones that did not open."""
        return [rollout for rollout in self if (due := self._due(rollout)) is not None and due <= now]

    def deadline(self) -> float | None:
        """Return when the next one is overdue."""
        return min((due for rollout in self if (due := self._due(rollout)) is not None), default=None)

    def progress(self, work: Callable[[Rollout], Work]) -> tuple[RolloutProgress, ...]:
        """Return what the supervisor is shown of the open ones; `work` says what is expected of one."""
        return tuple(rollout.progress(work(rollout)) for rollout in self if rollout.phase is Phase.OPEN)

    @staticmethod
    def _due(rollout: Rollout) -> float | None:
        if rollout.phase is Phase.EXPECTED:
            return rollout.since + GRACE
        if rollout.phase is Phase.OPEN and rollout.implicit and rollout.idle:
            return rollout.since + QUIET
        return None

    def _new(self, number: int, phase: Phase, now: float) -> Rollout:
        self._serial += 1
        rollout = self._rollouts[number] = Rollout(number=number, serial=self._serial, phase=phase, since=now)
        return rollout

    def _expire_answers(self, opened: Rollout) -> None:
        """Count the opening for those before it. An implicit rollout does not push out a trainer's answers."""
        for rollout in list(self):
            if rollout is opened or (opened.implicit and not rollout.implicit):
                continue
            rollout.opened_after += 1
            if rollout.phase is Phase.CLOSED and rollout.opened_after >= KEPT_OPENS:
                self.drop(rollout)

"""The samples that wait, and which of them goes where next. PURE."""

from collections import deque
from typing import Final

from engines.gateway.core.engines import Engine, Fleet
from engines.gateway.core.ordering.affinity import Affinity
from engines.gateway.core.ordering.forecast import Outlook
from engines.gateway.core.ordering.order import Queue
from engines.gateway.core.records import Rollout, Sample
from engines.gateway.core.samples import Failure, State

MAX_WAITING: Final = 100_000
HELD_PER_WAITING: Final = 10
"""Samples that a rollout may have in all, for each that may wait: answers are kept while it is open."""


class Waiting:
    """The longest expected first, each to its session's engine, else to the one that affinity prefers or has least to do.

    `count` is how many samples wait in all (also those that nobody may dispatch yet): the caller keeps it.
    """

    def __init__(self, outlook: Outlook, affinity: Affinity, most: int = MAX_WAITING) -> None:
        self.count = 0
        self._most = most
        self._outlook, self._affinity = outlook, affinity
        self._epoch = 0
        self._queue = Queue(outlook.left)
        self._parked: dict[Engine, deque[Sample]] = {}  # for a session's engine that has no room now

    def __bool__(self) -> bool:
        return bool(self._queue) or bool(self._parked)

    def full(self, rollout: Rollout) -> Failure | None:
        """Why there is no room for another sample of this rollout."""
        if self.count < self._most and len(rollout.samples) < HELD_PER_WAITING * self._most:
            return None
        return Failure(503, "full", f"{self.count} samples wait already; ask again when some are done")

    def push(self, sample: Sample) -> None:
        self._queue.push(sample, self.count)

    def moved(self, sample: Sample) -> None:
        """Something else is expected of it now, wherever it is."""
        if sample.place is not None and sample.state is State.WAITING:
            self.push(sample)

    def next(self, fleet: Fleet, now: float) -> tuple[Sample, Engine] | None:
        """The next sample that can start, and its engine; None: nothing can now."""
        if self._epoch != self._outlook.lengths.epoch:
            self._epoch = self._outlook.lengths.epoch
            self._queue.resort()
        pair = self._unpark(fleet, now)
        while pair is None and self._queue and (least := fleet.pick(now)) is not None:
            sample = self._queue.pop()
            home = self._affinity.home(sample, fleet)
            if home is None:
                pair = sample, self._affinity.preferred(sample, fleet, least, now)
            elif fleet.eligible(home, now):
                pair = sample, home
            else:
                self._parked.setdefault(home, deque()).append(sample)
        if pair is not None:
            self._affinity.sent(*pair)
        return pair

    def _unpark(self, fleet: Fleet, now: float) -> tuple[Sample, Engine] | None:
        """One that waits for its session's engine, if that has room again; all of them where the engine is not routable any more."""
        for engine in tuple(self._parked):
            parked = self._parked[engine]
            while parked and parked[0].state is not State.WAITING:
                parked.popleft()
            if not fleet.routable(engine):
                for sample in parked:
                    if sample.state is State.WAITING:
                        self.push(sample)
                parked.clear()
            found = parked.popleft() if parked and fleet.eligible(engine, now) else None
            if not parked:
                del self._parked[engine]
            if found is not None:
                return found, engine
        return None

"""This module holds the samples that wait, and picks which of them goes to which engine next."""

from collections import deque
from typing import Final

from engines.gateway.core.engines import Engine, Engines
from engines.gateway.core.ordering.affinity import Affinity
from engines.gateway.core.ordering.forecast import Forecast
from engines.gateway.core.ordering.order import Queue
from engines.gateway.core.records import Rollout, Sample
from engines.gateway.core.samples import Failure, State

MAX_WAITING: Final = 100_000
HELD_PER_WAITING: Final = 10
"""So many samples may a rollout have in all, for each that may wait: answers are kept while it is open."""


class Waiting:
    """The waiting samples: the longest expected first, each to its session's engine, else to the one that affinity prefers or that is least busy.

    `held_up`: something might have started but for a sample that has not made a token yet.
    `count` is how many samples wait in all (also those that nobody may dispatch yet): the caller keeps it.
    """

    def __init__(self, forecast: Forecast, affinity: Affinity, most: int = MAX_WAITING) -> None:
        self.count = 0
        self._most = most
        self._forecast, self._affinity = forecast, affinity
        self._epoch = 0
        self._queue = Queue(forecast.estimate)
        self._suspects: deque[Sample] = deque()  # each goes alone
        self.held_up = False
        self._parked: dict[Engine, deque[Sample]] = {}  # for a session's engine that has no room now

    def __bool__(self) -> bool:
        return bool(self._queue) or bool(self._parked) or bool(self._suspects)

    def full(self, rollout: Rollout) -> Failure | None:
        """Return why there is no room for another sample of this rollout; None if there is."""
        if self.count < self._most and len(rollout.samples) < HELD_PER_WAITING * self._most:
            return None
        return Failure(503, "full", f"{self.count} samples wait already; ask again when some are done")

    def push(self, sample: Sample) -> None:
        """Put it into the queue, or where it belongs now."""
        if sample.suspect:
            self._suspects.append(sample)
        else:
            self._queue.push(sample, self.count)

    def moved(self, sample: Sample) -> None:
        """Put it where it belongs if it stands in the queue: something else is expected of it now."""
        if sample.place is not None and sample.state is State.WAITING:
            self.push(sample)

    def next(self, engines: Engines, now: float) -> tuple[Sample, Engine] | None:
        """Take out the next sample that can start; returns it and its engine, or None while none can."""
        if self._epoch != self._forecast.lengths.epoch:
            self._epoch = self._forecast.lengths.epoch
            self._queue.resort()
        pair, wait = self._trial(engines, now)
        self.held_up = wait or engines.on_trial
        if pair is None and not wait:
            pair = self._unpark(engines, now)
        while pair is None and not wait and self._queue and (least := engines.pick(now)) is not None:
            sample = self._queue.pop()
            home = self._affinity.home(sample, engines)
            if home is None:
                pair = sample, self._affinity.preferred(sample, engines, least, now)
            elif engines.eligible(home, now):
                pair = sample, home
            else:
                self._parked.setdefault(home, deque()).append(sample)
        if pair is not None:
            self._affinity.sent(*pair)
        return pair

    def _trial(self, engines: Engines, now: float) -> tuple[tuple[Sample, Engine] | None, bool]:
        """Return the next suspect and an engine for its trial, and whether all else must wait because there is none yet.

        An engine is on trial until the suspect makes a token: nothing else is sent there. So if it dies again, one sample is to blame.
        """
        while self._suspects and self._suspects[0].state is not State.WAITING:
            self._suspects.popleft()
        if not self._suspects:
            return None, False
        engine = engines.for_trial(now)
        return (None, True) if engine is None else ((self._suspects.popleft(), engine), False)

    def _unpark(self, engines: Engines, now: float) -> tuple[Sample, Engine] | None:
        """Return a sample that waits for its session's engine if that has room again; where the engine is routable no more, queue them all."""
        for engine in tuple(self._parked):
            parked = self._parked[engine]
            while parked and parked[0].state is not State.WAITING:
                parked.popleft()
            if not engines.routable(engine):
                for sample in parked:
                    if sample.state is State.WAITING:
                        self.push(sample)
                parked.clear()
            found = parked.popleft() if parked and engines.eligible(engine, now) else None
            if not parked:
                del self._parked[engine]
            if found is not None:
                return found, engine
        return None

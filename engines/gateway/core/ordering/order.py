"""This module orders the waiting samples: older rollouts first, and inside one the longest expected first."""

import heapq
from collections.abc import Callable

from engines.gateway.core.records import Estimate, Place, Rollout, Sample
from engines.gateway.core.samples import State

_SLACK = 1000
_NO_INDEX = 2**53


def place_of(rollout: Rollout, sample: Sample, expected: float) -> Place:
    """Return the sample's sort key: older rollouts first (implicit ones last); inside one, the longest expected first; of equals, by index."""
    index = sample.key.index
    return Place(rollout.implicit, rollout.serial, -expected, _NO_INDEX if index is None else index)


class Queue:
    """A heap of samples in state WAITING. Those that leave that state otherwise than by `pop` are passed over.

    `estimate(sample)` is asked when a sample is pushed; push it again when the answer may have changed.
    """

    def __init__(self, estimate: Callable[[Sample], Estimate]) -> None:
        self._estimate = estimate
        self._heap: list[_Entry] = []
        self._pushes = 0

    def __bool__(self) -> bool:
        """Whether `pop` would find one."""
        while self._heap and not _is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return bool(self._heap)

    def push(self, sample: Sample, waiting: int) -> None:
        """Put it where it belongs now. `waiting`: how many wait in all; what is stale beyond that is swept out: the queue must not grow."""
        if len(self._heap) > 2 * waiting + _SLACK:
            self._heap = [entry for entry in self._heap if _is_current(entry)]
            heapq.heapify(self._heap)
        before, place = sample.place, self._set_place(sample)
        if place != before:
            heapq.heappush(self._heap, self._entry(place, sample))

    def pop(self) -> Sample:
        """Take out the next one. Raises IndexError where `bool(queue)` is False."""
        if not self:
            raise IndexError("nothing waits")
        sample = heapq.heappop(self._heap)[-1]
        sample.place = None
        return sample

    def resort(self) -> None:
        """Order all of them anew, because what is expected has changed for many."""
        current = dict.fromkeys(entry[-1] for entry in self._heap if _is_current(entry))
        self._heap = [self._entry(self._set_place(sample), sample) for sample in current]
        heapq.heapify(self._heap)

    def _set_place(self, sample: Sample) -> Place:
        sample.estimate = self._estimate(sample)
        sample.place = place_of(sample.rollout, sample, sample.estimate.tokens)
        return sample.place

    def _entry(self, place: Place, sample: Sample) -> "_Entry":
        self._pushes += 1
        return place, sample.serial, self._pushes, sample


_Entry = tuple[Place, int, int, Sample]


def _is_current(entry: _Entry) -> bool:
    """Whether the entry is where its sample stands today."""
    place, sample = entry[0], entry[-1]
    return sample.state is State.WAITING and place == sample.place

"""The order in which waiting samples are dispatched. PURE."""

import heapq
from collections.abc import Callable

from engines.gateway.core.records import Place, Rollout, Sample
from engines.gateway.core.samples import State

_SLACK = 1000


def queue_order(rollout: Rollout, sample: Sample, expected: float) -> Place:
    """Older rollouts first (implicit ones last); inside one, the longest expected first; of equals, by index."""
    index = sample.key.index
    return rollout.implicit, rollout.serial, -expected, 2**53 if index is None else index


class Queue:
    """Samples in state WAITING. Those that leave that state otherwise than by `pop` are passed over.

    `expected(sample)` is asked when a sample is pushed; push it again when the answer may have changed.
    """

    def __init__(self, expected: Callable[[Sample], float]) -> None:
        self._expected = expected
        self._heap: list[_Entry] = []
        self._pushes = 0

    def __bool__(self) -> bool:
        """Whether `pop` would find one."""
        while self._heap and not _stands(self._heap[0]):
            heapq.heappop(self._heap)
        return bool(self._heap)

    def push(self, sample: Sample, waiting: int) -> None:
        """Put it where it belongs now. `waiting`: how many wait in all; what is stale beyond that is swept out: the queue must not grow."""
        if len(self._heap) > 2 * waiting + _SLACK:
            self._heap = [entry for entry in self._heap if _stands(entry)]
            heapq.heapify(self._heap)
        place = queue_order(sample.rollout, sample, self._expected(sample))
        if place != sample.place:
            sample.place = place
            heapq.heappush(self._heap, self._entry(place, sample))

    def pop(self) -> Sample:
        """The next one. Raises IndexError where `bool(queue)` is False."""
        if not self:
            raise IndexError("nothing waits")
        sample = heapq.heappop(self._heap)[-1]
        sample.place = None
        return sample

    def resort(self) -> None:
        """What is expected has changed for many."""
        standing = dict.fromkeys(entry[-1] for entry in self._heap if _stands(entry))
        self._heap = []
        for sample in standing:
            sample.place = queue_order(sample.rollout, sample, self._expected(sample))
            self._heap.append(self._entry(sample.place, sample))
        heapq.heapify(self._heap)

    def _entry(self, place: Place, sample: Sample) -> "_Entry":
        self._pushes += 1
        return place, sample.serial, self._pushes, sample


_Entry = tuple[Place, int, int, Sample]


def _stands(entry: _Entry) -> bool:
    """Whether it is where its sample stands today."""
    place, sample = entry[0], entry[-1]
    return sample.state is State.WAITING and place == sample.place

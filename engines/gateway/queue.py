"""The order in which waiting samples are dispatched. PURE."""

import heapq

from engines.gateway.records import Rollout, Sample
from engines.gateway.samples import State

_SLACK = 1000

Place = tuple[bool, int, int, int]


def queue_order(rollout: Rollout, sample: Sample) -> Place:
    """Older rollouts first (implicit ones last); inside one, the longest expected first; of equals, by index."""
    index = sample.key.index
    return rollout.implicit, rollout.serial, -(sample.request.expected_tokens or 0), 2**53 if index is None else index


class Queue:
    """Samples in state WAITING. Those that leave that state otherwise than by `pop` are passed over."""

    def __init__(self) -> None:
        self._heap: list[tuple[Place, int, Sample]] = []

    def __bool__(self) -> bool:
        """Whether `pop` would find one."""
        while self._heap and self._heap[0][-1].state is not State.WAITING:
            heapq.heappop(self._heap)
        return bool(self._heap)

    def push(self, sample: Sample, waiting: int) -> None:
        """`waiting`: how many wait in all; what is stale beyond that is swept out: who comes and goes must not grow the queue."""
        if len(self._heap) > 2 * waiting + _SLACK:
            self._heap = [entry for entry in self._heap if entry[-1].state is State.WAITING]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (queue_order(sample.rollout, sample), sample.serial, sample))

    def pop(self) -> Sample:
        """The next one. Raises IndexError where `bool(queue)` is False."""
        if not self:
            raise IndexError("nothing waits")
        return heapq.heappop(self._heap)[-1]

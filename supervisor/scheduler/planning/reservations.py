"""Reservations keep GPUs for training and the other high priorities: all or nothing, oldest first, never overtaken for ever."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from supervisor.scheduler.spec import Priority
from trainers.protocol.ids import GpuId, PipelineId


@dataclass(frozen=True, slots=True)
class Request:
    """A trainer waits for all of `gpus` at once. `keeps` are GPUs it already holds and keeps in an exchange."""

    pipeline: PipelineId
    call: int
    roles: tuple[str, ...]
    gpus: tuple[GpuId, ...]
    priority: Priority
    since: float
    keeps: frozenset[GpuId] = frozenset()

    def rank(self, now: float, ageing: float) -> tuple[float, float, PipelineId]:
        """Return the order of service. Every `ageing` seconds of waiting lift a request by one priority, so nothing overtakes it for ever."""
        return (max(0.0, self.priority - (now - self.since) // ageing), self.since, self.pipeline)


@dataclass(frozen=True, slots=True)
class Reservations:
    """`reserved`: requests whose GPUs no trainer holds and no older request claims: engines must leave those GPUs. `blocked`: all those GPUs."""

    reserved: tuple[Request, ...]
    blocked: frozenset[GpuId]


def reserve(
    requests: Iterable[Request], held_by_trainers: frozenset[GpuId], fenced: Callable[[GpuId], bool], now: float, ageing: float
) -> Reservations:
    """Return the requests that come next, and the GPUs that are kept for them.

    A request that cannot be met yet because another trainer has, or an older request claims, one of its GPUs pauses nobody in
    vain: engines may go on using the rest, but no younger request can take them. One that needs a fenced GPU reserves nothing.
    """
    reserved: list[Request] = []
    blocked: set[GpuId] = set()
    claimed: set[GpuId] = set()
    for request in sorted(requests, key=lambda r: r.rank(now, ageing)):
        needed = set(request.gpus) - request.keeps
        if any(fenced(gpu) for gpu in needed):
            continue
        if needed.isdisjoint(held_by_trainers) and needed.isdisjoint(claimed):
            reserved.append(request)
            blocked |= needed
        claimed |= needed
    return Reservations(tuple(reserved), frozenset(blocked))

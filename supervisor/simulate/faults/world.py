"""The world is what lies outside the scheduler: virtual time, seeded chance, the rates of the faults, physical memory, and who lives.

Physical memory is modelled apart from the leases, so that a checker can tell one from the other: a GPU on which two groups hold memory
at once is a violation, whatever the lease book says. Who lives here is put in by `simulation`, above this module.
"""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from supervisor.scheduler import Scheduler
from supervisor.scheduler import events as ev
from supervisor.scheduler.spec import BoxSpec
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId, Version


class Violation(AssertionError):
    """A promise was broken in the simulated world."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults are chances per action (0..1): its answer never comes, comes twice, comes very late, or the group dies instead of answering.

    `stuck`: what is to be ended stays, with its memory; `keeps`: a paused engine keeps its memory, or a dead one leaves some behind;
    `lies`: other weights are loaded than were asked for. `alone` and `operator` are the mean seconds from one thing that happens by
    itself, or that an operator asks, to the next (0: none). `stop` is the chance that the run, or a pipeline of it, is stopped before
    its end; `midway` that a rollout sees new weights before its end.
    """

    never: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    dies: float = 0.0
    fails: float = 0.0
    stuck: float = 0.0
    keeps: float = 0.0
    lies: float = 0.0
    alone: float = 0.0
    operator: float = 0.0
    stop: float = 0.0
    midway: float = 0.0
    until: float = 200.0  # seconds of virtual time after which nothing fails any more


class World(ABC):
    """A box with nobody in it, and a scheduler. What happens next is in a heap of moments; equal moments keep their order."""

    def __init__(self, box: BoxSpec, seed: int, faults: Faults) -> None:
        self.box = box
        self.random = Random(seed)
        self.faults = faults
        self.now = 0.0
        self.scheduler = Scheduler(box, 0.0)
        self.memory: dict[GpuId, set[GroupId | str]] = {gpu: set() for gpu in box.gpus}
        self.alive: dict[GroupId, Incarnation] = {}
        self.versions: dict[EngineId, Version] = {}
        self.stopped: set[PipelineId] = set()
        self.undead: dict[tuple[GroupId, Incarnation], float] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    @abstractmethod
    def feed(self, event: ev.Event) -> None:
        """The event happens now: the scheduler decides, and its actions are performed."""

    @abstractmethod
    def die(self, group: GroupId, code: int) -> None:
        """A member of the group ends by itself, and takes the others with it."""

    def after(self, delay: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, what))

    @property
    def next_at(self) -> float | None:
        """Return the nearest moment at which something happens by itself; None: nothing will."""
        return self._heap[0][0] if self._heap else None

    def step(self) -> None:
        """Let the nearest thing happen."""
        self.now, _, what = heapq.heappop(self._heap)
        what()

    @property
    def faulty(self) -> bool:
        return self.now < self.faults.until

    def strikes(self, chance: float) -> bool:
        return chance > 0.0 and self.faulty and self.random.random() < chance

    def answer(self, delay: float, make: Callable[[], ev.Event | None]) -> None:
        def happen() -> None:
            event = make()
            if event is None:
                return
            self.feed(event)
            if self.strikes(self.faults.twice):
                self.after(self.random.uniform(0.1, 100.0), lambda: self.feed(event))

        self.after(delay, happen)

    def take_memory(self, engine: EngineId, incarnation: Incarnation) -> None:
        if self.alive.get(engine) == incarnation:
            for gpu in self.scheduler.engine(engine).gpus:
                self.memory[gpu].add(engine)

    def give_back_memory(self, engine: EngineId) -> None:
        for gpu in self.scheduler.engine(engine).gpus:
            self.memory[gpu].discard(engine)

    def vanish(self, group: GroupId, until: float = 0.0) -> None:
        """Take away the group's processes; until that time something of their memory stays."""
        self.alive.pop(group, None)
        ghost = f"ghost of {group}"
        for holders in self.memory.values():
            if group in holders:
                holders.discard(group)
                if until > self.now:
                    holders.add(ghost)
                    self.after(until - self.now, lambda holders=holders: holders.discard(ghost))  # type: ignore[misc]

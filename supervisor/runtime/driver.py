"""The loop: an event comes, the scheduler decides, its actions begin. There is no lock, because nothing is decided anywhere else."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.abc

from supervisor.runtime.perform import Work
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import Event, Tick


class Begins(Protocol):
    def begin(self, action: Action) -> Work | None: ...


class Decides(Protocol):
    """A `Scheduler`, or one that is written down."""

    @property
    def deadline(self) -> float | None: ...
    @property
    def finished(self) -> bool: ...
    def handle(self, event: Event, now: float) -> list[Action]: ...


Heard = Callable[[Event, list[Action], float], None]
"""(event, its actions, now): for the journal, the log, the views."""


class Driver:
    """Feeds the scheduler, starts what it wants, and wakes it when its own deadline has come."""

    def __init__(self, scheduler: Decides, clock: Callable[[], float], heard: Heard) -> None:
        self.scheduler = scheduler
        self._clock = clock
        self._heard = heard
        self._queue: deque[Event] = deque()
        self._busy = False
        self._moved = anyio.Event()
        self._performer: Begins | None = None
        self._tasks: anyio.abc.TaskGroup | None = None

    def feed(self, event: Event) -> None:
        """Take an event, from anywhere in the loop. Handled before this returns, unless one is being handled now: then right after it.

        What comes before `run` waits for it.
        """
        self._queue.append(event)
        if self._busy or self._performer is None:
            return
        self._busy = True
        try:
            while self._queue:
                self._handle(self._queue.popleft())
        finally:
            self._busy = False
        self._moved.set()

    def _handle(self, event: Event) -> None:
        now = self._clock()
        actions = self.scheduler.handle(event, now)
        assert self._performer is not None
        assert self._tasks is not None
        for action in actions:
            work = self._performer.begin(action)
            if work is not None:
                self._tasks.start_soon(self._finish, work, name=type(action).__name__)
        self._heard(event, actions, now)  # last: nobody who waits for an answer waits for a line of the log

    async def _finish(self, work: Work) -> None:
        self.feed(await work())

    async def run(self, performer: Begins, tasks: anyio.abc.TaskGroup) -> None:
        """Until every pipeline has ended."""
        self._performer, self._tasks = performer, tasks
        self.feed(Tick())
        while not self.scheduler.finished:
            deadline = self.scheduler.deadline
            self._moved = anyio.Event()
            seconds = None if deadline is None else max(0.0, deadline - self._clock())
            with anyio.move_on_after(seconds) as waiting:
                await self._moved.wait()
            if waiting.cancelled_caught:
                self.feed(Tick())

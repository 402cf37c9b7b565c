"""The loop: an event comes, the scheduler decides, its actions begin. There is no lock, because nothing is decided anywhere else."""

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import anyio.abc
import msgspec
import structlog

from supervisor.observe.event_log import log_for
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import ActionFailed, Event, GpuHeld, GroupGone, MemberExited, PeerFailed, ProbeFailed, Tick
from trainers.protocol.ids import GroupId, Incarnation

Work = Callable[[], Awaitable[Event]]
"""The rest of an action, which takes time: run beside the loop, it returns the event that answers the action."""


class Begins(Protocol):
    """A `Performer`."""

    def begin(self, action: Action) -> Work | None: ...


class Decides(Protocol):
    """A `Scheduler`, or one that is written down."""

    @property
    def deadline(self) -> float | None: ...
    @property
    def finished(self) -> bool: ...
    def handle(self, event: Event, now: float) -> list[Action]: ...


class Observer(Protocol):
    """Is shown every event after it was handled and its actions have begun. It must not feed events."""

    def observe(self, event: Event, actions: Sequence[Action], scheduler: Scheduler, now: float) -> None: ...


class SpawnTask(Protocol):
    """Runs something beside the loop until the supervisor ends (a task group's `start_soon`)."""

    def __call__(self, func: Callable[..., Coroutine[Any, Any, Any]], /, *args: Any, name: object = None) -> object: ...


@dataclass(frozen=True, slots=True)
class Loop:
    """What whoever watches children reaches of the loop: events go in by `feed`, tasks run beside it, and what is noticed is logged."""

    feed: Callable[[Event], None]
    spawn_task: SpawnTask
    log: "structlog.typing.FilteringBoundLogger"

    def log_for(self, group: GroupId, incarnation: Incarnation) -> "structlog.typing.FilteringBoundLogger":
        return log_for(self.log, group, incarnation)


class Driver:
    """Feeds the scheduler, begins what it wants, shows it to the observers, and wakes it when its own deadline has come.

    `decides` is `scheduler`, or what writes down each of its decisions. `hide` takes secrets out of a text: what an event says in words comes
    from children, and goes into records, summaries and terminals.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        decides: Decides,
        clock: Callable[[], float],
        observers: Sequence[Observer],
        hide: Callable[[str], str] = str,
    ) -> None:
        self._scheduler = scheduler
        self._decides = decides
        self._clock = clock
        self._observers = tuple(observers)
        self._hide = hide
        self._queue: deque[Event] = deque()
        self._busy = False
        self._moved = anyio.Event()
        self._performer: Begins | None = None
        self._tasks: anyio.abc.TaskGroup | None = None

    def feed(self, event: Event) -> None:
        """Handle an event, from anywhere in the loop: before this returns, or right after the one that is being handled now.

        Events that come before `run` wait for it.
        """
        self._queue.append(self._without_secrets(event))
        if self._busy or self._performer is None:
            return
        self._busy = True
        try:
            while self._queue:
                self._handle(self._queue.popleft())
        finally:
            self._busy = False
        self._moved.set()

    def _without_secrets(self, event: Event) -> Event:
        match event:
            case ActionFailed(reason=words) | PeerFailed(reason=words) | ProbeFailed(reason=words) if words:
                return msgspec.structs.replace(event, reason=self._hide(words))
            case MemberExited(note=words, error=error) if words:
                return msgspec.structs.replace(event, note=self._hide(words), error=self._hide(error))
            case GroupGone(note=words) | GpuHeld(note=words) if words:
                return msgspec.structs.replace(event, note=self._hide(words))
            case _:
                return event

    def spawn_task(self, func: Callable[..., Coroutine[Any, Any, Any]], /, *args: Any, name: object = None) -> None:
        """Run a task beside the loop, until the supervisor ends at most. Only what an action has begun has such tasks, so none comes before `run`."""
        assert self._tasks is not None, "nothing is begun before the loop runs"
        self._tasks.start_soon(func, *args, name=name)

    def _handle(self, event: Event) -> None:
        now = self._clock()
        actions = self._decides.handle(event, now)
        assert self._performer is not None
        for action in actions:
            work = self._performer.begin(action)
            if work is not None:
                self.spawn_task(self._finish, work, name=type(action).__name__)
        for observer in self._observers:  # last: nobody who waits for an answer waits for a line of the log
            observer.observe(event, actions, self._scheduler, now)

    async def _finish(self, work: Work) -> None:
        self.feed(await work())

    async def run(self, performer: Begins, tasks: anyio.abc.TaskGroup) -> None:
        """Run until every pipeline has ended."""
        self._performer, self._tasks = performer, tasks
        self.feed(Tick())
        while not self._decides.finished:
            deadline = self._decides.deadline
            self._moved = anyio.Event()
            seconds = None if deadline is None else max(0.0, deadline - self._clock())
            with anyio.move_on_after(seconds) as waiting:
                await self._moved.wait()
            if waiting.cancelled_caught:
                self.feed(Tick())

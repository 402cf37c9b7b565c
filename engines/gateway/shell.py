"""This module is the shell around the dispatch core: it gives the core events and the time, and carries out its effects. It decides nothing."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, assert_never

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.events import Abort, Ask, Broken, Cut, Deliver, Effect, End, Ended, Event, Grew, Leave, Start, Tick, Tokens
from engines.gateway.core.samples import Failure, Request
from engines.gateway.upstream.engine_client import EngineClient, Running, new_rid
from trainers.protocol.gateway_messages import Done, Order, Progress

TOKENS_EVERY_S: Final = 0.5
"""While only tokens come the supervisor gets a picture this often: that an engine makes some is the best news of its health."""
LEAVE_AT_ONCE: Final = 64
"""So many askers leave in one go; then others are served, before the next."""
_ABORT_AGAIN_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


@dataclass(slots=True, eq=False)
class Inbox:
    """The tokens and outcomes of some askers arrive here, in order. `open`: those whose outcome has not come."""

    open: set[int] = field(default_factory=set)
    _arrived: "asyncio.Queue[Grew | Deliver]" = field(default_factory=asyncio.Queue)

    def put(self, effect: Grew | Deliver) -> None:
        """Add an arrival."""
        if isinstance(effect, Deliver):
            self.open.discard(effect.asker)
        self._arrived.put_nowait(effect)

    def arrived(self) -> Iterator[Grew | Deliver]:
        """Yield everything that is there already."""
        while not self._arrived.empty():
            yield self._arrived.get_nowait()

    async def get(self, patience: float) -> Grew | Deliver | None:
        """Wait for the next arrival; returns None after `patience` seconds without one."""
        if not self._arrived.empty():
            return self._arrived.get_nowait()
        try:
            async with asyncio.timeout(patience):
                return await self._arrived.get()
        except TimeoutError:
            return None


@dataclass(slots=True)
class _Running:
    """An attempt on its way. `over` is set with its end, where somebody waits for that."""

    engine: int
    incarnation: int
    url: str
    key: str
    rid: str
    sent: Running | None = None
    over: asyncio.Event | None = None

    def end(self) -> None:
        if self.over is not None:
            self.over.set()


class Shell:
    """The dispatch core at work. `failed` resolves with the exception of a bug of ours: the gateway must end then, its supervisor starts another.

    `log(event, **fields)`: for what an operator may want to know. `on_done`, `on_change`: for the channel to the supervisor.
    """

    def __init__(self, dispatch: Dispatch, client: EngineClient, log: Callable[..., Any]) -> None:
        self._dispatch, self._client, self._log = dispatch, client, log
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, _Running] = {}
        self._inboxes: dict[int, Inbox] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._askers = 0
        self._tokens_reported_at = 0.0
        self.failed: asyncio.Future[None] = self._loop.create_future()
        client.on_bug(self._fail)
        self.on_done: Callable[[Done], None] = lambda done: None
        self.on_change: Callable[[], None] = lambda: None

    # ---- the routes' side

    def ask(self, inbox: Inbox, request: Request, *, rollout: int | None, token: str | None, streams: bool = False) -> int:
        """Ask for one sample. Returns the asker's number, under which things arrive in the inbox."""
        self._askers += 1
        asker = self._askers
        inbox.open.add(asker)
        self._inboxes[asker] = inbox
        self._handle(Ask(asker=asker, rollout=rollout, token=token, request=request, streams=streams))
        return asker

    def leave(self, askers: Iterable[int]) -> None:
        """Give up these askers; a sample that nobody wants any more is aborted."""
        self._leave(deque(askers))

    def _leave(self, askers: deque[int]) -> None:
        for _ in range(min(len(askers), LEAVE_AT_ONCE)):
            if self._inboxes.pop(asker := askers.popleft(), None) is not None:
                self._handle(Leave(asker))
        if askers:
            self._loop.call_soon(self._leave, askers)

    # ---- the supervisor's side

    def order(self, order: Order) -> None:
        """Log an order of the supervisor and give it to the core."""
        self._log(
            "order",
            order=type(order).__name__,
            **{name: getattr(order, name) for name in order.__struct_fields__ if name not in ("order", "key")},
        )
        self._handle(order)

    @property
    def version(self) -> int:
        """The newest weight version that was routed."""
        return self._dispatch.engines.newest

    def progress(self) -> Progress:
        """Return the picture that the supervisor is sent."""
        return self._dispatch.progress()

    async def close(self) -> None:
        """Cut every connection to an engine."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    # ---- between

    def _handle(self, event: Event) -> None:
        now = self._loop.time()
        effects = self._dispatch.handle(event, now)
        for effect in effects:
            self._perform(effect)
        if effects or not isinstance(event, Tokens):
            self._set_timer()
            self.on_change()
        elif now >= self._tokens_reported_at + TOKENS_EVERY_S:
            self._tokens_reported_at = now
            self.on_change()

    def _set_timer(self) -> None:
        deadline = self._dispatch.deadline
        if self._timer is not None:
            if deadline is not None and self._timer.when() == deadline and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick())

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Start():
                self._start(effect)
            case Abort(number):
                if (running := self._running.get(number)) is not None:
                    running.over = asyncio.Event()
                    self._spawn(self._abort(running, running.over))
            case Cut(number):
                if (running := self._running.pop(number, None)) is not None:
                    self._log("attempt cut", engine=running.engine, incarnation=running.incarnation, rid=running.rid)
                    assert running.sent is not None, "nothing happens while it is sent"
                    running.sent.cut()
                    running.end()
            case Grew(asker, _, _):
                self._inboxes[asker].put(effect)
            case Deliver(asker, outcome):
                if isinstance(outcome, Failure):
                    self._log("sample failed", code=outcome.code, message=outcome.message)
                self._inboxes.pop(asker).put(effect)
            case Done():
                self.on_done(effect)
            case _:
                assert_never(effect)

    def _start(self, start: Start) -> None:
        running = _Running(start.engine, start.incarnation, start.url, start.key, new_rid())
        self._running[start.attempt] = running
        running.sent = self._client.run(start, running.rid, self._handle, partial(self._ended, start.attempt))

    def _ended(self, number: int, end: End) -> None:
        running = self._running.pop(number)
        if isinstance(end, Broken):
            self._log("attempt broken", engine=running.engine, incarnation=running.incarnation, rid=running.rid, cause=end.cause)
        running.end()
        self._handle(Ended(number, end))

    async def _abort(self, running: _Running, over: asyncio.Event) -> None:
        """Ask until it has ended: an engine ignores the abort of a request that has not reached it yet. The core's patience ends it."""
        for patience in _ABORT_AGAIN_S:
            if over.is_set():
                return
            if trouble := await self._client.abort(running.url, running.key, running.rid):
                self._log("abort failed", engine=running.engine, incarnation=running.incarnation, rid=running.rid, cause=trouble)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await over.wait()

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._reap)

    def _reap(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

"""Who may enter: the gate that a pause closes, the lock between requests and weight updates, and the desk where answers arrive."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from engines.embedded.batching import Request
from engines.embedded.compute import Compute
from engines.embedded.core import Answer, Refusal

MAX_REQUESTS: Final = 4096
"""Requests inside and before the gate together; more are refused with 503."""


class Gate:
    """Requests enter while generation is not paused and no weight update has the lock or waits for it."""

    def __init__(self) -> None:
        self.paused = False
        self.inside = 0
        self._before = 0
        self._updates = 0
        self._turn = asyncio.Event()

    @property
    def turn(self) -> asyncio.Event:
        """Set when next somebody leaves or the gate turns. Take it before looking at what may change, then wait for it."""
        return self._turn

    async def enter(self) -> None:
        """Wait before the gate, as long as it takes; then be inside, until `leave`. Raises Refusal when too many wait."""
        if self._before + self.inside >= MAX_REQUESTS:
            raise Refusal("The request queue is full.", 503)
        self._before += 1
        try:
            while self.paused or self._updates:
                await self._turn.wait()
        finally:
            self._before -= 1
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1
        self.change()

    @asynccontextmanager
    async def updating(self) -> AsyncIterator[None]:
        """Hold the lock of weight updates: at once while paused, else when nobody is inside (newcomers wait meanwhile)."""
        if self.paused:
            yield
            return
        self._updates += 1
        try:
            while self.inside and not self.paused:
                await self._turn.wait()
            yield
        finally:
            self._updates -= 1
            self.change()

    def change(self) -> None:
        """Let everyone who waits look again."""
        self._turn.set()
        self._turn = asyncio.Event()


class _Ticket:
    """Where one request's answers arrive. Only the newest is kept: it holds all that came before."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self._newest: Answer | None = None

    def put(self, answer: Answer) -> None:
        self._newest = answer
        self._arrived.set()

    async def next(self) -> Answer:
        await self._arrived.wait()
        self._arrived.clear()
        assert self._newest is not None
        return self._newest


class Desk:
    """Runs requests on the compute thread and brings their answers back into the event loop."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._tickets: dict[str, _Ticket] = {}
        self._compute: Compute | None = None

    def attach(self, compute: Compute) -> None:
        self._compute = compute

    def deliver(self, answers: Sequence[Answer]) -> None:
        """Called on the compute thread."""
        self._loop.call_soon_threadsafe(self.arrived, answers)

    def arrived(self, answers: Sequence[Answer]) -> None:
        """Who has finished is outside the gate from here on, however slowly its client reads."""
        for answer in answers:
            ticket = self._tickets.get(answer.rid)
            if ticket is not None:
                ticket.put(answer)
                if answer.finish is not None:
                    del self._tickets[answer.rid]
                    self._gate.leave()

    async def run(self, request: Request) -> AsyncGenerator[Answer, None]:
        """Answers as they grow; the last has a finish. Whoever stops iterating (use aclosing) has the request aborted. Raises Refusal."""
        assert self._compute is not None
        await self._gate.enter()
        if request.rid in self._tickets:
            self._gate.leave()
            raise Refusal(f"Duplicate request ID detected: {request.rid}")
        ticket = self._tickets[request.rid] = _Ticket()
        try:
            await self._compute.call(lambda core: core.submit(request))
            while True:
                answer = await ticket.next()
                yield answer
                if answer.finish is not None:
                    return
        finally:
            if self._tickets.get(request.rid) is ticket:
                del self._tickets[request.rid]
                self._gate.leave()
                self._compute.tell(lambda core: core.abort(lambda rid: rid == request.rid))

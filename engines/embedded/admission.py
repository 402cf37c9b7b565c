"""This module decides who may enter: the gate that a pause closes, the lock between requests and weight updates, and how answers come back."""

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
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Return the event that is set when somebody leaves or the gate changes. Take it before looking at what may change, then wait for it."""
        return self._changed

    async def enter(self) -> None:
        """Wait before the gate, as long as it takes; then be inside, until `leave`. Raises Refusal when too many wait."""
        if self._before + self.inside >= MAX_REQUESTS:
            raise Refusal("The request queue is full.", 503)
        self._before += 1
        try:
            while self.paused or self._updates:
                await self._changed.wait()
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
                await self._changed.wait()
            yield
        finally:
            self._updates -= 1
            self.change()

    def change(self) -> None:
        """Let everyone who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()


class _Mailbox:
    """One request's answers arrive here. Only the newest is kept: it holds all that came before."""

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


class RequestRunner:
    """Runs requests on the compute thread and brings their answers back into the event loop."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._compute: Compute | None = None

    def attach(self, compute: Compute) -> None:
        self._compute = compute

    def deliver(self, answers: Sequence[Answer]) -> None:
        """Take answers on the compute thread and pass them to the loop."""
        self._loop.call_soon_threadsafe(self.arrived, answers)

    def arrived(self, answers: Sequence[Answer]) -> None:
        """Hand out answers. A request that has finished is outside the gate from here on, however slowly its client reads."""
        for answer in answers:
            mailbox = self._mailboxes.get(answer.rid)
            if mailbox is not None:
                mailbox.put(answer)
                if answer.finish is not None:
                    del self._mailboxes[answer.rid]
                    self._gate.leave()

    async def run(self, request: Request) -> AsyncGenerator[Answer, None]:
        """Yield answers as they grow; the last has a finish. A caller that stops iterating (use aclosing) aborts the request. Raises Refusal."""
        assert self._compute is not None
        await self._gate.enter()
        if request.rid in self._mailboxes:
            self._gate.leave()
            raise Refusal(f"Duplicate request ID detected: {request.rid}")
        mailbox = self._mailboxes[request.rid] = _Mailbox()
        try:
            await self._compute.call(lambda core: core.submit(request))
            while True:
                answer = await mailbox.next()
                yield answer
                if answer.finish is not None:
                    return
        finally:
            if self._mailboxes.get(request.rid) is mailbox:
                del self._mailboxes[request.rid]
                self._gate.leave()
                self._compute.post(lambda core: core.abort(lambda rid: rid == request.rid))

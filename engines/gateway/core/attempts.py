"""What runs on the engines: attempts from start to end, and the orders that wait for some of them to end. PURE."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from engines.gateway.core import continuation
from engines.gateway.core.engines import Engine
from engines.gateway.core.events import Abort, Start
from engines.gateway.core.records import Attempt, Sample
from trainers.protocol.gateway_messages import Done

PATIENCE: Final = 5.0
"""Seconds for an engine to end a request that we have aborted; then the connection is cut and the tokens so far are kept. A drain must
be over before the supervisor takes the gateway for the one that hangs: at most a quarter of `drain_s`."""


@dataclass(slots=True)
class _Pending:
    """An order that is done when the last of these attempts has ended."""

    order: int
    attempts: set[int]


class Attempts:
    """Every attempt that has started and neither ended nor been cut. An engine's `running` is changed here only."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._abort_patience = patience
        self._running: dict[int, Attempt] = {}
        self._patience: dict[int, float] = {}
        self._pending: list[_Pending] = []

    @property
    def deadline(self) -> float | None:
        return min(self._patience.values(), default=None)

    def get(self, number: int) -> Attempt | None:
        """None: it was cut, and what comes of it now is an answer of the dead."""
        return self._running.get(number)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._running.values())

    def on(self, engine: Engine) -> list[Attempt]:
        return [attempt for attempt in self._running.values() if attempt.engine is engine]

    def begin(self, number: int, sample: Sample, engine: Engine) -> Start:
        attempt = Attempt(number, engine, engine.version, len(sample.ids), sample)
        if not sample.ids:
            sample.born = engine.version
        self._running[number] = sample.attempt = attempt
        engine.running += 1
        body = continuation.continuation(sample.request, sample.ids, sample.seed)
        return Start(number, engine.rank, engine.incarnation, engine.url, engine.key, body)

    def abort(self, attempt: Attempt, now: float) -> list[Abort]:
        """Ask once; when its patience is over it is among the `impatient`."""
        if attempt.aborting:
            return []
        attempt.aborting = True
        self._patience[attempt.number] = now + self._abort_patience
        return [Abort(attempt.number)]

    def impatient(self, now: float) -> list[Attempt]:
        return [self._running[number] for number, due in self._patience.items() if due <= now]

    def release(self, attempt: Attempt) -> list[Done]:
        """The attempt is over: its slot is free, its tokens get their spans, and an order that waited for it may be done."""
        del self._running[attempt.number]
        self._patience.pop(attempt.number, None)
        attempt.engine.running -= 1
        if attempt.sample is not None:
            attempt.sample.spans += attempt.spans(len(attempt.sample.ids))
            attempt.sample.attempt = None
        for pending in self._pending:
            pending.attempts.discard(attempt.number)
        done = [Done(pending.order) for pending in self._pending if not pending.attempts]
        self._pending = [pending for pending in self._pending if pending.attempts]
        return done

    def promise(self, order: int, attempts: Iterable[Attempt]) -> list[Done]:
        """Answer the order when the last of these has ended: now, if there is none."""
        numbers = {attempt.number for attempt in attempts}
        if not numbers:
            return [Done(order)]
        self._pending.append(_Pending(order, numbers))
        return []

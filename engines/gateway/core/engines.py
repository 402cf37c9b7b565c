"""This module keeps the engines of one pipeline as the gateway knows them: which may get a request, and which gets the next."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from trainers.protocol.gateway_messages import EngineLoad, Route

_FIRST_BACK_OFF_S: Final = 0.05
_LONGEST_BACK_OFF_S: Final = 2.0
DEATHS_S: Final = 60.0
"""For so long the death of an engine says something about the next one's."""
Life = tuple[int, int]
"""Rank and incarnation of an engine."""


@dataclass(slots=True, eq=False, kw_only=True)
class Engine:
    """One incarnation of one engine. `running` counts our attempts on it, the aborted ones until they have ended.

    `completed`, `failures` (in a row) and `tokens` are for the supervisor's health checks. `strikes`: failures since the last success, for the
    back-off; `retry_at`: until then it gets no request (0: it does not back off).

    `unproven` counts the attempts that have not made a token yet; `trial`: one of them is of a sample with which another life has died, and
    until it makes a token nothing else is sent here.
    """

    rank: int
    incarnation: int
    url: str
    key: str
    slots: int
    version: int
    routed: bool = True
    running: int = 0
    completed: int = 0
    failures: int = 0
    tokens: int = 0
    strikes: int = 0
    unproven: int = 0
    trial: bool = False
    retry_at: float = 0.0

    @property
    def life(self) -> Life:
        """The name of this incarnation."""
        return (self.rank, self.incarnation)

    @property
    def load(self) -> float:
        """The share of its slots that is taken."""
        return self.running / self.slots

    def succeeded(self) -> None:
        """Record that a request has come to its end on it."""
        self.completed += 1
        self.failures = self.strikes = 0
        self.retry_at = 0.0

    def failed(self, now: float, busy: bool) -> None:
        """Record that a request has not come to its end on it; one that it had no room for (`busy`) says nothing against it."""
        self.failures += not busy
        self.back_off(now)

    def back_off(self, now: float) -> None:
        """Send it nothing for a moment: it has just failed, and the supervisor will say what is to become of it."""
        self.retry_at = now + min(_LONGEST_BACK_OFF_S, _FIRST_BACK_OFF_S * 2.0 ** min(self.strikes, 10))
        self.strikes += 1


class Engines:
    """Engines by rank; only the newest incarnation of each can be dispatched to."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        self._deaths: dict[Life, float] = {}
        self.newest = 0
        """Highest version ever routed. Versions only grow, so an engine with an older one gets no new request."""

    def route(self, order: Route) -> Engine | None:
        """Set a route. Returns the engine of an older incarnation that it replaces, if any (dead, and so is what ran on it)."""
        self.newest = max(self.newest, order.version)
        known = self._engines.get(order.engine)
        if known and known.incarnation > order.incarnation:
            return None  # a route of the dead
        if known and known.incarnation == order.incarnation:
            known.url, known.key, known.slots, known.version = order.url, order.key, order.slots, order.version
            known.routed, known.retry_at, known.strikes = True, 0.0, 0
            return None
        self._engines[order.engine] = Engine(
            rank=order.engine, incarnation=order.incarnation, url=order.url, key=order.key, slots=order.slots, version=order.version
        )
        return known

    def note_death(self, engine: Engine, now: float) -> None:
        """Record that this life of the engine has ended with whatever ran on it."""
        self._deaths = {life: died for life, died in self._deaths.items() if now - died <= DEATHS_S}
        self._deaths.setdefault(engine.life, now)

    def died_without(self, lives: Collection[Life]) -> bool:
        """Whether an engine has died lately in a life that is none of these: then engines die for a reason of their own."""
        return any(life not in lives for life in self._deaths)

    def published(self, version: int) -> None:
        """Record the published version: from now on no engine with an older one gets a new request."""
        self.newest = max(self.newest, version)

    def unroute(self, rank: int, incarnation: int) -> Engine | None:
        """Take the engine from the routes if it is of this incarnation or an older one. Returns it then."""
        engine = self._engines.get(rank)
        if engine is None or engine.incarnation > incarnation:
            return None
        engine.routed = False
        return engine

    def get(self, rank: int) -> Engine | None:
        """Return the newest known incarnation of this engine."""
        return self._engines.get(rank)

    def routable(self, engine: Engine) -> bool:
        """Whether new requests may go to it, now or when it has room."""
        return engine.routed and engine.version == self.newest and self._engines.get(engine.rank) is engine

    def eligible(self, engine: Engine, now: float) -> bool:
        """Whether a new request may go to it now."""
        has_room = engine.running < engine.slots and not engine.trial
        return engine.routed and engine.version == self.newest and has_room and engine.retry_at <= now

    @property
    def slots(self) -> int:
        """Slots of all routed engines."""
        return sum(engine.slots for engine in self._engines.values() if engine.routed)

    def pick(self, now: float) -> Engine | None:
        """Return the least loaded engine with a free slot; of equals the one with the lowest rank."""
        free = [engine for engine in self._engines.values() if self.eligible(engine, now)]
        return min(free, key=lambda engine: (engine.load, engine.rank), default=None)

    @property
    def on_trial(self) -> bool:
        """Whether an engine is on trial."""
        return any(engine.trial for engine in self._engines.values())

    def for_trial(self, now: float) -> Engine | None:
        """Return the least loaded engine on which a suspect would be the only one that has not made a token yet."""
        free = [engine for engine in self._engines.values() if self.eligible(engine, now) and not engine.unproven]
        return min(free, key=lambda engine: (engine.load, engine.rank), default=None)

    def next_retry(self) -> float | None:
        """Return when the first engine that backs off may be tried again."""
        return min((e.retry_at for e in self._engines.values() if e.routed and e.retry_at and e.running < e.slots), default=None)

    def end_back_offs(self, now: float) -> None:
        """Forget the back-offs that have passed, so that they are no deadline any more."""
        for engine in self._engines.values():
            if engine.retry_at <= now:
                engine.retry_at = 0.0

    def loads(self) -> tuple[EngineLoad, ...]:
        """Return what the supervisor is shown of the engines that are routed or busy, by rank."""
        return tuple(
            EngineLoad(e.rank, e.incarnation, in_flight=e.running, completed=e.completed, failures=e.failures, tokens=e.tokens)
            for e in sorted(self._engines.values(), key=lambda engine: engine.rank)
            if e.routed or e.running
        )

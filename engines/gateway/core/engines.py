"""The engines of one pipeline as the gateway knows them: which may get a request, and which gets the next. PURE."""

from dataclasses import dataclass
from typing import Final

from trainers.protocol.gateway_messages import EngineLoad, Route

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0


@dataclass(slots=True, eq=False)
class Engine:
    """One incarnation of one engine. `running` counts our attempts on it, the aborted ones until they have ended."""

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
    rests_until: float = 0.0

    @property
    def load(self) -> float:
        """The share of its slots that is taken."""
        return self.running / self.slots

    def succeeded(self) -> None:
        self.completed += 1
        self.failures = self.strikes = 0
        self.rests_until = 0.0

    def failed(self, now: float, busy: bool) -> None:
        """A request did not come to its end on it; one that it had no room for says nothing against it."""
        self.failures += not busy
        self.rest(now)

    def rest(self, now: float) -> None:
        """Let it alone for a moment: it has just failed, and the supervisor will say what is to become of it."""
        self.rests_until = now + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.strikes, 10))
        self.strikes += 1


class Fleet:
    """Engines by rank; only the newest incarnation of each can be dispatched to."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        self.newest = 0
        """Highest version ever routed. Versions only grow, so an engine with an older one gets no new request."""

    def route(self, order: Route) -> Engine | None:
        """Set a route; returns the engine of an older incarnation that it replaces, if any (dead, and so is what ran on it)."""
        self.newest = max(self.newest, order.version)
        known = self._engines.get(order.engine)
        if known and known.incarnation > order.incarnation:
            return None  # a route of the dead
        if known and known.incarnation == order.incarnation:
            known.url, known.key, known.slots, known.version = order.url, order.key, order.slots, order.version
            known.routed, known.rests_until, known.strikes = True, 0.0, 0
            return None
        self._engines[order.engine] = Engine(order.engine, order.incarnation, order.url, order.key, order.slots, order.version)
        return known

    def published(self, version: int) -> None:
        """From now on nothing older gets a new request."""
        self.newest = max(self.newest, version)

    def unroute(self, rank: int, incarnation: int) -> Engine | None:
        """Take the engine from the routes if it is of this incarnation or an older one; returns it then."""
        engine = self._engines.get(rank)
        if engine is None or engine.incarnation > incarnation:
            return None
        engine.routed = False
        return engine

    def get(self, rank: int) -> Engine | None:
        return self._engines.get(rank)

    def routable(self, engine: Engine) -> bool:
        """Whether new requests may go to it, now or when it has room."""
        return engine.routed and engine.version == self.newest and self._engines.get(engine.rank) is engine

    def eligible(self, engine: Engine, now: float) -> bool:
        """Whether a new request may go to it now."""
        return engine.routed and engine.version == self.newest and engine.running < engine.slots and engine.rests_until <= now

    def pick(self, now: float) -> Engine | None:
        """The least loaded engine with a free slot; of equals the one with the lowest rank."""
        free = [engine for engine in self._engines.values() if self.eligible(engine, now)]
        return min(free, key=lambda engine: (engine.load, engine.rank), default=None)

    def next_rested(self) -> float | None:
        """When a resting engine may be tried again."""
        return min((e.rests_until for e in self._engines.values() if e.routed and e.rests_until and e.running < e.slots), default=None)

    def wake(self, now: float) -> None:
        """Forget the rests that are over, so that they are no deadline any more."""
        for engine in self._engines.values():
            if engine.rests_until <= now:
                engine.rests_until = 0.0

    def loads(self) -> tuple[EngineLoad, ...]:
        return tuple(
            EngineLoad(e.rank, e.incarnation, e.running, e.completed, e.failures, e.tokens)
            for e in sorted(self._engines.values(), key=lambda engine: engine.rank)
            if e.routed or e.running
        )

"""This module finds the engine that has a sample's beginning in its cache: its session's engine, or one that was sent the same prefix.

A *session* keeps to its engine while that is routable, and moves when it is not. A *prefix* is a preference only: the engine that was
last sent the longest same beginning, unless it is busier than the least busy one by more than `slack`.
"""

from array import array
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from engines.gateway.core.engines import Engine, Engines
from engines.gateway.core.records import Sample

MAX_SESSIONS: Final = 1 << 14
MAX_PREFIXES: Final = 1 << 16
"""So many of either are remembered; the one that was used longest ago is dropped first."""
BLOCK: Final = 64
"""Prefixes are compared by blocks of so many tokens."""
MAX_BLOCKS: Final = 128

_Key = TypeVar("_Key")


class _Places(Generic[_Key]):
    """A bounded memory that maps a key to one life of one engine; it forgets what was used longest ago."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._places: dict[_Key, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def keep(self, key: _Key, engine: Engine) -> None:
        self._places.pop(key, None)
        self._places[key] = (engine.rank, engine.incarnation)
        if len(self._places) > self._room:
            del self._places[next(iter(self._places))]

    def find(self, key: _Key, engines: Engines) -> Engine | None:
        """Return the engine, if it is in the same life and routable."""
        place = self._places.get(key)
        engine = None if place is None else engines.get(place[0])
        if place is None or engine is None or engine.incarnation != place[1] or not engines.routable(engine):
            return None
        return engine


class Affinity:
    """The engines of sessions and prefixes.

    `slack`: how much busier (as a share of its slots) an engine may be to be preferred for a prefix; None: prefixes do not count.
    """

    def __init__(self, slack: float | None = None) -> None:
        self._slack = slack
        self._sessions: _Places[str] = _Places(MAX_SESSIONS)
        self._prefixes: _Places[int] = _Places(MAX_PREFIXES)

    def home(self, sample: Sample, engines: Engines) -> Engine | None:
        """Return the engine of its session, busy or not; None where it may go anywhere."""
        session = sample.request.session
        return self._sessions.find(session, engines) if session else None

    def preferred(self, sample: Sample, engines: Engines, least: Engine, now: float) -> Engine:
        """Return `least`, the least busy engine with a free slot, or one that has seen the longest same prefix and is hardly busier."""
        if self._slack is None:
            return least
        for key in reversed(list(_prefixes_of(sample))):
            engine = self._prefixes.find(key, engines)
            if engine is not None and engines.eligible(engine, now) and engine.load <= least.load + self._slack:
                return engine
        return least

    def sent(self, sample: Sample, engine: Engine) -> None:
        """Record that the sample goes to this engine."""
        if sample.request.session:
            self._sessions.keep(sample.request.session, engine)
        if self._slack is not None:
            for key in _prefixes_of(sample):
                self._prefixes.keep(key, engine)


def _prefixes_of(sample: Sample) -> Iterator[int]:
    """Yield keys of the sample's first 64, 128 … tokens, and of all that it begins with."""
    tokens: array[int] = sample.request.prompt + sample.ids
    key = done = 0
    for end in range(BLOCK, min(len(tokens), BLOCK * MAX_BLOCKS) + 1, BLOCK):
        key, done = hash((key, tokens[done:end].tobytes())), end
        yield key
    if done < len(tokens):
        yield hash((key, tokens[done:].tobytes()))

"""A life is what an engine owns from one start to the end of its processes; the next life replaces it.

The table of states (`engines.lifecycle.state`) is not the whole state: an engine that is pausing has given its memory back or has not, one
whose life is ending has exited or has not, and its gateway routes to it or does not. These facts are records here, not flags of the engine:
a record that belongs to a state is made and dropped by the transition, all others by the next life. Recordings hold them as flat fields of
the engine (`supervisor.attempt.state_codec`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from engines.lifecycle.state import EngineState
from trainers.protocol.ids import Incarnation, Version

FIRST_LIFE = Incarnation(1)


@dataclass(slots=True)
class Routing:
    """What the gateway has done with an engine since it was last woken, or drained."""

    version: Version | None = None  # the version under which the gateway routes to it
    ordered: Version | None = None  # a route of this version has been ordered and is not answered
    used: bool = False  # a route was asked for: requests of ours may run on it until a drain is answered


@dataclass(slots=True)
class Load:
    """What its gateway last reported of an engine."""

    in_flight: int = 0
    completed: int = 0
    failures: int = 0  # requests that failed in a row
    tokens: int = 0


@dataclass(slots=True)
class Pausing:
    """The way of an engine to sleep. `released`: it says that it gave its memory back; the measurement is next."""

    released: bool = False


@dataclass(slots=True)
class Teardown:
    """The end of a group's life. `exited`: every process has; the measurement is next. `lost_sent`: the gateway has been told of the engine."""

    exited: bool = False
    lost_sent: bool = False


@dataclass(slots=True)
class EngineLife:
    """What an engine owns from one start to the end of its processes. The next life begins with a new record; nothing is cleared by hand.

    `phase` is the part of the state that the table does not tell: it exists in the states `PHASES`, and a transition to another state drops it.
    """

    incarnation: Incarnation = FIRST_LIFE
    version: Version | None = None  # what it truly has loaded
    routing: Routing = field(default_factory=Routing)
    load: Load = field(default_factory=Load)
    phase: Pausing | Teardown | None = None
    attempt_until: float | None = None  # when the start under way must have loaded, or gone to sleep
    pids: tuple[int, ...] = ()


PHASES: Final[Mapping[EngineState, type[Pausing] | type[Teardown]]] = {
    EngineState.PAUSING: Pausing,
    EngineState.QUARANTINED: Teardown,
    EngineState.STOPPING: Teardown,
    EngineState.STUCK: Teardown,
}
"""States with a record of their own; a teardown goes on through its three states."""

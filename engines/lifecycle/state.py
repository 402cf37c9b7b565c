"""The life of an engine group is a table. The diagram in ARCHITECTURE.md is printed from it (`python -m engines.lifecycle.state`).

A state that is under way (starting, waking, loading weights, draining, pausing, stopping …) *holds its lease*; there is no gap
between two halves of a decision.
"""

from enum import Enum
from types import MappingProxyType
from typing import Final


class EngineState(Enum):
    COLD = "cold"  # no process
    STARTING = "starting"  # processes spawned, not ready
    PAUSED = "paused"  # alive, device memory given back
    WAKING = "waking"  # taking memory back and loading the published version
    LOADING = "loading weights"  # awake, unrouted, weights of another version than the published one
    SERVING = "serving"  # routable: ready, awake, published version loaded
    DRAINING = "draining"  # unrouted; the gateway takes its requests off
    PAUSING = "pausing"  # gives memory back; stays until the memory is measured free
    QUARANTINED = "quarantined"  # failed: unrouted, being killed and confirmed gone
    STOPPING = "stopping"  # healthy, asked to end
    STUCK = "stuck"  # could not be confirmed gone; its GPUs are withheld
    RETIRED = "retired"  # failed too often; an operator can reset it


class Transition(Enum):
    """A transition moves a group from state to state."""

    START = "start"
    READY_WANTED = "ready, wanted, older version"
    READY_UNWANTED = "ready, unwanted"
    WAKE = "wake"
    CURRENT = "ready, woken or loaded: published version"
    STALE = "woken, or version published meanwhile"
    DRAIN = "drain"
    DRAINED = "drained"
    EMPTY = "memory measured free"
    FAIL = "exit, failed action or deadline"
    STOP = "stop"
    GONE = "gone, memory measured free"
    UNCONFIRMED = "not confirmed gone"
    GIVE_UP = "restart budget spent"
    RESET = "operator's reset"


S, T = EngineState, Transition
_ALIVE: Final = (S.STARTING, S.PAUSED, S.WAKING, S.LOADING, S.SERVING, S.DRAINING, S.PAUSING)

TRANSITIONS: Final = MappingProxyType(
    {
        (S.COLD, T.START): S.STARTING,
        (S.STARTING, T.READY_WANTED): S.LOADING,
        (S.STARTING, T.CURRENT): S.SERVING,
        (S.STARTING, T.READY_UNWANTED): S.PAUSING,
        (S.PAUSED, T.WAKE): S.WAKING,
        (S.WAKING, T.CURRENT): S.SERVING,
        (S.WAKING, T.STALE): S.LOADING,
        (S.LOADING, T.CURRENT): S.SERVING,
        (S.LOADING, T.STALE): S.LOADING,
        (S.LOADING, T.DRAIN): S.DRAINING,
        (S.SERVING, T.STALE): S.LOADING,
        (S.SERVING, T.DRAIN): S.DRAINING,
        (S.DRAINING, T.DRAINED): S.PAUSING,
        (S.PAUSING, T.EMPTY): S.PAUSED,
        **{(state, T.FAIL): S.QUARANTINED for state in _ALIVE},
        (S.STOPPING, T.FAIL): S.QUARANTINED,
        **{(state, T.STOP): S.STOPPING for state in _ALIVE},
        (S.STOPPING, T.GONE): S.COLD,
        (S.QUARANTINED, T.GONE): S.COLD,
        (S.QUARANTINED, T.UNCONFIRMED): S.STUCK,
        (S.STUCK, T.GONE): S.COLD,
        (S.COLD, T.GIVE_UP): S.RETIRED,
        (S.RETIRED, T.RESET): S.COLD,
    }
)

HOLDS_MEMORY: Final = frozenset((S.STARTING, S.WAKING, S.LOADING, S.SERVING, S.DRAINING, S.PAUSING))
"""States in which every GPU of the bundle is leased to the engine. (A quarantined one keeps the lease it had.)"""


def advance(state: EngineState, transition: Transition) -> EngineState:
    """Return the next state. Raises KeyError for a transition that the table does not allow: a bug of ours, never an operator's or a child's."""
    return TRANSITIONS[state, transition]


def diagram() -> str:
    """Return the table as lines of text, one a transition, for ARCHITECTURE.md."""
    return "\n".join(f"{state.value:16} -- {transition.value:40} -> {after.value}" for (state, transition), after in TRANSITIONS.items())


if __name__ == "__main__":
    print(diagram())

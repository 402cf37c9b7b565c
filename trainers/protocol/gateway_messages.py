"""This module defines the messages between the supervisor and a pipeline's gateway, one a frame (`trainers.protocol.framing`).

On the wire a message is one JSON object; `type` is the tag of its class, the other keys are its fields, unknown keys are an error:

    supervisor -> gateway   {"type":"route","order":7,"engine":0,"incarnation":2,"url":"http://127.0.0.1:20010","key":"…","slots":64,"version":3}
    gateway -> supervisor   {"type":"done","order":7,"error":""}
    gateway -> supervisor   {"type":"progress","rollouts":[{"rollout":3,"waiting":8,"in_flight":0,"done":0,…}],"engines":[…]}

An order has some 100 to 300 bytes. A `Progress` has some 100 for each open rollout and 85 for each engine, so that a frame (1 MiB) holds
thousands of both; it comes at most 20 times a second.

An order that must be known to have happened carries `order`, a number that only grows; the gateway answers it with exactly one
`Done` of that number once it holds (for `Drain`: once nothing of ours runs on that engine any more).
"""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class _Order(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """The supervisor orders something of the gateway."""


class Route(_Order, frozen=True, kw_only=True, tag="route"):
    """Requests may go to this engine. A route of the same engine replaces the old one (other incarnation or version)."""

    order: int
    engine: int
    incarnation: int
    url: str
    key: str
    slots: int
    version: int


class Unroute(_Order, frozen=True, tag="unroute"):
    """No new request goes to this engine; what runs there runs on (its weights are about to change in place).

    `version`: the published one. Nothing older gets a request from now on, and what may not go on under it (`publish_policy`) is begun
    anew: done when that has left the engines.
    """

    order: int
    engine: int
    incarnation: int
    version: int = 0


class Drain(_Order, frozen=True, tag="drain"):
    """Unroute; abort what runs there, keep the tokens so far, dispatch the rest elsewhere. Done when nothing of ours is left on it."""

    order: int
    engine: int
    incarnation: int


class Lost(_Order, frozen=True, tag="lost"):
    """The engine is dead or condemned: unroute, fail over what ran there at once, without asking it anything."""

    order: int
    engine: int
    incarnation: int


class OpenRollout(_Order, frozen=True, tag="open_rollout"):
    """A trainer has opened a rollout; requests that name it, or name none while it is the oldest, belong to it."""

    order: int
    rollout: int
    target: int


class CloseRollout(_Order, frozen=True, tag="close_rollout"):
    """Abort what still runs of it, return that as partial samples, keep answers for late askers until the next but one opens."""

    order: int
    rollout: int


class Forget(_Order, frozen=True, tag="forget"):
    """The trainer has died: every rollout ends, every stored answer of it goes; nothing of its past life may reach the next."""

    order: int


class Hopeless(_Order, frozen=True, tag="hopeless"):
    """No engine of the pipeline can come back (`reason`): answer what waits with a typed 503. `reason = ""` takes it back."""

    order: int
    reason: str


Order = Route | Unroute | Drain | Lost | OpenRollout | CloseRollout | Forget | Hopeless


class _Report(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """The gateway reports something to the supervisor."""


class Ready(_Report, frozen=True, tag="ready"):
    """It listens and has read its descriptor."""


class Done(_Report, frozen=True, tag="done"):
    """Order `order` holds. `error` is empty, or says why it could not be carried out."""

    order: int
    error: str = ""


class RolloutProgress(msgspec.Struct, frozen=True):
    """Counts of the samples of one rollout. `done` counts samples delivered or ready to be; `version` changes nothing here.

    `expected` and `longest` are tokens (any unit: only their ratio counts) that all unfinished samples together, and the longest of
    them, are expected to need yet; 0 when nothing is known.
    """

    rollout: int
    waiting: Count
    in_flight: Count
    done: Count
    implicit: bool = False
    expected: float = 0.0
    longest: float = 0.0


class EngineLoad(msgspec.Struct, frozen=True):
    """Counts of one engine: requests in flight, and since the route was set: requests completed, requests failed in a row, tokens made."""

    engine: int
    incarnation: int
    in_flight: Count
    completed: Count
    failures: Count
    tokens: Count = 0


class Progress(_Report, frozen=True, tag="progress"):
    """Everything that is open, complete each time (a missing rollout is closed); sent on change, at most 20 a second.

    An implicit rollout (a request came while none was open) has a negative number and is closed by the gateway itself after 5 s with
    nothing waiting or running.
    """

    rollouts: tuple[RolloutProgress, ...]
    engines: tuple[EngineLoad, ...] = ()


Report = Ready | Done | Progress

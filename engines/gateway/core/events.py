"""What the shell tells the dispatch core (orders of the supervisor are events too), and what the core wants done. PURE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.gateway.core.samples import Mark, Outcome, Request
from trainers.protocol.gateway_messages import Done, Order


@dataclass(frozen=True, slots=True)
class Ask:
    """Somebody wants a sample. `rollout` None: the oldest open one; `token` None: anonymous. `streams`: it wants tokens as they come."""

    asker: int
    rollout: int | None
    token: str | None
    request: Request
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """The asker is gone (its connection broke, or it has what it wants)."""

    asker: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of an attempt. `marks`: the labels of *all* its tokens so far, or empty where the engine gives none."""

    attempt: int
    ids: Sequence[int]
    logprobs: Sequence[float]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The engine has ended the request itself; `reason` is SGLang's finish_reason (also of type `abort`)."""

    reason: Mapping[str, Any]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine says that the request is wrong: it would be so everywhere."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine is lost or does not make sense. `accepted`: it had taken the request, so the request itself may be the cause.

    `busy`: it has only said that it takes no more now, which is no failure.
    """

    cause: str
    accepted: bool
    busy: bool = False


End = Finished | Refused | Broken


@dataclass(frozen=True, slots=True)
class Ended:
    attempt: int
    end: End


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but time has passed."""


# ---- effects: what the core wants done


@dataclass(frozen=True, slots=True)
class Start:
    """Send this to the engine, under a request id of its own; answered by `Tokens` and one `Ended`."""

    attempt: int
    engine: int
    incarnation: int
    url: str
    key: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Abort:
    """Ask the engine to end the attempt; its `Ended` still comes."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the attempt's connection; nothing of it is listened to any more."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Grew:
    """Further tokens for an asker that streams."""

    asker: int
    ids: Sequence[int]
    logprobs: Sequence[float]


@dataclass(frozen=True, slots=True)
class Deliver:
    """The one and only outcome for this asker."""

    asker: int
    outcome: Outcome


Event = Order | Ask | Leave | Tokens | Ended | Tick
Effect = Start | Abort | Cut | Grew | Deliver | Done

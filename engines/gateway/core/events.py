"""This module defines the events that the shell gives to the dispatch core, and the effects that the core wants carried out.

Orders of the supervisor (`trainers.protocol.gateway_messages`) are events too. All are structs of msgspec: made in a fraction of the time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from engines.gateway.core.samples import Mark, Outcome, Request, Rows
from trainers.protocol.gateway_messages import Done, Order

CLIENT_ERRORS: Final = (400, 413, 422)
"""With these statuses an engine says that the request is wrong, and would be so on any engine. Any other but 200 is the engine's own trouble."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants a sample. `rollout` None: the oldest open one; `token` None: anonymous. `streams`: it wants tokens as they come."""

    asker: int
    rollout: int | None
    token: str | None
    request: Request
    streams: bool = False


class Leave(msgspec.Struct, frozen=True):
    """The asker wants nothing any more: its connection broke, or it has what it wants."""

    asker: int


class Tokens(msgspec.Struct, frozen=True):
    """An engine has made new tokens. `marks`: the labels of *all* tokens of the attempt so far, or empty where the engine gives none.

    `rows`: what else the request asked for of each of these tokens. `prompt_meta`: what the engine says of the prompt, with its first tokens.
    """

    attempt: int
    ids: Sequence[int]
    logprobs: Sequence[float]
    marks: tuple[Mark, ...] = ()
    rows: Rows = {}
    prompt_meta: Mapping[str, Any] = {}


class Finished(msgspec.Struct, frozen=True):
    """The engine has ended the request itself; `reason` is SGLang's finish_reason (also of type `abort`).

    `meta`: what is left of meta_info: neither the rows of tokens nor the reason.
    """

    reason: Mapping[str, Any]
    meta: Mapping[str, Any] = {}


class Refused(msgspec.Struct, frozen=True):
    """The engine says that the request is wrong: it would be so everywhere."""

    status: int
    message: str


class Broken(msgspec.Struct, frozen=True):
    """The engine is lost or does not make sense. `accepted`: it had taken the request, so the request itself may be the cause.

    `busy`: it has only said that it takes no more now, which is no failure. `died`: the connection broke, as when the engine dies.
    """

    cause: str
    accepted: bool
    busy: bool = False
    died: bool = False


End = Finished | Refused | Broken


class Ended(msgspec.Struct, frozen=True):
    """The attempt runs no more."""

    attempt: int
    end: End


class Tick(msgspec.Struct, frozen=True):
    """Nothing but time has passed."""


# ---- effects: what the core wants done


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Send `body` to the engine at `url`, under a request id of its own; answered by `Tokens` and one `Ended`.

    `rows`: the request asks for more of each token, or of the prompt, than ids and log-probs.
    """

    attempt: int
    engine: int
    incarnation: int
    url: str
    key: str
    body: dict[str, Any]
    rows: bool = False


class Abort(msgspec.Struct, frozen=True):
    """Ask the engine to end the attempt; its `Ended` still comes."""

    attempt: int


class Cut(msgspec.Struct, frozen=True):
    """Close the attempt's connection; nothing of it is listened to any more."""

    attempt: int


class Grew(msgspec.Struct, frozen=True):
    """Give further tokens to an asker that streams."""

    asker: int
    ids: Sequence[int]
    logprobs: Sequence[float]
    rows: Rows = {}


class Deliver(msgspec.Struct, frozen=True):
    """Give the asker its one and only outcome."""

    asker: int
    outcome: Outcome


Event = Order | Ask | Leave | Tokens | Ended | Tick
Effect = Start | Abort | Cut | Grew | Deliver | Done

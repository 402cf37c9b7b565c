"""What one sample is, as data: who it is, what is asked, who made it, what comes out. PURE."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import msgspec

from trainers.protocol.seeds import sample_seed

TOKENS: Final = "i"
"""Array type of token ids: 4 bytes each, because answers are kept for late askers."""
LOGPROBS: Final = "d"
"""Array type of log-probabilities: 8 bytes, so that what the engine said is what the trainer gets, bit for bit."""
MAX_TOKEN: Final = 2**31 - 1


class SampleKey(msgspec.Struct, frozen=True, order=True):
    """A sample of a rollout. `anonymous` is 0 for a sample that the client has named, else a number of the gateway's own."""

    rollout: int
    token: str
    anonymous: int = 0

    @property
    def index(self) -> int | None:
        """The number that the client calls the sample by, if it is one."""
        token = self.token
        return int(token) if token.isascii() and token.isdecimal() and len(token) <= 15 else None

    def seed(self, pipeline: int) -> int | None:
        """The sampling seed for a request that brings none: known where rollout and index are (the number of an implicit one says nothing)."""
        index = self.index
        return None if index is None or self.rollout < 0 else sample_seed(pipeline, self.rollout, index)


class Span(msgspec.Struct, frozen=True):
    """Which weights made the output tokens [start, end), and on which life of which engine."""

    engine: int
    incarnation: int
    version: int
    start: int
    end: int


class Mark(msgspec.Struct, frozen=True):
    """Output tokens [start, end) of one attempt, by the engine's own label of its weights."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Request:
    """What one sample asks for, in SGLang's terms. `params` holds neither `n` nor `max_new_tokens`; `options` are the body's other fields.

    `limit` None: as far as the context reaches. `whole`: its answer cannot be put together from two engines (see `seams`).
    `session`: requests of one session go to one engine as long as it is routable ("": none).
    """

    prompt: "array[int]"
    params: Mapping[str, Any]
    limit: int | None
    options: Mapping[str, Any] = field(default_factory=dict)
    expected_tokens: int | None = None
    stops: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    whole: bool = False
    fingerprint: int = 0
    session: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished sample; `finish_reason` is SGLang's, `meta` the engine's own meta_info where the request was made whole."""

    ids: "array[int]"
    logprobs: "array[float]"
    finish_reason: Mapping[str, Any]
    spans: tuple[Span, ...]
    prompt_tokens: int
    cached_tokens: int = 0
    meta: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample has no answer. `code` is stable and for programs; `status` is HTTP's."""

    status: int
    code: str
    message: str


Outcome = Answer | Failure


class State(Enum):
    WAITING = "waiting"
    IN_FLIGHT = "in flight"
    DONE = "done"

"""This module defines what a sample is as data: its key, its request, the spans of its tokens, its answer or failure."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Any, Final

import msgspec

from trainers.protocol.seeds import sample_seed

TOKENS: Final = "i"
"""The array type of token ids: 4 bytes each, because answers are kept for late askers."""
LOGPROBS: Final = "d"
"""The array type of log-probabilities: 8 bytes, so that what the engine said is what the trainer gets, bit for bit."""
SINGLE: Final = "f"
"""The array type in which they are held while 4 bytes say the same: engines compute them in single precision."""
MAX_TOKEN: Final = 2**31 - 1
Rows = Mapping[str, Sequence[Any]]
"""Fields of meta_info that have one row for each output token (top log-probs and the like), beside ids and log-probs themselves."""


def cut(rows: Rows, start: int | None, end: int | None) -> dict[str, Sequence[Any]]:
    """Return the rows of the tokens [start, end)."""
    return {name: values[start:end] for name, values in rows.items()}


def joined(held: "array[float]", more: Sequence[float]) -> "array[float]":
    """Return `held` with `more` at its end, in 4 bytes each as long as all of them are numbers of single precision, else in 8."""
    if held.typecode == SINGLE:
        short = array(SINGLE, more)
        if short.tolist() == list(more):
            held.extend(short)
            return held
        held = array(LOGPROBS, held)
    held.extend(array(LOGPROBS, more))
    return held


class SampleKey(msgspec.Struct, frozen=True, order=True):
    """A sample of a rollout. `anonymous` is 0 for a sample that the client has named, else a number of the gateway's own."""

    rollout: int
    token: str
    anonymous: int = 0

    @property
    def index(self) -> int | None:
        """The number under which the client names the sample; None if the name is no number."""
        token = self.token
        return int(token) if token.isascii() and token.isdecimal() and len(token) <= 15 else None

    def seed(self, pipeline: int) -> int | None:
        """Return the sampling seed for a request that brings none; None without an index, or in an implicit rollout, whose number says nothing."""
        index = self.index
        return None if index is None or self.rollout < 0 else sample_seed(pipeline, self.rollout, index)


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """The weights that made the output tokens [start, end), and the life of the engine on which."""

    engine: int
    incarnation: int
    version: int
    start: int
    end: int


class Mark(msgspec.Struct, frozen=True):
    """The output tokens [start, end) of one attempt that were made by the weights which the engine labels so."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Request:
    """One sample as it is asked for, in SGLang's terms. `params` holds neither `n` nor `max_new_tokens`; `options` are the body's other fields.

    `limit` None: as far as the context reaches. `atomic`: its answer cannot be put together
    from two engines (see `continuation`), so it is made by one engine in one piece. `fingerprint`: equal for equal requests.
    `session`: requests of one session go to one engine as long as it is routable ("": none).
    """

    prompt: "array[int]"
    params: Mapping[str, Any]
    limit: int | None
    _: KW_ONLY
    options: Mapping[str, Any] = field(default_factory=dict)
    expected_tokens: int | None = None
    stops: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    atomic: bool = False
    fingerprint: int = 0
    session: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished sample. `finish_reason` is SGLang's; `rows` are what the request asked for beside ids and log-probs, token by token.

    `prompt_meta`: what the engine that read the prompt first said of it (`cached_tokens`, log-probs of the prompt).
    `meta`: the rest of the engine's meta_info; empty for an answer that was put together from several attempts, which no engine knows as one.
    """

    ids: "array[int]"
    logprobs: "array[float]"
    finish_reason: Mapping[str, Any]
    spans: tuple[Span, ...]
    prompt_tokens: int
    rows: Rows = field(default_factory=dict)
    prompt_meta: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were in the cache of the engine that read it."""
        cached = self.prompt_meta.get("cached_tokens")
        return cached if isinstance(cached, int) else 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a sample has no answer. `code` is stable and for programs; `status` is HTTP's."""

    status: int
    code: str
    message: str


Outcome = Answer | Failure


class State(Enum):
    WAITING = "waiting"
    IN_FLIGHT = "in flight"
    DONE = "done"

"""The dispatch core's own records: a rollout, a sample on its way, one attempt at it. PURE; only `dispatch` changes them."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import msgspec

from engines.gateway.core.engines import Engine
from engines.gateway.core.samples import LOGPROBS, TOKENS, Answer, Mark, Outcome, Request, SampleKey, Span, State
from trainers.protocol.gateway_messages import RolloutProgress

MAX_LOSSES: Final = 8
LOSING_S: Final = 60.0
"""So many attempts in a row that an engine accepted and failed with, for so long, without one new token: then it is the request's fault."""


Place = tuple[bool, int, float, int]
"""Where a sample stands in the queue (see `queue.queue_order`)."""


class Phase(Enum):
    EXPECTED = "expected"  # named by a request, not opened by the supervisor yet; nothing of it is dispatched
    OPEN = "open"
    CLOSED = "closed"  # only stored answers


@dataclass(slots=True, eq=False)
class Rollout:
    """`since`: when it was first named (expected), or last had something waiting or running (open).

    `work`: tokens expected to be generated yet, of all its samples and of the longest, as it was at `work_at`.
    """

    number: int
    serial: int
    phase: Phase
    since: float
    target: int = 0
    opened_after: int = 0
    samples: "dict[SampleKey, Sample]" = field(default_factory=dict)
    counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(State, 0))
    work: tuple[float, float] | None = None
    work_at: float = 0.0

    @property
    def implicit(self) -> bool:
        return self.number < 0

    @property
    def idle(self) -> bool:
        return not self.counts[State.WAITING] and not self.counts[State.IN_FLIGHT]

    def progress(self, work: tuple[float, float]) -> RolloutProgress:
        counts = self.counts
        return RolloutProgress(self.number, counts[State.WAITING], counts[State.IN_FLIGHT], counts[State.DONE], self.implicit, *work)

    def move(self, before: State | None, after: State | None, now: float) -> None:
        """Count a sample's change of state; None: it was, or is, none of ours."""
        if before is not None:
            self.counts[before] -= 1
        if after is not None:
            self.counts[after] += 1
        if self.phase is Phase.OPEN:
            self.since = now


@dataclass(slots=True, eq=False)
class Attempt:
    """One try of one sample on one engine. `start`: how many output tokens it began with. `sample` None: nobody wants it any more."""

    number: int
    engine: Engine
    version: int
    start: int
    sample: "Sample | None"
    aborting: bool = False
    marks: tuple[Mark, ...] = ()

    def spans(self, end: int) -> list[Span]:
        """Who made the output tokens [start, end). Where the engine labels none of them, the version it was routed with did."""
        marks = self.marks or (Mark("", 0, end - self.start),)
        made = []
        for mark in marks:
            first, last = self.start + mark.start, min(end, self.start + mark.end)
            if first < last:
                made.append(Span(self.engine.rank, self.engine.incarnation, self._version(mark.label), first, last))
        return made

    def _version(self, label: str) -> int:
        # The label is the supervisor's own number where it has loaded weights; an engine as launched says "default" or the like.
        return int(label) if label.isascii() and label.isdecimal() and len(label) <= 15 else self.version


@dataclass(slots=True, eq=False)
class Sample:
    """One sample of a rollout on its way. `askers`: who waits for it, and whether they want its tokens as they come.

    `prompt`: the hash of its prompt. `place`: where it stands in the queue, None while it does not. `known`: something was known of it
    when that was worked out last. `born`: the version under which its first token was asked for. `streamed`: somebody has been told tokens
    of it, which cannot be taken back.
    """

    key: SampleKey
    request: Request
    rollout: Rollout
    serial: int
    seed: int | None = None
    prompt: int = 0
    place: "Place | None" = None
    known: bool = False
    born: int = 0
    streamed: bool = False
    state: State = State.WAITING
    askers: dict[int, bool] = field(default_factory=dict)
    ids: "array[int]" = field(default_factory=lambda: array(TOKENS))
    logprobs: "array[float]" = field(default_factory=lambda: array(LOGPROBS))
    spans: list[Span] = field(default_factory=list)
    attempt: Attempt | None = None
    closing: bool = False
    losses: int = 0
    losing_since: float = 0.0
    outcome: Outcome | None = None

    def hurt(self, now: float) -> bool:
        """Count an engine that failed with it; whether it has been too many, for too long."""
        self.losses += 1
        self.losing_since = now if self.losses == 1 else self.losing_since
        return self.losses >= MAX_LOSSES and now - self.losing_since >= LOSING_S

    def restart(self) -> None:
        """Forget every token."""
        del self.ids[:], self.logprobs[:], self.spans[:]

    def keep(self, count: int) -> None:
        """Forget every token after the first `count`."""
        del self.ids[count:], self.logprobs[count:]
        self.spans = [msgspec.structs.replace(span, end=min(span.end, count)) for span in self.spans if span.start < count]

    def answer(self, reason: Mapping[str, Any], meta: Mapping[str, Any]) -> Answer:
        """What its askers get; `meta` is the engine's meta_info of the last attempt."""
        cached = meta.get("cached_tokens")
        if reason.get("type") == "length":
            reason = {**reason, "length": len(self.ids)}  # its last engine has counted its own part only
        return Answer(
            self.ids,
            self.logprobs,
            reason,
            tuple(self.spans),
            len(self.request.prompt),
            cached if isinstance(cached, int) else 0,
            meta if self.request.whole else None,
        )

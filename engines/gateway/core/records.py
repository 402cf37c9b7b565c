"""The records of the dispatch core are a rollout, a sample of it, and one attempt at the sample on one engine.

Each record is changed by its own methods, so that what belongs together changes together. What stays a plain field is written by one
module: `samples`, `askers`, `closing`, `outcome`, `state` and `target`/`phase` by `dispatch` and `rollouts`; `place` and `estimate` by
`ordering.order`; `aborting` and `marks` of an attempt by `attempts`; `work` by `ordering.forecast`.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, NamedTuple

import msgspec

from engines.gateway.core.engines import Engine
from engines.gateway.core.samples import SINGLE, TOKENS, Answer, Mark, Outcome, Request, Rows, SampleKey, Span, State, joined
from trainers.protocol.gateway_messages import RolloutProgress

MAX_TOKENS: Final = 1 << 29
"""Tokens of all prompts that are held for samples which are not done: 2 GiB."""
MAX_CANCELLED: Final = 1 << 20
"""So many names of a rollout's samples are kept that may be asked for after they were cancelled."""
CLOSED: Final = {"type": "abort", "message": "the rollout was closed"}
CANCELLED: Final = {"type": "abort", "message": "the trainer has cancelled it"}
ABORTED: Final = {"type": "abort", "message": "Aborted"}
"""Finish reasons of samples that are ended early with what there is of them; the last as SGLang says it of `/abort_request`."""
MAX_LIVES: Final = 2
"""So many lives of engines may die with a sample before it has made one new token; then it is the request's fault. Fewer than a restart budget.

Unless engines die without it, too: then their deaths prove nothing against it.
"""
MAX_LOSSES: Final = 8
LOSING_S: Final = 60.0
"""So many attempts in a row that an engine accepted and failed with, for so long, without one new token: then, too, it is the request's fault."""


class Place(NamedTuple):
    """The sort key of a waiting sample: the smallest is dispatched first. `sample_index` is 2**53 for a sample that has none."""

    implicit: bool
    rollout_serial: int
    minus_expected: float
    sample_index: int


class Estimate(NamedTuple):
    """How many tokens a sample is expected to need yet. `own`: something is known of this very sample or its prompt."""

    tokens: float
    own: bool


class Work(NamedTuple):
    """Tokens that the unfinished samples of a rollout are expected to need yet: all together, and the longest. (0, 0): too little is known."""

    expected: float = 0.0
    longest: float = 0.0


_AT_REST: Final = (None, State.DONE)
"""Nothing is held for a sample that is not there (None), or done: its prompt is needed no more."""


class Phase(Enum):
    EXPECTED = "expected"  # named by a request, not opened by the supervisor yet; nothing of it is dispatched
    OPEN = "open"
    CLOSED = "closed"  # only stored answers


@dataclass(slots=True, eq=False, kw_only=True)
class Rollout:
    """A rollout of the pipeline. `since`: when it was first named (expected), or last had something waiting or running (open).

    `tokens` are those of the prompts of its samples that are not done. `opened_after` counts the rollouts that have opened after it. `cancelled`:
    the samples that the trainer does not want, also those not asked for yet. `work` is what is expected of it, as it was at `work_at`.
    """

    number: int
    serial: int
    phase: Phase
    since: float
    target: int = 0
    opened_after: int = 0
    cancelled: set[str] = field(default_factory=set)
    samples: "dict[SampleKey, Sample]" = field(default_factory=dict)
    tokens: int = 0
    counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(State, 0))
    work: Work | None = None
    work_at: float = 0.0

    @property
    def implicit(self) -> bool:
        """Whether the gateway itself has opened it, for requests that came while none was open."""
        return self.number < 0

    @property
    def idle(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not self.counts[State.WAITING] and not self.counts[State.IN_FLIGHT]

    @property
    def unfinished(self) -> int:
        """Samples of it that are still to come, asked for already or not."""
        return max(self.target - self.counts[State.DONE], self.counts[State.WAITING] + self.counts[State.IN_FLIGHT])

    def progress(self, work: Work) -> RolloutProgress:
        """Return what the supervisor is shown of it."""
        return RolloutProgress(
            rollout=self.number,
            waiting=self.counts[State.WAITING],
            in_flight=self.counts[State.IN_FLIGHT],
            done=self.counts[State.DONE],
            implicit=self.implicit,
            expected=work.expected,
            longest=work.longest,
        )

    def count(self, before: State | None, after: State | None, now: float, tokens: int) -> None:
        """Count the change of state of a sample whose prompt has so many tokens; None: it was not, or is not any more, one of this rollout."""
        self.tokens += tokens * ((after not in _AT_REST) - (before not in _AT_REST))
        if before is not None:
            self.counts[before] -= 1
        if after is not None:
            self.counts[after] += 1
        if self.phase is Phase.OPEN:
            self.since = now


@dataclass(slots=True, eq=False, kw_only=True)
class Attempt:
    """One try of one sample on one engine.

    `version`: the weights that the engine was routed with. `start`: how many output tokens the attempt began with. `sample` None: nobody
    wants its tokens any more. `aborting`: the engine has been asked to end it. `marks`: the engine's labels of the tokens so far.
    `proven`: it has made a token that no attempt before has made, so that the request does not kill engines.
    """

    number: int
    engine: Engine
    version: int
    start: int
    sample: "Sample | None"
    aborting: bool = False
    proven: bool = False
    marks: tuple[Mark, ...] = ()

    def disown(self) -> None:
        """Part it from its sample: what it still brings is wanted by nobody."""
        if self.sample is not None:
            self.sample.attempt = None
            self.sample = None

    def release(self) -> None:
        """End it: the tokens that it has made get their spans. `sample` stays set, for what follows from the end."""
        if self.sample is not None:
            self.sample.spans += self.spans(len(self.sample.ids))
            self.sample.attempt = None

    def spans(self, end: int) -> list[Span]:
        """Return who made the output tokens [start, end). Where the engine labels none of them, the version it was routed with did."""
        marks = self.marks or (Mark("", 0, end - self.start),)
        made = []
        for mark in marks:
            first, last = self.start + mark.start, min(end, self.start + mark.end)
            if first < last:
                engine, version = self.engine, self._version(mark.label)
                made.append(Span(engine=engine.rank, incarnation=engine.incarnation, version=version, start=first, end=last))
        return made

    def _version(self, label: str) -> int:
        # The label is the supervisor's own number where it has loaded weights; an engine as launched says "default" or the like.
        return int(label) if label.isascii() and label.isdecimal() and len(label) <= 15 else self.version


@dataclass(slots=True, eq=False, kw_only=True)
class Sample:
    """One sample of a rollout on its way. `askers`: who waits for it, and whether they want its tokens as they come.

    `serial`: the order in which samples were asked for. `prompt`: the hash of its prompt. `place`: where it stands in the queue, None while
    it does not; `estimate`: what was expected of it when it got that place. `born`: the version under which its first token was asked for.
    `rows` and `prompt_meta`: as of an `Answer`.
    `streamed`: somebody has been sent tokens of it, which cannot be taken back. `closing`: the finish reason of one whose rollout is closed, or
    that was cancelled: what there is counts.
    `furthest`: the most tokens that it has had. `lost_lives`: ranks and incarnations that have died with it since it had more tokens than before.
    """

    key: SampleKey
    request: Request
    rollout: Rollout
    serial: int
    seed: int | None = None
    prompt: int = 0
    place: Place | None = None
    estimate: Estimate | None = None
    born: int = 0
    streamed: bool = False
    state: State = State.WAITING
    askers: dict[int, bool] = field(default_factory=dict)
    ids: "array[int]" = field(default_factory=lambda: array(TOKENS))
    logprobs: "array[float]" = field(default_factory=lambda: array(SINGLE))
    rows: dict[str, list[Any]] = field(default_factory=dict)
    prompt_meta: Mapping[str, Any] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    attempt: Attempt | None = None
    closing: Mapping[str, Any] | None = None
    losses: int = 0
    losing_since: float = 0.0
    furthest: int = 0
    lost_lives: tuple[tuple[int, int], ...] = ()
    outcome: Outcome | None = None

    @property
    def is_read(self) -> bool:
        """Whether somebody reads its tokens as they come."""
        return True in self.askers.values()

    @property
    def suspect(self) -> bool:
        """Whether an engine has died with it before it made a token: the next attempt is a trial."""
        return bool(self.lost_lives)

    def attempted(self, attempt: Attempt) -> None:
        """Record that this attempt at the rest of it begins; with the first token to come it is born under the attempt's weights."""
        if not self.ids:
            self.born = attempt.version
        self.attempt = attempt

    def grow(self, ids: Sequence[int], logprobs: Sequence[float], rows: Rows) -> None:
        """Add tokens, and the rows that come with them. An engine that makes some does not fail with the request."""
        if rows or self.rows:
            for name in {*self.rows, *rows}:
                known = self.rows.setdefault(name, [None] * len(self.ids))
                known.extend(rows.get(name) or [None] * len(ids))
        self.ids.extend(ids)
        self.logprobs = joined(self.logprobs, logprobs)
        self.losses = 0
        if len(self.ids) > self.furthest:
            self.furthest, self.lost_lives = len(self.ids), ()

    def count_loss(self, now: float) -> bool:
        """Count an engine that failed with it. Returns whether it has been too many, for too long."""
        self.losses += 1
        self.losing_since = now if self.losses == 1 else self.losing_since
        return self.losses >= MAX_LOSSES and now - self.losing_since >= LOSING_S

    def count_death(self, engine: Engine) -> bool:
        """Record that this life of the engine has died with it. Returns whether it has been too many."""
        if engine.life not in self.lost_lives:
            self.lost_lives = (*self.lost_lives, engine.life)
        return len(self.lost_lives) >= MAX_LIVES

    def restart(self) -> None:
        """Forget every token, and what was said of the prompt."""
        del self.ids[:], self.logprobs[:], self.spans[:]
        self.rows, self.prompt_meta = {}, {}

    def forget_prompt(self) -> None:
        """Let go of the prompt of a sample that is done: its answer is all that is asked for yet."""
        self.request = replace(self.request, prompt=array(TOKENS))

    def keep(self, count: int) -> None:
        """Forget every token after the first `count`."""
        del self.ids[count:], self.logprobs[count:]
        for values in self.rows.values():
            del values[count:]
        self.spans = [msgspec.structs.replace(span, end=min(span.end, count)) for span in self.spans if span.start < count]

    def answer(self, reason: Mapping[str, Any], meta: Mapping[str, Any]) -> Answer:
        """Return what its askers get; `meta` is meta_info of the attempt that made all of it, if one did."""
        if reason.get("type") == "length":
            reason = {**reason, "length": len(self.ids)}  # its last engine has counted its own part only
        return Answer(
            ids=self.ids,
            logprobs=self.logprobs,
            finish_reason=reason,
            spans=tuple(self.spans),
            prompt_tokens=len(self.request.prompt),
            rows=self.rows,
            prompt_meta=self.prompt_meta,
            meta=meta,
        )

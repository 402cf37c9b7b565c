"""The batch decides which sample's token each slot computes next: continuous batching, aborts, retraction, ends. No torch, clock or thread.

    batch.add(request)                                # waits for a slot
    feeds = batch.feeds()                             # one entry a slot: which token of which request goes in
    ended = batch.took(feeds, tokens, logprobs, "7")  # what came out, in the same order, by weights of version 7

A request's tokens so far (prompt and output) are fed one a step; when the last one is fed, what comes out is its next token.
A request that loses its slot (retraction) keeps its tokens and is replayed when it gets one again.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from engines.embedded.sampling import Draw, Known

FinishReason = dict[str, Any]
"""As SGLang writes it: {"type": "stop" | "length" | "abort", ...}."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Sampling:
    """What one sample wishes, checked and complete."""

    seed: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False


@dataclass
class Span:
    """Output tokens `start:end` were made by weights of `version`."""

    version: str
    start: int
    end: int


@dataclass
class Request:
    """A request is one sample under way. What is not given at the start is written by the batch only."""

    rid: str
    prompt: tuple[int, ...]
    sampling: Sampling
    logprobs_from: int = -1  # first prompt token whose log-probability is wanted; -1: none
    streams: bool = False
    interval: int = 1  # of a stream: no event for fewer tokens, but for the first and the last
    shown: int = 0
    output: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: dict[int, float] = field(default_factory=dict)  # by position
    spans: list[Span] = field(default_factory=list)
    retractions: int = 0
    fed: int = 0
    finish: FinishReason | None = None

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    def token(self, position: int) -> int:
        return self.prompt[position] if position < len(self.prompt) else self.output[position - len(self.prompt)]

    def show(self) -> bool:
        """Return whether its stream is due for an event, which then counts as sent."""
        due = self.streams and len(self.output) > self.shown and (self.shown == 0 or len(self.output) - self.shown >= self.interval)
        if due:
            self.shown = len(self.output)
        return due

    @property
    def stops(self) -> frozenset[int]:
        return frozenset() if self.sampling.ignore_eos else self.sampling.stop_tokens


@dataclass(frozen=True)
class Feed:
    """What slot `slot` computes in this step, and how its answer is used."""

    slot: int
    request: Request
    token: int
    position: int
    row: Draw | Known | None


ABORTED: Final[FinishReason] = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
ABORTED_WAITING: Final[FinishReason] = {"type": "abort", "message": "Abort in waiting queue", "status_code": None, "err_type": None}
NOT_FINITE: Final[FinishReason] = {
    "type": "abort",
    "message": "the model's logits are not finite: its weights are bad",
    "status_code": 500,
    "err_type": "InternalServerError",
}


class Batch:
    """The batch has the slots and the queue before them."""

    def __init__(self, slots: int, decode: Decode) -> None:
        self.slots: list[Request | None] = [None] * slots
        self.waiting: deque[Request] = deque()
        self.fresh: list[int] = []  # slots whose cache must be cleared before the next step
        self._decode = decode

    @property
    def running(self) -> list[Request]:
        return [request for request in self.slots if request is not None]

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(request is not None for request in self.slots)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def feeds(self) -> list[Feed]:
        """Give free slots to the requests that wait longest, then return what each occupied slot computes, in the order of slots."""
        for slot, occupant in enumerate(self.slots):
            if occupant is None and self.waiting:
                self.slots[slot] = self.waiting.popleft()
                self.fresh.append(slot)
        return [self._feed(slot, request) for slot, request in enumerate(self.slots) if request is not None]

    def _feed(self, slot: int, request: Request) -> Feed:
        at, following = request.fed, request.fed + 1
        row: Draw | Known | None = None
        if following == request.tokens:
            wishes = request.sampling
            early = len(request.output) < wishes.min_new_tokens
            row = Draw(
                seed=wishes.seed,
                position=following,
                temperature=wishes.temperature,
                top_p=wishes.top_p,
                top_k=wishes.top_k,
                min_p=wishes.min_p,
                banned=tuple(sorted(request.stops)) if early else (),
            )
        elif 0 <= request.logprobs_from <= following < len(request.prompt):
            row = Known(request.token(following))
        return Feed(slot, request, request.token(at), at, row)

    def took(self, feeds: Sequence[Feed], tokens: Sequence[int], logprobs: Sequence[float], version: str) -> list[Request]:
        """Record a step's answers (one of each for every *slot*, made with weights of `version`). Return the requests that have finished."""
        ended = []
        for feed in feeds:
            request = feed.request
            request.fed += 1
            if isinstance(feed.row, Known):
                request.prompt_logprobs[feed.position + 1] = logprobs[feed.slot]
            elif isinstance(feed.row, Draw):
                _append(request, tokens[feed.slot], logprobs[feed.slot], version)
                request.finish = self._ending(request)
            if request.finish is not None:
                self.slots[feed.slot] = None
                ended.append(request)
        return ended

    def _ending(self, request: Request) -> FinishReason | None:
        wishes, count = request.sampling, len(request.output)
        if not math.isfinite(request.logprobs[-1]):
            return NOT_FINITE
        if count >= wishes.max_new_tokens:
            return {"type": "length", "length": wishes.max_new_tokens}
        if request.output[-1] in request.stops:
            return {"type": "stop", "matched": request.output[-1]}
        if wishes.stop and count >= wishes.min_new_tokens:
            text = self._decode(request.output)
            for stop in wishes.stop:
                if stop in text:
                    return {"type": "stop", "matched": stop}
        return None

    def abort(self, matches: Callable[[str], bool]) -> list[Request]:
        """End every request whose id matches, with its tokens so far."""
        ended = []
        for slot, request in enumerate(self.slots):
            if request is not None and matches(request.rid):
                request.finish = dict(ABORTED)
                self.slots[slot] = None
                ended.append(request)
        staying: deque[Request] = deque()
        for request in self.waiting:
            if matches(request.rid):
                request.finish = dict(ABORTED_WAITING)
                ended.append(request)
            else:
                staying.append(request)
        self.waiting = staying
        return ended

    def retract(self) -> int:
        """Take every running request off its slot, to the head of the queue, in order; it will be replayed. Returns how many."""
        running = self.running
        for request in running:
            request.fed = 0
            request.retractions += 1
        self.waiting.extendleft(reversed(running))
        self.slots = [None] * len(self.slots)
        return len(running)


def _append(request: Request, token: int, logprob: float, version: str) -> None:
    request.output.append(token)
    request.logprobs.append(logprob)
    if request.spans and request.spans[-1].version == version:
        request.spans[-1].end += 1
    else:
        request.spans.append(Span(version, len(request.output) - 1, len(request.output)))

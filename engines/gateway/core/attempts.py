"""This module keeps the attempts that run on the engines: their start, what the engine sends for them, their end, and the orders that wait for it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from engines.gateway.core import continuation
from engines.gateway.core.engines import Engine, Engines
from engines.gateway.core.events import CLIENT_ERRORS, Abort, Broken, End, Finished, Grew, Refused, Start, Tokens
from engines.gateway.core.records import Attempt, Sample
from engines.gateway.core.samples import Failure, Rows, cut
from trainers.protocol.gateway_messages import Done

PATIENCE: Final = 5.0
"""Seconds for an engine to end a request that we have aborted; then the connection is cut and the tokens so far are kept. A drain must
be done before the supervisor takes the gateway for the one that hangs: at most a quarter of `drain_s`."""

RUNNING_PER_TOKEN: Final = 8
MOST_AT_ONCE: Final = 32
MOST_READ_AT_ONCE: Final = 8
"""An engine is asked for an event for so many tokens (SGLang's `stream_interval`): one more for every `RUNNING_PER_TOKEN` attempts that run
here or are about to, up to `MOST_AT_ONCE`, or `MOST_READ_AT_ONCE` where a client reads them as they come. So events do not come more often, the more runs.
An engine that dies takes at most so many tokens of a sample with it, and they are made again; a drained one says all that it has."""


def tokens_at_once(running: int, read: bool) -> int:
    """Return how many tokens an attempt's events should have that is one of `running`. `read`: a client reads them as they come."""
    return max(1, min(running // RUNNING_PER_TOKEN, MOST_READ_AT_ONCE if read else MOST_AT_ONCE))


@dataclass(slots=True)
class _Pending:
    """An order that is done when the last of these attempts has ended."""

    order: int
    attempts: set[int]


class StopMatch(NamedTuple):
    """The sample is complete with its first `kept` tokens, because they end with the stop string `stop`."""

    kept: int
    stop: str


class Attempts:
    """This holds every attempt that has started and has neither ended nor been cut. An engine's `running` is changed here only."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._abort_patience = patience
        self._running: dict[int, Attempt] = {}
        self._patience: dict[int, float] = {}
        self._pending: list[_Pending] = []

    @property
    def deadline(self) -> float | None:
        """When the first aborted attempt becomes overdue; None while nothing is being aborted."""
        return min(self._patience.values(), default=None)

    def get(self, number: int) -> Attempt | None:
        """Return the attempt, or None if it was cut: what still comes of it is an answer of the dead."""
        return self._running.get(number)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._running.values())

    def on(self, engine: Engine) -> list[Attempt]:
        """Return the attempts that run on this engine."""
        return [attempt for attempt in self._running.values() if attempt.engine is engine]

    def begin(self, number: int, sample: Sample, engine: Engine, slots: int) -> Start:
        """Start an attempt at the rest of the sample. `slots`: of all engines, so that no more than these will run."""
        attempt = Attempt(number=number, engine=engine, version=engine.version, start=len(sample.ids), sample=sample)
        sample.attempted(attempt)
        self._running[number] = attempt
        engine.running += 1
        engine.unproven += 1
        engine.trial = engine.trial or sample.suspect
        soon = max(len(self._running), min(slots, sample.rollout.unfinished))
        at_once = tokens_at_once(soon, sample.is_read)
        body = continuation.body_of_rest(sample.request, sample.ids, sample.seed, at_once)
        return Start(
            attempt=number,
            engine=engine.rank,
            incarnation=engine.incarnation,
            url=engine.url,
            key=engine.key,
            body=body,
            rows=continuation.asks_for_rows(sample.request),
        )

    def abort(self, attempt: Attempt, now: float) -> list[Abort]:
        """Ask the engine once to end it; after the patience it is among the `impatient`."""
        if attempt.aborting:
            return []
        attempt.aborting = True
        self._patience[attempt.number] = now + self._abort_patience
        return [Abort(attempt.number)]

    def impatient(self, now: float) -> list[Attempt]:
        """Return the attempts whose engines have not ended them in time after an abort."""
        return [self._running[number] for number, due in self._patience.items() if due <= now]

    def release(self, attempt: Attempt) -> list[Done]:
        """End the attempt: its slot is free, its tokens get their spans, and an order that waited for it may be done."""
        del self._running[attempt.number]
        self._patience.pop(attempt.number, None)
        attempt.engine.running -= 1
        if not attempt.proven:
            _stop_holding_up(attempt.engine)
        attempt.release()
        for pending in self._pending:
            pending.attempts.discard(attempt.number)
        done = [Done(pending.order) for pending in self._pending if not pending.attempts]
        self._pending = [pending for pending in self._pending if pending.attempts]
        return done

    def promise(self, order: int, attempts: Iterable[Attempt]) -> list[Done]:
        """Answer the order when the last of these has ended, or now if there is none."""
        numbers = {attempt.number for attempt in attempts}
        if not numbers:
            return [Done(order)]
        self._pending.append(_Pending(order, numbers))
        return []


# ---- what an engine sends for an attempt, and what that means for the sample and the engine


def receive(attempt: Attempt, sample: Sample, event: Tokens, decode: continuation.Decode | None) -> tuple[list[Grew], StopMatch | None]:
    """Add the tokens to the sample. Returns what its streaming askers get, and the stop string that has come if its engine cannot see it."""
    attempt.engine.tokens += len(event.ids)
    attempt.marks = event.marks
    request, known = sample.request, len(sample.ids)
    ids, logprobs, rows = event.ids, event.logprobs, event.rows
    if request.limit is not None and known + len(ids) > request.limit:
        room = max(0, request.limit - known)
        ids, logprobs, rows = ids[:room], logprobs[:room], cut(rows, 0, room)
    if attempt.start == 0 and event.prompt_meta:
        sample.prompt_meta = event.prompt_meta
    sample.grow(ids, logprobs, rows)
    match = None
    if request.stops and decode and attempt.start > 0:
        found = continuation.straddling(request, sample.ids, attempt.start, known, decode)
        if found is not None:
            match = StopMatch(*found)
            kept = max(0, match.kept - known)
            ids, logprobs, rows = ids[:kept], logprobs[:kept], cut(rows, 0, kept)
    return _grown(sample, ids, logprobs, rows), match


def _grown(sample: Sample, ids: Sequence[int], logprobs: Sequence[float], rows: Rows) -> list[Grew]:
    if not sample.is_read or sample.request.atomic or not ids:
        return []
    sample.streamed = True
    return [Grew(asker, list(ids), list(logprobs), rows) for asker, streams in sample.askers.items() if streams]


def prove(attempt: Attempt, sample: Sample) -> bool:
    """Note that the attempt has made a token. Returns whether that was news, so that others may start which it has held up."""
    if attempt.proven or sample.suspect:
        return False
    attempt.proven = True
    _stop_holding_up(attempt.engine)
    return True


def _stop_holding_up(engine: Engine) -> None:
    engine.unproven -= 1
    engine.trial = False  # while there is a trial, nothing else is unproven


def death_of(attempt: Attempt, sample: Sample, engines: Engines) -> Failure | None:
    """Count the death of the attempt's engine against the sample, if the attempt had made no token. Returns why it cannot be made, if so."""
    if attempt.proven or attempt.aborting or sample.closing or not sample.count_death(attempt.engine):
        return None
    if engines.died_without(sample.lost_lives):
        return None
    lives = " and ".join(f"engine {rank} (incarnation {incarnation})" for rank, incarnation in sample.lost_lives)
    return Failure(500, "request_failed", f"{lives} died with this request before one token came, the last with no other request to blame")


def note_end(attempt: Attempt, end: End, now: float) -> None:
    """Record what the end of the attempt says of its engine."""
    engine = attempt.engine
    match end:
        case Finished() if not is_abort(end):
            engine.succeeded()
        case Broken(busy=busy):
            engine.failed(now, busy)
        case Finished() if not attempt.aborting:
            engine.back_off(now)  # somebody else has aborted it, as a pause does


def is_abort(end: End) -> bool:
    """Whether the engine has ended the request before its natural end."""
    return isinstance(end, Finished) and end.reason.get("type") == "abort"


def failure_of(attempt: Attempt, sample: Sample, end: End, engines: Engines, now: float) -> Failure | None:
    """Return why the sample cannot be made, if that is what the end says; None: its rest may be tried elsewhere."""
    match end:
        case Finished(reason, _) if not attempt.aborting and (status := reason.get("status_code")) in CLIENT_ERRORS and is_abort(end):
            return Failure(int(status), "bad_request", str(reason.get("message", "the engine refused the request")))
        case Refused(status, message):
            return Failure(status, "bad_request", message)
        case Broken(died=True) if (failure := death_of(attempt, sample, engines)) is not None:
            return failure
        case Broken(cause, accepted) if accepted and not sample.closing and not attempt.aborting and sample.count_loss(now):
            text = f"{sample.losses} engines in a row failed with this request before one token came; the last: {cause}"
            return Failure(500, "request_failed", text)
        case _:
            return None

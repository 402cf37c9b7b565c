"""What an engine says of an attempt, and what that means for the sample and for the engine. PURE; `dispatch` does what follows from it."""

from collections.abc import Sequence
from typing import Final

from engines.gateway.core import continuation
from engines.gateway.core.events import Broken, End, Finished, Grew, Refused, Tokens
from engines.gateway.core.records import Attempt, Sample
from engines.gateway.core.samples import Failure

_CLIENT_ERRORS: Final = (400, 413, 422)
Cut = tuple[int, str]
"""So many tokens of a sample are kept, because they end with this stop string."""


def take(attempt: Attempt, sample: Sample, event: Tokens, decode: continuation.Decode | None) -> tuple[list[Grew], Cut | None]:
    """Add the tokens to the sample. Returns what those who stream are told, and whether a stop string has come that its engine cannot see."""
    attempt.engine.tokens += len(event.ids)
    attempt.marks = event.marks
    request, known = sample.request, len(sample.ids)
    room = len(event.ids) if request.limit is None else max(0, request.limit - known)
    ids, logprobs = event.ids[:room], event.logprobs[:room]
    sample.ids.extend(ids)
    sample.logprobs.extend(logprobs)
    sample.losses = 0
    cut = None
    if request.stops and decode and attempt.start > 0:
        cut = continuation.straddling(request, sample.ids, attempt.start, known, decode)
        if cut is not None:
            ids, logprobs = ids[: max(0, cut[0] - known)], logprobs[: max(0, cut[0] - known)]
    return _grown(sample, ids, logprobs), cut


def _grown(sample: Sample, ids: Sequence[int], logprobs: Sequence[float]) -> list[Grew]:
    if sample.request.whole or not ids:
        return []
    grown = [Grew(asker, ids, logprobs) for asker, streams in sample.askers.items() if streams]
    sample.streamed |= bool(grown)
    return grown


def judge(attempt: Attempt, end: End, now: float) -> None:
    """Note what the end says of the engine."""
    engine = attempt.engine
    match end:
        case Finished() if not aborted(end):
            engine.succeeded()
        case Broken(busy=busy):
            engine.failed(now, busy)
        case Finished() if not attempt.aborting:
            engine.rest(now)  # somebody else has aborted it, as a pause does


def aborted(end: End) -> bool:
    return isinstance(end, Finished) and end.reason.get("type") == "abort"


def refusal(attempt: Attempt, sample: Sample, end: End, now: float) -> Failure | None:
    """Why the sample cannot be made, if that is what the end says."""
    match end:
        case Finished(reason, _) if not attempt.aborting and (status := reason.get("status_code")) in _CLIENT_ERRORS and aborted(end):
            return Failure(int(status), "bad_request", str(reason.get("message", "the engine refused the request")))
        case Refused(status, message):
            return Failure(status, "bad_request", message)
        case Broken(cause, accepted) if accepted and not sample.closing and not attempt.aborting and sample.hurt(now):
            text = f"{sample.losses} engines in a row failed with this request before one token came; the last: {cause}"
            return Failure(500, "request_failed", text)
        case _:
            return None

"""This module reads SGLang's answer to one streaming request as it comes: bytes in, new tokens and at last the end out.

Each event is one JSON object with `output_ids` and `meta_info`. By default both are cumulative. With `--incremental-streaming-output`
(0.5.23) `text`, `output_ids` and the fields `PER_TOKEN` of meta_info hold what is new only; everything else in meta_info is as of now
(`completion_tokens`, `weight_versions`, the prompt's `input_*`, `hidden_states`) or comes with the last event (`routed_experts`).
`meta_info.completion_tokens` tells which of the two it is. `data: [DONE]` ends it; a stream without it is a dead engine.
"""

from array import array
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from engines.gateway.core.events import CLIENT_ERRORS, End, Finished, Refused, Tokens
from engines.gateway.core.samples import LOGPROBS, MAX_TOKEN, TOKENS, Mark

MAX_EVENT: Final = 256 << 20
"""No event may have more bytes: a cumulative one has some 30 bytes a token, one with hidden states far more."""

PER_TOKEN: Final = (
    "output_token_logprobs",
    "output_top_logprobs",
    "output_token_ids_logprobs",
    "output_token_sampling_mask",
    "output_token_sampling_logprobs",
)
"""These fields of meta_info have one row for each token of `output_ids`."""

_Token = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]


class StreamError(Exception):
    """The engine does not speak as it should: it has failed, not the request."""


class _Version(msgspec.Struct, gc=False):
    version: str
    start: _Count
    end: _Count


class _Meta(msgspec.Struct):
    completion_tokens: _Count = 0
    cached_tokens: _Count | None = None
    finish_reason: dict[str, Any] | str | None = None
    output_token_logprobs: list[tuple[float | None, _Token, Any]] | None = None
    weight_versions: list[_Version] | None = None
    weight_version: str | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: int | str | None = None


class _Event(msgspec.Struct):
    output_ids: list[_Token] = []
    meta_info: _Meta = msgspec.field(default_factory=_Meta)
    error: _Error | str | None = None


class _AllOfIt(msgspec.Struct):
    meta_info: dict[str, Any] = {}


_EVENT: Final = msgspec.json.Decoder(_Event)
_ALL_OF_IT: Final = msgspec.json.Decoder(_AllOfIt)
_NAN: Final = float("nan")


class Stream:
    """The stream of one attempt. `feed` yields `Tokens` as they come; `end` is set once the engine has ended the request."""

    def __init__(self, attempt: int, *, rows: bool = False) -> None:
        """`rows`: whether the request asks for more of each token, or of the prompt, than ids and log-probs."""
        self._attempt, self._wants_rows = attempt, rows
        self._buffer = bytearray()
        self._known = 0
        self._marks: tuple[Mark, ...] = ()
        self.end: End | None = None

    def feed(self, data: bytes) -> list[Tokens]:
        """Read further bytes and return what is new. Raises StreamError for what is not SGLang's dialect."""
        if self._buffer or not data.endswith(b"\n"):
            self._buffer += data
            if len(self._buffer) > MAX_EVENT:
                raise StreamError(f"an event of more than {MAX_EVENT} bytes")
            if b"\n" not in data:
                return []
            data, _, rest = bytes(self._buffer).rpartition(b"\n")
            self._buffer = bytearray(rest)
        made: list[Tokens] = []
        for line in data.split(b"\n"):
            if line.startswith(b"data:") and self.end is None and (body := line[5:].strip()) != b"[DONE]":
                self._event(body, made)
        return made

    def _event(self, body: bytes, made: list[Tokens]) -> None:
        try:
            event = _EVENT.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StreamError(f"an event does not decode: {error}") from error
        if event.error is not None:
            self.end = self._refusal(event.error)
            return
        tokens = self._news(event, _ALL_OF_IT.decode(body).meta_info if self._wants_rows else None)
        if tokens is not None:
            made.append(tokens)
        if (reason := event.meta_info.finish_reason) is not None:
            reason = {"type": reason} if isinstance(reason, str) else reason
            if not isinstance(reason.get("type"), str):
                raise StreamError(f"a finish_reason without a type: {reason}")
            meta = _ALL_OF_IT.decode(body).meta_info
            self.end = Finished(reason, {name: value for name, value in meta.items() if name not in (*PER_TOKEN, "finish_reason")})

    def _news(self, event: _Event, everything: dict[str, Any] | None) -> Tokens | None:
        """Return what is new in a cumulative or incremental event. Ids and log-probs are paired; more of one than of the other wait."""
        meta, known = event.meta_info, self._known
        pairs = meta.output_token_logprobs
        count = len(event.output_ids) if pairs is None else min(len(event.output_ids), len(pairs))
        if count >= max(meta.completion_tokens, known):
            first = known  # cumulative
        elif known + count == meta.completion_tokens:
            first = 0  # incremental
        elif meta.completion_tokens <= known:
            return None  # repeats what it has sent before: the last event of an abort
        else:
            raise StreamError(f"{meta.completion_tokens} tokens announced, {count} sent, {known} known")
        if first >= count:
            return None
        ids = array(TOKENS, event.output_ids[first:count])
        if pairs is None:
            logprobs = array(LOGPROBS, [_NAN]) * len(ids)
        else:
            logprobs = array(LOGPROBS, [_NAN if pair[0] is None else pair[0] for pair in pairs[first:count]])
        rows = {} if everything is None else _rows(everything, first, count)
        prompt = _of_prompt(meta, everything) if known == 0 else {}
        self._known = known + len(ids)
        self._mark(meta)
        return Tokens(self._attempt, ids, logprobs, self._marks, rows, prompt)

    def _mark(self, meta: _Meta) -> None:
        if spans := meta.weight_versions:
            last = spans[-1]
            before = tuple(Mark(span.version, span.start, span.end) for span in spans[:-1]) if len(spans) > 1 else ()
            self._marks = (*before, Mark(last.version, last.start, self._known))
        elif meta.weight_version is not None:
            last_mark = self._marks[-1] if self._marks else Mark(meta.weight_version, 0, 0)
            if last_mark.label == meta.weight_version:
                self._marks = (*self._marks[:-1], Mark(last_mark.label, last_mark.start, self._known))
            else:
                self._marks = (*self._marks, Mark(meta.weight_version, last_mark.end, self._known))

    @staticmethod
    def _refusal(error: _Error | str) -> End:
        if isinstance(error, _Error) and error.code in CLIENT_ERRORS:
            return Refused(int(error.code), error.message)
        raise StreamError(f"the engine answers with an error: {error if isinstance(error, str) else error.message}")


def _rows(meta: Mapping[str, Any], first: int, count: int) -> dict[str, list[Any]]:
    """Return the rows of the tokens [first, count) of an event. A row that the engine leaves out is None."""
    made = {}
    for name in PER_TOKEN:
        if isinstance(values := meta.get(name), list):
            rows = values[first:count]
            made[name] = rows + [None] * (count - first - len(rows))
    return made


def _of_prompt(meta: _Meta, everything: Mapping[str, Any] | None) -> dict[str, Any]:
    made = {} if everything is None else {name: value for name, value in everything.items() if name.startswith("input_")}
    return made if meta.cached_tokens is None else {**made, "cached_tokens": meta.cached_tokens}


def error_text(body: bytes) -> str:
    """Return the message in an error body of SGLang's (it has several shapes), else its beginning."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body[:500].decode(errors="replace")
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:2000]

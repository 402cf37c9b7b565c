"""This module says whether a request may be cut and continued on another engine, and what is sent then.

Token in, token out: the continuation's prompt is prompt + tokens so far. Three things need care at the seam.
An abort overtakes the end of a request, so the tokens so far may already end with an end-of-sequence token, a stop string or the last
token allowed (`finish_reason`). A stop string may lie across the seam, where neither engine sees it whole (`straddling`). And some options keep
state inside the engine or return what cannot be put together (penalties, grammars, experts, hidden states): those
requests are *atomic*, and are redone from the prompt (`is_atomic`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from engines.gateway.core.samples import Request

Decode = Callable[[Sequence[int]], str]

_NEUTRAL: Final[Mapping[str, Any]] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
    "stop_regex": None,
    "custom_params": None,
}
"""The sampling parameters that carry state over tokens, and the value with which they do not."""

PLAIN_OPTIONS: Final = frozenset({"extra_key", "priority", "lora_path"})
"""Fields of a body that do not change what is returned."""
ROW_OPTIONS: Final = frozenset({"logprob_start_len", "top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs"})
"""Fields of a body that ask for rows of tokens or of the prompt. Any field that is neither plain nor of these makes the request atomic."""


def is_atomic(params: Mapping[str, Any], options: Iterable[str], *, stops: bool, can_decode: bool) -> bool:
    """Whether the request must come from one engine in one piece."""
    if any(params.get(name, neutral) not in (neutral, None) for name, neutral in _NEUTRAL.items()):
        return True
    return (stops and not can_decode) or not (PLAIN_OPTIONS | ROW_OPTIONS).issuperset(options)


def asks_for_rows(request: Request) -> bool:
    """Return whether the request asks for more of each token, or of the prompt, than ids and log-probs."""
    return not PLAIN_OPTIONS.issuperset(request.options)


def body_of_rest(request: Request, ids: Sequence[int], seed: int | None, at_once: int = 1) -> dict[str, Any]:
    """Return the body of `POST /generate` for the rest after the output tokens `ids`, to be told so many at once.

    `seed` and `at_once` are for a request that brings none.
    """
    params = dict(request.params)
    params["max_new_tokens"] = None if request.limit is None else request.limit - len(ids)
    if seed is not None:
        params.setdefault("sampling_seed", seed)
    if at_once > 1:  # else an engine's own default holds
        params.setdefault("stream_interval", at_once)
    if ids and isinstance(least := params.get("min_new_tokens"), int):
        params["min_new_tokens"] = max(0, least - len(ids))
    return {
        **request.options,
        "input_ids": [*request.prompt, *ids],
        "sampling_params": params,
        "stream": True,
        "return_logprob": True,
        "logprob_start_len": -1 if ids else request.options.get("logprob_start_len", -1),  # the prompt's own are known already
    }


def finish_reason(request: Request, ids: Sequence[int], eos: frozenset[int], decode: Decode | None) -> dict[str, Any] | None:
    """Return the finish reason, if an interrupted request has in truth come to its end with these tokens."""
    if ids and not request.params.get("ignore_eos") and len(ids) > int(request.params.get("min_new_tokens") or 0):
        last = ids[-1]
        if last in request.stop_ids or last in eos:
            return {"type": "stop", "matched": last}
        if request.stops and decode and (matched := _stop_in(decode(ids[-_reach(request.stops) :]), request.stops)):
            return {"type": "stop", "matched": matched}
    if request.limit is not None and len(ids) >= request.limit:
        return {"type": "length", "length": request.limit}
    return None


def straddling(request: Request, ids: Sequence[int], seam: int, since: int, decode: Decode) -> tuple[int, str] | None:
    """Return the first stop string that began before `seam` and is complete with a token at or after `since`: (tokens kept, the string)."""
    reach = _reach(request.stops)
    for end in range(max(seam, since) + 1, min(len(ids), seam + reach) + 1):
        if matched := _stop_in(decode(ids[max(0, end - reach) : end]), request.stops):
            return end, matched
    return None


def _reach(stops: Iterable[str]) -> int:
    """Return how many tokens may hold the longest stop string: one byte each at worst, and one before that may hold its beginning."""
    return max((len(stop.encode()) for stop in stops), default=0) + 1


def _stop_in(text: str, stops: Iterable[str]) -> str | None:
    return next((stop for stop in stops if stop in text), None)

"""Requests whose answers through the gateway must be the engine's own, field by field, and how the two are asked and compared."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import aiohttp

VOLATILE = ("id", "e2e_latency", "weight_version", "weight_versions", "spans", "cached_tokens", "num_retractions")
OF_THE_SERVER = ("cached_tokens_details", "dp_rank", "response_sent_to_client_ts")
"""Fields that a real server adds: when, and by which of its parts."""
"""Fields of meta_info that are the gateway's own, or differ from one run of a request to the next."""
ASKED: dict[str, dict[str, Any]] = {
    "log-probs": {},
    "top": {"top_logprobs_num": 3},
    "ids": {"token_ids_logprob": [5, 6]},
    "text": {"return_text_in_logprobs": True},
    "prompt": {"logprob_start_len": 0},
    "prompt and top": {"logprob_start_len": 0, "top_logprobs_num": 2},
    "all": {"logprob_start_len": 1, "top_logprobs_num": 2, "token_ids_logprob": [7], "return_text_in_logprobs": True},
    "no log-probs": {"return_logprob": False},
    "no log-probs but top": {"return_logprob": False, "top_logprobs_num": 2},
}
SAMPLED: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition": {"repetition_penalty": 1.1},
    "presence": {"presence_penalty": 0.5},
    "frequency": {"frequency_penalty": 0.5},
    "regex": {"regex": "[a-f]{4,40}"},
}


def matrix(**params: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield 45 named bodies of `POST /generate`: each kind of log-probs with each kind of sampling."""
    for asked, options in ASKED.items():
        for sampled, more in SAMPLED.items():
            body = {"input_ids": [5, 9, 13, 21], "return_logprob": True, **options, "sampling_params": {**params, **more}}
            yield f"{asked}, {sampled}", body


async def answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any], key: str = "") -> Any:
    """The answer to a body of `/generate`; of a stream the last event."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with session.post(f"{url}/generate", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        if not body.get("stream"):
            return await response.json()
        lines = [line[6:] async for line in response.content if line.startswith(b"data: ")]
        assert lines[-1] == b"[DONE]\n"
        events = [json.loads(line) for line in lines[:-1]]
        for before, event in pairwise(events):
            assert event["output_ids"][: len(before["output_ids"])] == before["output_ids"]
        return events[-1]


def alike(one: Any, other: Any) -> bool:
    """Whether two answers are equal but for rounding, which a batch or a cached prefix changes."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-3
    return bool(one == other)


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two answers are not alike."""
    fields = sorted({*one, *other})
    return {field: (one.get(field), other.get(field)) for field in fields if not alike(one.get(field), other.get(field))}


def comparable(answer: dict[str, Any], *, text: bool = True) -> dict[str, Any]:
    """The answer without what may differ."""
    meta = {name: value for name, value in answer["meta_info"].items() if name not in (*VOLATILE, *OF_THE_SERVER)}
    return {"text": answer["text"] if text else None, "output_ids": answer["output_ids"], **meta}

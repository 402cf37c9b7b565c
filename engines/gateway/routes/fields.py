"""This module refuses fields of OpenAI's bodies that would change an answer and cannot be honoured. `agents.field_table` prints what becomes of each.

A field that is known to change an answer is honoured or refused. Fields that nobody here knows are passed over, as OpenAI's clients expect of servers
that are not OpenAI's.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from engines.gateway.routes.errors import RequestError

_EMPTY: Final[tuple[object, ...]] = (None, False, 0, "", [], {})
REFUSED: Final[Mapping[str, tuple[str, tuple[object, ...]]]] = {
    "audio": ("this model answers with text", ()),
    "modalities": ("this model answers with text", (["text"],)),
    "prediction": ("predicted outputs are not used", ()),
    "suffix": ("text cannot be filled in between", ()),
    "best_of": ("ask for n samples and choose", (1,)),
    "functions": ("use tools", ()),
    "function_call": ("use tool_choice", ("none",)),
    "web_search_options": ("there is no search", ()),
    "chat_template": ("a request's own template is not run; use chat_template_kwargs", ()),
    "documents": ("give them in the messages", ()),
    "session_params": ("sessions inside an engine end when it is paused; X-Trainshed-Session keeps a conversation on one engine", ()),
    "session_id": ("use X-Trainshed-Session", ()),
    "images_config": ("only text can be sent to this model", ()),
    "video_config": ("only text can be sent to this model", ()),
    "mm_processor_kwargs": ("only text can be sent to this model", ()),
    "max_dynamic_patch": ("only text can be sent to this model", ()),
    "min_dynamic_patch": ("only text can be sent to this model", ()),
    "use_audio_in_video": ("only text can be sent to this model", ()),
    "bootstrap_host": ("an engine reads and writes its own requests", ()),
    "bootstrap_port": ("an engine reads and writes its own requests", ()),
    "bootstrap_room": ("an engine reads and writes its own requests", ()),
    "data_parallel_rank": ("the gateway chooses the engine", ()),
    "routed_dp_rank": ("the gateway chooses the engine", ()),
    "watermark": ("answers are not marked", ()),
    "task": ("quick tasks are of one model's own server", ()),
    "return_sampling_mask": ("ask /generate", ()),
    "return_flat_raw_output_top_logprobs": ("ask /generate", ()),
    "prompt_logprobs": ("ask /v1/completions with echo and logprobs, or /generate with logprob_start_len", ()),
    "use_beam_search": ("there is no beam search", ()),
    "length_penalty": ("there is no beam search", (1, 1.0)),
    "truncate_prompt_tokens": ("a prompt is never cut", ()),
    "bad_words": ("use logit_bias", ()),
    "allowed_token_ids": ("use logit_bias", ()),
    "guided_json": ("use response_format", ()),
    "guided_regex": ("use regex", ()),
    "guided_choice": ("use regex", ()),
    "guided_grammar": ("use ebnf", ()),
    "structured_outputs": ("use response_format, regex or ebnf", ()),
}
"""Why each of these is refused, and with which values (beside empty ones) it asks for nothing."""

NEUTRAL: Final[Mapping[str, str]] = {
    "user": "who asks",
    "safety_identifier": "who asks",
    "metadata": "the client's own",
    "store": "nothing is stored",
    "service_tier": "there is one",
    "prompt_cache_key": "where it runs; use X-Trainshed-Session",
    "prompt_cache_retention": "where it runs",
    "cache_salt": "which cache it shares",
    "request_id": "its name inside an engine",
    "custom_labels": "metrics",
    "verbosity": "no model here knows it",
    "thinking": "no template here reads it; use chat_template_kwargs",
    "return_cached_tokens_details": "what the cache saved",
    "return_spec_tokens_details": "how it was computed",
    "stream_reasoning": "in how many pieces a stream comes",
}
"""These change nothing that is answered."""


def check(raw: bytes | bytearray) -> None:
    """Refuse a body with a field that would change the answer and cannot be honoured. Raises RequestError(400).

    A body that is no object is left to who decodes it.
    """
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    for name in fields.keys() & REFUSED.keys():
        remedy, harmless = REFUSED[name]
        if msgspec.json.decode(fields[name]) not in (*_EMPTY, *harmless):
            raise RequestError(400, "bad_request", f"{name!r} is not supported by this gateway: {remedy}")

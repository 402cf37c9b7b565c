"""This module turns bodies of OpenAI's `/v1/completions` into requests in SGLang's terms, and has what they share with chats."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from engines.gateway.core.samples import MAX_TOKEN, Request
from engines.gateway.routes import fields
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.request_bodies import MAX_COPIES, TokenId, decode, refuse_many, samples_of, token_prompts
from engines.gateway.routes.text import Text

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]
_Copies = Annotated[int, msgspec.Meta(ge=1, le=MAX_COPIES)]
_Top = Annotated[int, msgspec.Meta(ge=0, le=100)]
_COMPLETION_TOKENS: Final = 16
_COPIED: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "no_stop_trim",
    "logit_bias",
    "regex",
    "ebnf",
    "stop_regex",
    "custom_params",
)
"""These fields have the same name in SGLang's sampling_params."""
_OPTIONS: Final = (
    "lora_path",
    "extra_key",
    "priority",
    "custom_logit_processor",
    "return_hidden_states",
    "return_routed_experts",
    "routed_experts_start_len",
)
"""These have the same name in the body of SGLang's /generate."""


class StreamOptions(msgspec.Struct):
    """OpenAI's `stream_options`; `continuous_usage_stats` (vLLM, SGLang): every event says what has been used so far."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ResponseFormat(msgspec.Struct):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: dict[str, Any] | None = None
    structures: list[Any] | None = None
    triggers: list[str] | None = None
    format: Any = None


class Common(msgspec.Struct, kw_only=True):
    """The fields that both routes take, with SGLang's own additions and vLLM's `return_token_ids`. What becomes of others: `agents.fields`."""

    model: str | None = None
    max_tokens: _Count | None = None
    min_tokens: _Count | None = None
    n: _Copies | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    response_format: ResponseFormat | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    logit_bias: dict[str, float] | None = None
    regex: str | None = None
    ebnf: str | None = None
    stop_regex: str | list[str] | None = None
    custom_params: dict[str, Any] | None = None
    lora_path: str | None = None
    extra_key: str | None = None
    priority: int | None = None
    custom_logit_processor: str | None = None
    return_hidden_states: bool | None = None
    return_routed_experts: bool | None = None
    routed_experts_start_len: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    rid: str | None = None


class Completion(Common, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[TokenId | str | list[TokenId]]
    logprobs: _Top | bool | None = None
    echo: bool | None = None
    json_schema: str | dict[str, Any] | None = None
    add_special_tokens: bool | None = None

    @property
    def top(self) -> int | None:
        """Of how many other tokens log-probs are wanted; None: of none at all."""
        return None if self.logprobs is None or self.logprobs is False else int(self.logprobs)


def completion(raw: bytes | bytearray, text: Text) -> tuple[Completion, list[Request]]:
    """Return the body, and the requests prompt by prompt, copy by copy: OpenAI's order of choices. Raises RequestError(400)."""
    fields.check(raw)
    body = decode(raw, Completion)
    text.require()
    if body.echo and body.stream and body.top is not None:
        raise RequestError(400, "bad_request", "log-probs of an echoed prompt are not streamed: leave out stream")
    params = sampling_params(body, _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens)
    if body.json_schema is not None:
        params["json_schema"] = body.json_schema if isinstance(body.json_schema, str) else msgspec.json.encode(body.json_schema).decode()
    options = request_options(body, body.top or 0)
    if body.echo and body.top is not None:
        options["logprob_start_len"] = 0
    prompts = _prompts(body.prompt, text, special=body.add_special_tokens is not False)
    return body, samples_of([(prompt, params) for prompt in prompts], text, options=options)


def sampling_params(body: Common, limit: int | None) -> dict[str, Any]:
    """Return SGLang's sampling_params, with `n`. Raises RequestError(400)."""
    params = {name: value for name in _COPIED if (value := getattr(body, name)) is not None}
    params["n"], params["max_new_tokens"] = body.n, limit
    if body.min_tokens is not None:
        params["min_new_tokens"] = body.min_tokens
    if body.seed is not None:
        params["sampling_seed"] = body.seed % 2**63
    form = body.response_format
    if form is not None and form.type == "structural_tag":
        tag = {"type": form.type, "structures": form.structures, "triggers": form.triggers, "format": form.format}
        params["structural_tag"] = msgspec.json.encode({name: value for name, value in tag.items() if value is not None}).decode()
    elif form is not None and form.type != "text":
        params["json_schema"] = _schema(form)
    return params


def request_options(body: Common, top: int) -> dict[str, Any]:
    """Return the other fields of SGLang's /generate; `top`: of how many tokens log-probs are wanted beside the one that was chosen."""
    options = {name: value for name in _OPTIONS if (value := getattr(body, name))}
    return {**options, "top_logprobs_num": top, "return_text_in_logprobs": True} if top else options


def _schema(form: ResponseFormat) -> str:
    schema = {"type": "object"} if form.type == "json_object" else (form.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise RequestError(400, "bad_request", "response_format.json_schema.schema must be an object")
    return msgspec.json.encode(schema).decode()


def _prompts(prompt: str | Sequence[int | str | list[int]], text: Text, *, special: bool) -> list[list[int]]:
    texts = [prompt] if isinstance(prompt, str) else [one for one in prompt if isinstance(one, str)]
    tokens = [] if isinstance(prompt, str) else [one for one in prompt if not isinstance(one, str)]
    if texts and tokens:
        raise RequestError(400, "bad_request", "prompts are either texts or token ids, not both")
    refuse_many(len(texts or tokens))
    prompts = [text.encode(one, special=special) for one in texts] or token_prompts(tokens)[0]
    if not prompts or not all(prompts):
        raise RequestError(400, "bad_request", "a prompt is empty")
    return prompts


def echoed(body: Completion, text: Text) -> list[str]:
    """Return the text of each prompt, as it is repeated with `echo`."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    if all(isinstance(one, int) for one in body.prompt):
        return [text.decode([one for one in body.prompt if isinstance(one, int)])]
    return [one if isinstance(one, str) else text.decode(one) for one in body.prompt if not isinstance(one, int)]

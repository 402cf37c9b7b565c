"""This module turns the bodies of OpenAI's `/v1/completions` and `/v1/chat/completions` into requests in SGLang's terms."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from engines.gateway.core.samples import MAX_TOKEN, Request
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.request_bodies import MAX_COPIES, TokenId, copies, decode, refuse_many, samples_of, token_prompts
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
)
"""These fields have the same name in SGLang's sampling_params."""
_UNSUPPORTED: Final = ("tools", "functions", "tool_choice", "suffix", "echo", "audio", "modalities", "prediction")


class StreamOptions(msgspec.Struct):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class ResponseFormat(msgspec.Struct):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class _Common(msgspec.Struct, kw_only=True):
    """The fields that both routes take, with SGLang's own additions. Fields that nobody here knows are passed over, as OpenAI does."""

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
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    suffix: str | None = None
    echo: bool | None = None
    audio: Any = None
    modalities: list[str] | None = None
    prediction: Any = None


class Completion(_Common, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[TokenId | str | list[TokenId]]
    logprobs: _Top | None = None


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class Message(msgspec.Struct):
    """One turn of a conversation."""

    role: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    content: str | list[Part] | None = None
    name: str | None = None


class Chat(_Common, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: _Top | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def completion(raw: bytes | bytearray, text: Text) -> tuple[Completion, list[Request]]:
    """Return the body, and the requests prompt by prompt, copy by copy: OpenAI's order of choices. Raises RequestError(400)."""
    body = decode(raw, Completion)
    params = _params(body, _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens)
    options = _options(body.logprobs or 0)
    prompts = _prompts(body.prompt, text)
    return body, samples_of([(prompt, params) for prompt in prompts], text, options=options)


def chat(raw: bytes | bytearray, text: Text) -> tuple[Chat, list[Request]]:
    """Return the body, and the requests copy by copy. Without a limit the answer may go as far as the context reaches, as with SGLang."""
    body = decode(raw, Chat)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    messages = [
        {"role": message.role, "content": _content(message), **({"name": message.name} if message.name else {})}
        for message in body.messages
    ]
    kwargs = {
        name: value
        for name, value in (body.chat_template_kwargs or {}).items()
        if name not in ("messages", "tools", "add_generation_prompt")
    }
    prompt = text.chat(messages, kwargs)
    if not prompt:
        raise RequestError(400, "bad_request", "the messages make an empty prompt")
    options = _options((body.top_logprobs or 0) if body.logprobs else 0)
    return body, copies(prompt, _params(body, limit), text, options=options)


def _params(body: _Common, limit: int | None) -> dict[str, Any]:
    for name in _UNSUPPORTED:
        if getattr(body, name) not in (None, False, [], "none", ["text"]):
            raise RequestError(400, "bad_request", f"{name!r} is not supported by this gateway")
    params = {name: value for name in _COPIED if (value := getattr(body, name)) is not None}
    params["n"], params["max_new_tokens"] = body.n, limit
    if body.min_tokens is not None:
        params["min_new_tokens"] = body.min_tokens
    if body.seed is not None:
        params["sampling_seed"] = body.seed % 2**63
    if body.response_format is not None and body.response_format.type != "text":
        params["json_schema"] = _schema(body.response_format)
    return params


def _schema(form: ResponseFormat) -> str:
    schema = {"type": "object"} if form.type == "json_object" else (form.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise RequestError(400, "bad_request", "response_format.json_schema.schema must be an object")
    return msgspec.json.encode(schema).decode()


def _options(top: int) -> Mapping[str, Any]:
    return {"top_logprobs_num": top, "return_text_in_logprobs": True} if top else {}


def _content(message: Message) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    if any(part.type != "text" for part in message.content):
        raise RequestError(400, "bad_request", "only text can be sent to this model")
    return "".join(part.text or "" for part in message.content)


def _prompts(prompt: str | Sequence[int | str | list[int]], text: Text) -> list[list[int]]:
    texts = [prompt] if isinstance(prompt, str) else [one for one in prompt if isinstance(one, str)]
    tokens = [] if isinstance(prompt, str) else [one for one in prompt if not isinstance(one, str)]
    if texts and tokens:
        raise RequestError(400, "bad_request", "prompts are either texts or token ids, not both")
    refuse_many(len(texts or tokens))
    prompts = [text.encode(one) for one in texts] or token_prompts(tokens)[0]
    if not prompts or not all(prompts):
        raise RequestError(400, "bad_request", "a prompt is empty")
    return prompts

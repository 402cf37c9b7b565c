"""This module turns the body of `/v1/chat/completions` into requests in SGLang's terms, and says how their answers are to be read. No I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from engines.gateway.core.samples import MAX_TOKEN, Request
from engines.gateway.model_files import parsers
from engines.gateway.model_files.parsers import PLAIN, Tags
from engines.gateway.routes import fields
from engines.gateway.routes.agents import tool_choice
from engines.gateway.routes.agents.tool_choice import Tools
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.openai_bodies import Common, request_options, sampling_params
from engines.gateway.routes.request_bodies import TokenId, copies, decode
from engines.gateway.routes.text import Text

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]
_Top = Annotated[int, msgspec.Meta(ge=0, le=100)]
_OURS: Final = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize", "conversation")
"""A template's variables of these names are the gateway's to set."""
_THINKING: Final = ("thinking", "enable_thinking")
_TAIL: Final = 16
"""So many tokens hold the tag with which a template opens or closes reasoning at the end of a prompt."""


class Chat(Common, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: _Top | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | float | None = None
    separate_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    input_ids: list[TokenId] | None = None
    return_prompt_token_ids: bool | None = None

    @property
    def top(self) -> int | None:
        """Of how many other tokens log-probs are wanted; None: of none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


@dataclass(frozen=True, slots=True)
class Parsers:
    """The parsers of a pipeline, by SGLang's names; None: the answer is text as it is."""

    tool: str | None = None
    reasoning: str | None = None

    @classmethod
    def of(cls, text: Text, tool: str | None, reasoning: str | None) -> "Parsers":
        """Return those that the configuration names; where it is silent, those that the model's chat template tells of."""
        template = text.tokenizer.template if text.known else None
        names = tool or parsers.guess_tool_parser(template), reasoning or parsers.guess_reasoning_parser(template)
        return cls(*(None if name == parsers.NONE else name for name in names))


@dataclass(frozen=True, slots=True)
class Reading:
    """How an answer is to be read. `tags`: reasoning between two tags; else `reasoning` names an engine's parser. `open`: the prompt has begun it."""

    tools: Tools
    tool_parser: str | None
    reasoning: str | None = None
    tags: Tags | None = None
    open: bool = False

    @property
    def plain(self) -> bool:
        """Whether the text of the answer is its content, as it is."""
        return not self.tools.parsed and self.reasoning is None


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat as it is asked: its requests, copy by copy, and how their answers are to be read."""

    body: Chat
    requests: list[Request]
    reading: Reading


def asked_chat(raw: bytearray, text: Text, known: Parsers, make: Callable[[bytearray], Chat] | None = None) -> Asked:
    """Return what the bytes ask for; `make` makes a chat of them, where they are another dialect. Raises RequestError(400).

    Without a limit an answer may go as far as the context reaches, as with SGLang. What the request leaves open of sampling, generation_config.json says.
    """
    text.require()
    if make is None:
        fields.check(raw)
    body = decode(raw, Chat) if make is None else make(raw)
    tools = tool_choice.read(body.tools, body.tool_choice, parallel=body.parallel_tool_calls is not False)
    if tools.parsed and not tools.forced and known.tool is None:
        raise RequestError(
            400,
            "no_tool_parser",
            "it is not known how this model writes tool calls: name SGLang's parser in [pipeline.gateway] tool_parser, or ask with tool_choice "
            '"required" or "none"',
        )
    prompt = chat_prompt(body, text, tools)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    params = {**text.settings.sampling, **sampling_params(body, limit)}
    if tools.parsed:
        params.setdefault("skip_special_tokens", False)  # marks of calls may be special tokens
    if (schema := tools.schema) is not None:
        if {"json_schema", "regex", "ebnf", "structural_tag"} & params.keys():
            raise RequestError(400, "bad_request", "tool_choice forces a call: response_format, regex and ebnf cannot be kept beside it")
        params["json_schema"] = schema
    reading = _reading(body, text, known, tools, prompt)
    return Asked(body, copies(prompt, params, text, options=request_options(body, body.top or 0)), reading)


def chat_prompt(body: Chat, text: Text, tools: Tools | None = None) -> list[int]:
    """Return the token ids of a chat's prompt. Raises RequestError(400)."""
    if tools is None:
        tools = tool_choice.read(body.tools, body.tool_choice, parallel=True)
    prompt = list(body.input_ids) if body.input_ids is not None else _prompt(body, text, tools)
    if not prompt:
        raise RequestError(400, "bad_request", "the messages make an empty prompt")
    return prompt


def _prompt(body: Chat, text: Text, tools: Tools) -> list[int]:
    continued = bool(body.continue_final_message)
    if continued and body.add_generation_prompt:
        raise RequestError(
            400, "bad_request", "add_generation_prompt begins a new turn, continue_final_message goes on with the last one: set one"
        )
    if continued and body.messages[-1].get("role") != "assistant":
        raise RequestError(400, "bad_request", "continue_final_message: the last message must be the assistant's")
    begins = not continued and body.add_generation_prompt is not False
    return text.chat(
        body.messages, _variables(body), tools=tools.shown or None, add_generation_prompt=begins, continue_final_message=continued
    )


def _variables(body: Chat) -> Mapping[str, Any]:
    given = body.chat_template_kwargs or {}
    if wrong := [name for name in given if name in _OURS]:
        raise RequestError(400, "bad_request", f"chat_template_kwargs may not set {', '.join(wrong)}")
    made: dict[str, Any] = {}
    if body.reasoning_effort is not None:
        made["reasoning_effort"] = body.reasoning_effort
        if body.reasoning_effort == "none":
            made |= dict.fromkeys(_THINKING, False)
    return {**made, **given}


def _reading(body: Chat, text: Text, known: Parsers, tools: Tools, prompt: list[int]) -> Reading:
    if body.separate_reasoning is False or tools.forced or known.reasoning is None:
        return Reading(tools, known.tool)
    tags = PLAIN.get(known.reasoning)
    if tags is None:
        return Reading(tools, known.tool, known.reasoning)
    last = body.messages[-1].get("content") if body.continue_final_message else None
    before = last if isinstance(last, str) else text.decode_all(prompt[-_TAIL:])
    opened = parsers.is_open(before, tags, anywhere=last is not None)
    if tags.forced and not opened and before.rstrip().endswith(tags.end):
        tags = Tags(tags.begin, tags.end, call=tags.call)  # the template has closed it: this answer does not think
    return Reading(tools, known.tool, known.reasoning, tags, opened or tags.forced)

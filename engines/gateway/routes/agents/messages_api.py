"""This module serves Anthropic's `POST /v1/messages` and `/v1/messages/count_tokens` as a chat in another dialect."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from engines.gateway.routes.agents.chat_bodies import Chat, chat_prompt
from engines.gateway.routes.agents.chat_routes import Chats
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.request_bodies import decode
from engines.gateway.routes.responses import SSE_ALIVE, json_response, open_stream

_STOPS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "abort": "end_turn"}
_REFUSED: Final = ("container", "mcp_servers", "context_management")


class Messages(msgspec.Struct, kw_only=True):
    """The body of `/v1/messages`. Other fields of OpenAI's chat that SGLang adds (`chat_template_kwargs`, `return_token_ids`) are taken, too."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    seed: int | None = None
    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None


def chat_of(raw: bytearray) -> Chat:
    """Return the chat that a body asks for. Raises RequestError(400)."""
    body = decode(raw, Messages)
    for name in _REFUSED:
        if getattr(body, name):
            raise RequestError(400, "bad_request", f"{name!r} is not supported by this gateway: it runs no tools")
    messages = [{"role": "system", "content": _text(body.system, "system")}] if body.system else []
    for index, message in enumerate(body.messages):
        messages += _messages(message, f"messages[{index}]")
    variables = dict(body.chat_template_kwargs or {})
    if body.thinking is not None:
        thinks = body.thinking.get("type") != "disabled"
        variables = {"thinking": thinks, "enable_thinking": thinks, **variables}
    choice = body.tool_choice or {}
    return Chat(
        messages=messages,
        model=body.model,
        max_tokens=body.max_tokens,
        stop=body.stop_sequences,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        stream=body.stream,
        tools=None if body.tools is None else [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools)],
        tool_choice=_choice(choice),
        parallel_tool_calls=not choice.get("disable_parallel_tool_use"),
        chat_template_kwargs=variables or None,
        return_token_ids=body.return_token_ids,
    )


def _choice(choice: Mapping[str, Any]) -> str | dict[str, Any] | None:
    kind = choice.get("type", "auto")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind not in ("auto", "any", "none"):
        raise RequestError(400, "bad_request", f"tool_choice.type is {kind!r}: it must be auto, any, tool or none")
    return "required" if kind == "any" else str(kind)


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type", "custom") not in ("custom", None):
        raise RequestError(400, "bad_request", f"{where}.type is {tool['type']!r}: only tools that the client carries out can be called")
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema")}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _messages(message: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield a message as OpenAI's: results of tools come before what else a user says."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise RequestError(400, "bad_request", f"{where}.role must be user or assistant")
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    if not isinstance(content, list):
        raise RequestError(400, "bad_request", f"{where}.content must be a string or a list of blocks")
    texts, calls, thoughts = [], [], []
    for index, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(str(block.get("text", "")))
        elif kind == "tool_use" and role == "assistant":
            function = {"name": block.get("name"), "arguments": msgspec.json.encode(block.get("input") or {}).decode()}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "thinking" and role == "assistant":
            thoughts.append(str(block.get("thinking", "")))
        elif kind == "redacted_thinking":
            continue  # nobody here can read it
        elif kind == "tool_result" and role == "user":
            yield {
                "role": "tool",
                "tool_call_id": block.get("tool_use_id"),
                "content": _text(block.get("content"), f"{where}.content[{index}]"),
            }
        else:
            raise RequestError(400, "bad_request", f"{where}.content[{index}] is of type {kind!r}: only text can be sent to this model")
    if texts or calls or thoughts:
        made: dict[str, Any] = {"role": role, "content": "".join(texts)}
        if calls:
            made["tool_calls"] = calls
        if thoughts:
            made["reasoning_content"] = "".join(thoughts)
        yield made


def _text(content: object, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(block, dict) and block.get("type") == "text" for block in content):
        return "".join(str(block.get("text", "")) for block in content)
    raise RequestError(400, "bad_request", f"{where} must be text: only text can be sent to this model")


class MessagesRoutes:
    """The routes, over the chats of a pipeline."""

    def __init__(self, chats: Chats) -> None:
        self._chats = chats

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/messages`."""
        asked = await self._chats.read(request, chat_of)
        async with self._chats.ask(request, asked) as chat:
            if not asked.body.stream:
                return json_response(_message(await self._chats.complete(chat)))
            first = await chat.asking.begin()
            response = await open_stream(request, "text/event-stream", _failed)
            writer = _Stream(len(chat.requests[0].prompt))
            async for event in chat.events(self._chats.text, first):
                if event is None:
                    await response.write(SSE_ALIVE)
                elif "error" in event:
                    await response.write(_sse("error", {"type": "error", "error": event["error"]}))
                else:
                    for piece in writer.pieces(event):
                        await response.write(piece)
            await response.write_eof()
            return response

    async def count(self, request: web.Request) -> web.Response:
        """Answer `POST /v1/messages/count_tokens`."""
        prompt = await self._chats.decoded(request, lambda raw: chat_prompt(chat_of(raw), self._chats.text))
        return json_response({"input_tokens": len(prompt)})


def _message(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenAI's answer as Anthropic's message."""
    choice, usage = answer["choices"][0], answer["usage"]
    message = choice["message"]
    content: list[dict[str, Any]] = []
    if thought := message.get("reasoning_content"):
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    if message["content"] or not message.get("tool_calls"):
        content.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls") or ():
        content.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": _input(call)})
    reason, sequence = _stopped(choice)
    made = {
        "id": f"msg_{answer['id'].rpartition('-')[2]}",
        "type": "message",
        "role": "assistant",
        "model": answer["model"],
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
    }
    ids = {name: choice[name] for name in ("token_ids", "prompt_token_ids") if name in choice}
    return {**made, **ids, "spans": choice["spans"]}


def _input(call: Mapping[str, Any]) -> dict[str, Any]:
    made = decode(call["function"]["arguments"].encode() or b"{}", Any)
    return made if isinstance(made, dict) else {"arguments": made}


def _stopped(choice: Mapping[str, Any]) -> tuple[str, str | None]:
    matched = choice.get("matched_stop")
    if choice["finish_reason"] == "stop" and isinstance(matched, str):
        return "stop_sequence", matched
    return _STOPS.get(choice["finish_reason"], "end_turn"), None


class _Stream:
    """Writes OpenAI's events as Anthropic's: blocks of thinking, text and calls, one after the other."""

    def __init__(self, prompt: int) -> None:
        self._prompt, self._made = prompt, 0
        self._block = -1
        self._kind = ""
        self._last: dict[str, Any] = {}

    def pieces(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield what one of OpenAI's events becomes."""
        if not event["choices"]:
            yield from self._end(event["usage"]["completion_tokens"])
            return
        choice = event["choices"][0]
        delta = choice["delta"]
        if "role" in delta:
            usage = {"input_tokens": self._prompt, "output_tokens": 0}
            head = {"id": f"msg_{event['id'].rpartition('-')[2]}", "type": "message", "role": "assistant", "model": event["model"]}
            message = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
            yield _sse("message_start", {"type": "message_start", "message": message})
        if thought := delta.get("reasoning_content"):
            yield from self._grow("thinking", {"thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": thought})
        if text := delta.get("content"):
            yield from self._grow("text", {"text": ""}, {"type": "text_delta", "text": text})
        for call in delta.get("tool_calls") or ():
            self._kind += " ended"  # each call is a block of its own
            start = {"id": call["id"], "name": call["function"]["name"], "input": {}}
            yield from self._grow("tool_use", start, {"type": "input_json_delta", "partial_json": call["function"]["arguments"]})
        if choice["finish_reason"] is not None:
            self._last = choice

    def _grow(self, kind: str, start: dict[str, Any], delta: dict[str, Any]) -> Iterator[bytes]:
        if kind != self._kind:
            yield from self._close()
            self._block += 1
            self._kind = kind
            block = {"type": kind, **start}
            yield _sse("content_block_start", {"type": "content_block_start", "index": self._block, "content_block": block})
        yield _sse("content_block_delta", {"type": "content_block_delta", "index": self._block, "delta": delta})

    def _close(self) -> Iterator[bytes]:
        if self._block >= 0:
            yield _sse("content_block_stop", {"type": "content_block_stop", "index": self._block})

    def _end(self, made: int) -> Iterator[bytes]:
        yield from self._close()
        reason, sequence = _stopped(self._last) if self._last else ("end_turn", None)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield _sse("message_delta", {"type": "message_delta", "delta": delta, "usage": {"output_tokens": made}})
        yield _sse("message_stop", {"type": "message_stop"})


def _sse(name: str, event: Mapping[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + b"data: " + msgspec.json.encode(event) + b"\n\n"


def _failed(error: RequestError) -> bytes:
    return _sse("error", {"type": "error", "error": error.body()["error"]})

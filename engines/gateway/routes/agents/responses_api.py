"""This module serves OpenAI's `POST /v1/responses` as a chat in another dialect. Nothing is stored: a conversation is sent whole each time."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import uuid4

import msgspec
from aiohttp import web

from engines.gateway.routes.agents.chat_bodies import Chat
from engines.gateway.routes.agents.chat_routes import Chats
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.openai_bodies import ResponseFormat
from engines.gateway.routes.request_bodies import decode
from engines.gateway.routes.responses import SSE_ALIVE, json_response, open_stream

_REFUSED: Final = {
    "previous_response_id": "nothing is stored here; send the conversation's items",
    "conversation": "nothing is stored here; send the conversation's items",
    "prompt": "there are no stored prompts",
    "background": "an answer is waited for",
    "max_tool_calls": "tools are carried out by the client",
    "context_management": "a conversation is never cut",
}


class Responses(msgspec.Struct, kw_only=True):
    """The body of `/v1/responses`."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    truncation: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    seed: int | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None
    max_tool_calls: Any = None
    context_management: Any = None


def chat_of(raw: bytearray) -> Chat:
    """Return the chat that a body asks for. Raises RequestError(400)."""
    body = decode(raw, Responses)
    for name, why in _REFUSED.items():
        if getattr(body, name):
            raise RequestError(400, "bad_request", f"{name!r} is not supported by this gateway: {why}")
    if body.truncation not in (None, "disabled"):
        raise RequestError(400, "bad_request", "'truncation' is not supported by this gateway: a prompt is never cut")
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    messages += [{"role": "user", "content": body.input}] if isinstance(body.input, str) else list(_messages(body.input))
    if not messages:
        raise RequestError(400, "bad_request", "input has no items")
    return Chat(
        messages=messages,
        model=body.model,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        logprobs=True if body.top_logprobs else None,
        top_logprobs=body.top_logprobs,
        stream=body.stream,
        tools=None if body.tools is None else [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools)],
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=(body.reasoning or {}).get("effort"),
        response_format=_format((body.text or {}).get("format")),
        chat_template_kwargs=body.chat_template_kwargs,
        return_token_ids=body.return_token_ids,
        seed=body.seed,
    )


def _format(given: Any) -> ResponseFormat | None:
    if not isinstance(given, dict) or given.get("type") in (None, "text"):
        return None
    if given["type"] not in ("json_schema", "json_object"):
        raise RequestError(400, "bad_request", f"text.format.type is {given['type']!r}: it must be text, json_object or json_schema")
    return ResponseFormat(given["type"], {"schema": given.get("schema")} if given["type"] == "json_schema" else None)


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise RequestError(
            400, "bad_request", f"{where}.type is {tool.get('type')!r}: only functions that the client carries out can be called"
        )
    kept = {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": kept}


def _messages(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the items as messages of a chat: what an assistant thought, said and called in one turn is one message."""
    turn: dict[str, Any] | None = None
    for index, item in enumerate(items):
        kind, where = item.get("type", "message"), f"input[{index}]"
        own = kind in ("reasoning", "function_call") or (kind == "message" and item.get("role") == "assistant")
        if turn is not None and (not own or (kind == "message" and turn["content"]) or (kind == "reasoning" and turn.get("tool_calls"))):
            yield turn
            turn = None
        if own and turn is None:
            turn = {"role": "assistant", "content": ""}
        if kind == "message" and turn is not None:
            turn["content"] = _text(item.get("content"), where)
        elif kind == "message":
            role = "system" if item.get("role") == "developer" else item.get("role")
            yield {"role": role, "content": _text(item.get("content"), where)}
        elif kind == "reasoning" and turn is not None:
            turn["reasoning_content"] = _text(item.get("content") or item.get("summary"), where)
        elif kind == "function_call" and turn is not None:
            function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
            turn.setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": function})
        elif kind == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": _text(item.get("output"), where)}
        else:
            raise RequestError(400, "bad_request", f"{where} is of type {kind!r}, which is not supported by this gateway")
    if turn is not None:
        yield turn


def _text(content: object, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    raise RequestError(400, "bad_request", f"{where} must be text: only text can be sent to this model")


class ResponsesRoutes:
    """The route, over the chats of a pipeline."""

    def __init__(self, chats: Chats) -> None:
        self._chats = chats

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/responses`."""
        asked = await self._chats.read(request, chat_of)
        async with self._chats.ask(request, asked) as chat:
            if not asked.body.stream:
                return json_response(_response(await self._chats.complete(chat), asked.body))
            first = await chat.asking.begin()
            response = await open_stream(request, "text/event-stream", _failed)
            writer = _Stream(asked.body)
            async for event in chat.events(self._chats.text, first):
                if event is None:
                    await response.write(SSE_ALIVE)
                elif "error" in event:
                    await response.write(writer.event("error", **event["error"]))
                else:
                    for piece in writer.pieces(event):
                        await response.write(piece)
            await response.write_eof()
            return response


def _response(answer: Mapping[str, Any], body: Chat) -> dict[str, Any]:
    """Return OpenAI's answer of a chat as a response."""
    choice = answer["choices"][0]
    message = choice["message"]
    items = []
    if thought := message.get("reasoning_content"):
        items.append(_reasoning(thought))
    if message["content"] or not message.get("tool_calls"):
        items.append(_said(message["content"], _logprobs(choice.get("logprobs"))))
    items += [_called(call) for call in message.get("tool_calls") or ()]
    made = _frame(answer["id"], answer["model"], answer["created"], body)
    made |= {"output": items, "usage": _usage(answer["usage"]), **_status(choice["finish_reason"])}
    ids = {name: choice[name] for name in ("token_ids", "prompt_token_ids") if name in choice}
    return {**made, **ids, "spans": choice["spans"]}


def _frame(id: str, model: str, created: int, body: Chat) -> dict[str, Any]:
    return {
        "id": f"resp_{id.rpartition('-')[2]}",
        "object": "response",
        "created_at": created,
        "model": model,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "max_output_tokens": body.max_tokens,
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"type": "function", "parameters": None, "strict": None, **tool["function"]} for tool in body.tools or ()],
        "store": False,
        "truncation": "disabled",
        "usage": None,
    }


def _status(reason: str | None) -> dict[str, Any]:
    if reason == "length":
        return {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return {"status": "incomplete" if reason == "abort" else "completed"}


def _usage(usage: Mapping[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def _logprobs(logprobs: Mapping[str, Any] | None) -> list[Any]:
    return list((logprobs or {}).get("content") or ())


def _reasoning(text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": f"rs_{uuid4().hex}", "summary": [], "content": content, "status": "completed"}


def _said(text: str, logprobs: list[Any]) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}]
    return {"type": "message", "id": f"msg_{uuid4().hex}", "role": "assistant", "status": "completed", "content": content}


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    head = {"type": "function_call", "id": f"fc_{uuid4().hex}", "call_id": call["id"], "status": "completed"}
    return {**head, "name": function["name"], "arguments": function["arguments"]}


class _Stream:
    """Writes a chat's events as a response's: items of reasoning, text and calls, one after the other, then the whole."""

    def __init__(self, body: Chat) -> None:
        self._body, self._number = body, 0
        self._frame: dict[str, Any] = {}
        self._items: list[dict[str, Any]] = []
        self._kind, self._grown = "", ""
        self._logprobs: list[Any] = []
        self._reason: str | None = None

    def event(self, kind: str, **fields: Any) -> bytes:
        """Return one event."""
        made = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\n".encode() + b"data: " + msgspec.json.encode(made) + b"\n\n"

    def pieces(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield what one of a chat's events becomes."""
        if not event["choices"]:
            yield from self._close()
            made = {**self._frame, "output": self._items, "usage": _usage(event["usage"]), **_status(self._reason)}
            yield self.event("response.completed" if made["status"] == "completed" else "response.incomplete", response=made)
            return
        choice = event["choices"][0]
        delta = choice["delta"]
        if "role" in delta:
            self._frame = _frame(event["id"], event["model"], event.get("created", int(time.time())), self._body)
            yield self.event("response.created", response=self._frame)
            yield self.event("response.in_progress", response=self._frame)
        if thought := delta.get("reasoning_content"):
            yield from self._grow("reasoning", thought)
        if text := delta.get("content"):
            self._logprobs += _logprobs(choice.get("logprobs"))
            yield from self._grow("message", text)
        for call in delta.get("tool_calls") or ():
            yield from self._close()
            item = _called(call)
            at = {"output_index": len(self._items), "item_id": item["id"]}
            self._items.append(item)
            begun = {**item, "status": "in_progress", "arguments": ""}
            yield self.event("response.output_item.added", output_index=at["output_index"], item=begun)
            yield self.event("response.function_call_arguments.delta", **at, delta=item["arguments"])
            yield self.event("response.function_call_arguments.done", **at, arguments=item["arguments"], name=item["name"])
            yield self.event("response.output_item.done", output_index=at["output_index"], item=item)
        self._reason = choice["finish_reason"] or self._reason

    def _grow(self, kind: str, text: str) -> Iterator[bytes]:
        if kind != self._kind:
            yield from self._close()
            self._kind = kind
            item = _reasoning("") if kind == "reasoning" else _said("", [])
            self._items.append(item)
            part = item["content"][0]
            yield self.event("response.output_item.added", output_index=self._at, item={**item, "status": "in_progress", "content": []})
            yield self.event("response.content_part.added", output_index=self._at, item_id=item["id"], content_index=0, part=part)
        self._grown += text
        name, at = self._part, {"output_index": self._at, "item_id": self._items[-1]["id"], "content_index": 0}
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        yield self.event(f"response.{name}.delta", **at, delta=text, **more)

    @property
    def _at(self) -> int:
        return len(self._items) - 1

    @property
    def _part(self) -> str:
        return "reasoning_text" if self._kind == "reasoning" else "output_text"

    def _close(self) -> Iterator[bytes]:
        if not self._kind:
            return
        item = self._items[-1]
        part = item["content"][0]
        part["text"] = self._grown
        at = {"output_index": self._at, "item_id": item["id"], "content_index": 0}
        more: dict[str, Any] = {}
        if self._kind == "message":
            part["logprobs"] = more["logprobs"] = self._logprobs
        yield self.event(f"response.{self._part}.done", **at, text=self._grown, **more)
        yield self.event("response.content_part.done", **at, part=part)
        yield self.event("response.output_item.done", output_index=self._at, item=item)
        self._kind, self._grown, self._logprobs = "", "", []


def _failed(error: RequestError) -> bytes:
    made = error.body()["error"]
    return b"event: error\ndata: " + msgspec.json.encode({**made, "type": "error", "sequence_number": 0}) + b"\n\n"

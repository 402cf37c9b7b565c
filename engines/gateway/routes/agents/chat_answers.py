"""This module writes what was read of a chat's answers in OpenAI's shapes: messages, deltas, finish reasons."""

from collections.abc import Sequence
from typing import Any

from engines.gateway.core.samples import Answer, Request, Rows, cut
from engines.gateway.routes.agents.reading import Read, Reader, ReadStream
from engines.gateway.routes.openai_answers import Shape, reason
from engines.gateway.routes.text import Text, TextStream


def message(read: Read) -> dict[str, Any]:
    """Return the assistant's message. Content is "" and not null beside calls, as SGLang's, so that the next prompt is made of the same tokens."""
    made: dict[str, Any] = {"role": "assistant", "content": read.content}
    if read.reasoning:
        made["reasoning_content"] = read.reasoning
    if read.calls:
        made["tool_calls"] = _calls(read)
    return made


def finish_reason(read: Read, answer: Answer) -> str:
    """Return OpenAI's finish_reason: calls that are complete end a turn."""
    named = reason(answer)
    return "tool_calls" if read.calls and named == "stop" else named


def _calls(read: Read) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "index": index, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for index, call in enumerate(read.calls)
    ]


async def choice(reader: Reader, shape: Shape, text: Text, index: int, request: Request, answer: Answer) -> dict[str, Any]:
    """Return one choice of an answer that is not streamed."""
    read = await reader.whole(text.answer(answer.ids, answer.finish_reason, request.params), answer)
    return {**shape.choice(index, request, answer), "message": message(read), "finish_reason": finish_reason(read, answer)}


class ChatStream:
    """One choice of a stream, piece by piece."""

    def __init__(self, reader: Reader, shape: Shape, text: Text, index: int, request: Request) -> None:
        self._shape, self._text, self._index, self._request = shape, text, index, request
        self._stream = TextStream(text, request.params, request.stops)
        self._read = None if reader.reading.plain else ReadStream(reader)
        self._seen, self._calls = 0, 0

    def first(self) -> dict[str, Any]:
        """Return the event with which it begins: the role, and the prompt's token ids where they are wanted."""
        return self._shape.piece(self._index, {"delta": {"role": "assistant", "content": ""}}, prompt=self._request.prompt)

    def grow(self, ids: Sequence[int], logprobs: Sequence[float], rows: Rows) -> dict[str, Any]:
        """Return the event for further tokens."""
        self._seen += len(ids)
        piece = self._stream.push(ids)
        read = Read(piece) if self._read is None else self._read.push(piece)
        return self._shape.piece(self._index, {"delta": _delta(read)}, ids=ids, logprobs=logprobs, rows=rows)

    async def end(self, answer: Answer) -> dict[str, Any]:
        """Return the last event, with what the earlier ones did not have."""
        piece = self._stream.finish(self._text.answer(answer.ids, answer.finish_reason, self._request.params))
        read = Read(piece) if self._read is None else await self._read.finish(piece, answer)
        ids, logprobs = answer.ids[self._seen :].tolist(), answer.logprobs[self._seen :].tolist()
        rows = cut(answer.rows, self._seen, None)
        made = {"delta": _delta(read), "finish_reason": finish_reason(read, answer)}
        return self._shape.piece(self._index, made, ids=ids, logprobs=logprobs, rows=rows, answer=answer)


def _delta(read: Read) -> dict[str, Any]:
    made: dict[str, Any] = {"content": read.content}
    if read.reasoning:
        made["reasoning_content"] = read.reasoning
    if read.calls:
        made["tool_calls"] = _calls(read)
    return made

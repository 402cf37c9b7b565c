"""This module serves `POST /v1/chat/completions`. `Chats` asks and reads for every dialect of a chat; the others write its answers in their own shapes."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from engines.gateway.core.events import Deliver, Grew
from engines.gateway.core.samples import Answer, Failure, Request
from engines.gateway.routes.agents.chat_answers import ChatStream, choice
from engines.gateway.routes.agents.chat_bodies import Asked, Chat, Parsers, asked_chat
from engines.gateway.routes.agents.reading import Reader
from engines.gateway.routes.asking import Asking, hinted, identity, sample_names
from engines.gateway.routes.body_reader import BodyReader
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.openai_answers import Shape
from engines.gateway.routes.openai_routes import wanted, wants_usage
from engines.gateway.routes.responses import DONE, SSE_ALIVE, json_response, open_stream, sse, sse_failed
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell

T = TypeVar("T")


@dataclass(slots=True)
class Conversation:
    """A chat that is being asked. `reader` reads its answers."""

    requests: Sequence[Request]
    reader: Reader
    shape: Shape
    asking: Asking

    async def events(self, text: Text, first: Sequence[tuple[int, Grew | Deliver]]) -> AsyncIterator[dict[str, Any] | None]:
        """Yield OpenAI's events, beginning with what has come; None: nothing came for a while. Raises RequestError."""
        streams = [ChatStream(self.reader, self.shape, text, index, one) for index, one in enumerate(self.requests)]
        done: dict[int, Answer] = {}
        for stream in streams:
            yield stream.first()
        for item in first:
            yield await _event(streams, done, item)
        async for arrival in self.asking.arrivals():
            yield None if arrival is None else await _event(streams, done, arrival)
        yield self.shape.last(done)


async def _event(streams: Sequence[ChatStream], done: dict[int, Answer], item: tuple[int, Grew | Deliver]) -> dict[str, Any]:
    index, effect = item
    if isinstance(effect, Grew):
        return streams[index].grow(effect.ids, effect.logprobs, effect.rows)
    if isinstance(effect.outcome, Failure):
        return RequestError.of(effect.outcome).body()
    done[index] = effect.outcome
    return await streams[index].end(effect.outcome)


class Chats:
    """Asks chats over one shell. `model`: the name of the pipeline's model; any name is accepted."""

    def __init__(self, shell: Shell, text: Text, model: str, bodies: BodyReader, parsers: Parsers) -> None:
        self.shell, self.text, self.model, self.parsers = shell, text, model, parsers
        self._bodies = bodies

    async def read(self, request: web.Request, body: Callable[[bytearray], Chat] | None = None) -> Asked:
        """Return the chat that a request asks for; `body` makes it of the bytes, where they are not OpenAI's chat. Raises RequestError."""
        return await self.decoded(request, lambda raw: asked_chat(raw, self.text, self.parsers, body))

    async def decoded(self, request: web.Request, work: Callable[[bytearray], T]) -> T:
        """Return `work(body)` on the body of a request. Raises RequestError."""
        return await self._bodies.decoded(request, work)

    @asynccontextmanager
    async def ask(self, request: web.Request, asked: Asked) -> AsyncIterator[Conversation]:
        """Ask this chat; what is still open at the end of the block is given up. Raises RequestError."""
        body, requests = asked.body, asked.requests
        reader = Reader(self.shell, asked.reading, turns=_calls_so_far(body.messages))
        what = wanted(body, body.top, prompt_ids=bool(body.return_prompt_token_ids))
        shape = Shape(self.text, body.model or self.model, chat=True, wanted=what)
        rollout, token = identity(request)
        requests = hinted(request, requests)
        names, rids = sample_names(token, len(requests)), [body.rid or shape.id] * len(requests)
        async with Asking(self.shell, requests, rollout, names, streams=bool(body.stream), rids=rids) as asking:
            yield Conversation(requests, reader, shape, asking)

    async def complete(self, chat: Conversation) -> dict[str, Any]:
        """Wait for every answer, and return OpenAI's."""
        answers = await chat.asking.all()
        choices = [await choice(chat.reader, chat.shape, self.text, index, one, answers[index]) for index, one in enumerate(chat.requests)]
        return chat.shape.complete(choices, chat.requests, answers)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/chat/completions`."""
        asked = await self.read(request)
        body = asked.body
        async with self.ask(request, asked) as chat:
            if not body.stream:
                return json_response(await self.complete(chat))
            first = await chat.asking.begin()
            response = await open_stream(request, "text/event-stream", sse_failed)
            async for event in chat.events(self.text, first):
                if event is None:
                    await response.write(SSE_ALIVE)
                elif "choices" not in event or event["choices"] or wants_usage(body):
                    await response.write(sse(event))
            await response.write(DONE)
            await response.write_eof()
            return response


def _calls_so_far(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(calls) for message in messages if isinstance(calls := message.get("tool_calls"), list))

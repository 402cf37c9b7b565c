"""This module serves OpenAI's routes. Text becomes tokens here, so that a drained request goes on elsewhere token by token."""

from typing import Any, Final

from aiohttp import web

from engines.gateway.core.events import Deliver, Grew
from engines.gateway.core.samples import Answer, Failure, Request
from engines.gateway.routes import openai_bodies
from engines.gateway.routes.asking import Asking, hinted, identity, sample_names
from engines.gateway.routes.body_reader import BodyReader, off_the_loop
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.generate import encoded_size
from engines.gateway.routes.openai_answers import ChoiceStream, Shape
from engines.gateway.routes.responses import DONE, SSE_ALIVE, json_response, open_stream, sse, sse_failed
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell

_CREATED: Final = 0


class OpenAIRoutes:
    """The three routes, over one shell. `model`: the name under which the pipeline's model is listed; any name is accepted."""

    def __init__(self, shell: Shell, text: Text, model: str, bodies: BodyReader) -> None:
        self._shell, self._text, self._model, self._bodies = shell, text, model, bodies

    async def models(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/models`."""
        return json_response(
            {"object": "list", "data": [{"id": self._model, "object": "model", "created": _CREATED, "owned_by": "trainshed"}]}
        )

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/completions`."""
        body, requests = await self._bodies.decoded(request, lambda raw: openai_bodies.completion(raw, self._text))
        shape = Shape(self._text, body.model or self._model, chat=False, top=body.logprobs)
        return await self._answer(request, requests, shape, stream=bool(body.stream), usage=_wants_usage(body.stream_options))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/chat/completions`."""
        body, requests = await self._bodies.decoded(request, lambda raw: openai_bodies.chat(raw, self._text))
        shape = Shape(self._text, body.model or self._model, chat=True, top=(body.top_logprobs or 0) if body.logprobs else None)
        return await self._answer(request, requests, shape, stream=bool(body.stream), usage=_wants_usage(body.stream_options))

    async def _answer(
        self, request: web.Request, requests: list[Request], shape: Shape, *, stream: bool, usage: bool
    ) -> web.StreamResponse:
        if not self._text.known:
            raise RequestError(400, "no_tokenizer", "this model has no tokenizer.json: ask /generate with token ids (input_ids)")
        rollout, token = identity(request)
        requests = hinted(request, requests)
        async with Asking(self._shell, requests, rollout, sample_names(token, len(requests)), streams=stream) as asking:
            if not stream:
                answers = await asking.all()
                return json_response(await off_the_loop(encoded_size(answers), shape.complete, requests, answers))
            return await self._streamed(request, asking, requests, shape, usage=usage)

    async def _streamed(
        self, request: web.Request, asking: Asking, requests: list[Request], shape: Shape, *, usage: bool
    ) -> web.StreamResponse:
        choices = [ChoiceStream(shape, self._text, one, index) for index, one in enumerate(requests)]
        answers: list[Answer] = []

        def event(item: tuple[int, Grew | Deliver]) -> dict[str, Any]:
            index, effect = item
            if isinstance(effect, Grew):
                return choices[index].grow(effect.ids, effect.logprobs, effect.rows)
            if isinstance(effect.outcome, Failure):
                return RequestError.of(effect.outcome).body()
            answers.append(effect.outcome)
            return choices[index].end(effect.outcome)

        first = await asking.begin()
        response = await open_stream(request, "text/event-stream", sse_failed)
        for index in range(len(requests)):
            if (role := shape.first(index)) is not None:
                await response.write(sse(role))
        for item in first:
            await response.write(sse(event(item)))
        async for arrival in asking.arrivals():
            await response.write(SSE_ALIVE if arrival is None else sse(event(arrival)))
        if usage:
            await response.write(sse(shape.last(answers)))
        await response.write(DONE)
        await response.write_eof()
        return response


def _wants_usage(options: openai_bodies.StreamOptions | None) -> bool:
    return options is not None and options.include_usage

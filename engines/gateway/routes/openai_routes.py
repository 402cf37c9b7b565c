"""This module serves OpenAI's `/v1/completions`. Text becomes tokens here, so that a drained request goes on elsewhere token by token."""

from typing import Any

from aiohttp import web

from engines.gateway.core.events import Deliver, Grew
from engines.gateway.core.samples import Answer, Failure
from engines.gateway.routes import openai_bodies
from engines.gateway.routes.asking import Asking, hinted, identity, sample_names
from engines.gateway.routes.body_reader import BodyReader, off_the_loop
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.generate import encoded_size
from engines.gateway.routes.openai_answers import Completions, Shape, Wanted
from engines.gateway.routes.responses import DONE, SSE_ALIVE, json_response, open_stream, sse, sse_failed
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell


class CompletionRoutes:
    """The route, over one shell. `model`: the name under which the pipeline's model is listed; any name is accepted."""

    def __init__(self, shell: Shell, text: Text, model: str, bodies: BodyReader) -> None:
        self._shell, self._text, self._model, self._bodies = shell, text, model, bodies

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/completions`."""
        body, requests = await self._bodies.decoded(request, lambda raw: openai_bodies.completion(raw, self._text))
        shape = Shape(self._text, body.model or self._model, chat=False, wanted=wanted(body, body.top))
        writer = Completions(shape, self._text, openai_bodies.echoed(body, self._text) if body.echo else None)
        rollout, token = identity(request)
        requests = hinted(request, requests)
        names, rids = sample_names(token, len(requests)), [body.rid or shape.id] * len(requests)
        async with Asking(self._shell, requests, rollout, names, streams=bool(body.stream), rids=rids) as asking:
            if not body.stream:
                answers = await asking.all()
                made = await off_the_loop(encoded_size(answers), writer.complete, requests, answers)
                return json_response(made)
            choices = [writer.stream(index, one) for index, one in enumerate(requests)]
            done: dict[int, Answer] = {}

            def event(item: tuple[int, Grew | Deliver]) -> dict[str, Any]:
                index, effect = item
                if isinstance(effect, Grew):
                    return choices[index].grow(effect.ids, effect.logprobs, effect.rows)
                if isinstance(effect.outcome, Failure):
                    return RequestError.of(effect.outcome).body()
                done[index] = effect.outcome
                return choices[index].end(effect.outcome)

            first = await asking.begin()
            response = await open_stream(request, "text/event-stream", sse_failed)
            for item in first:
                await response.write(sse(event(item)))
            async for arrival in asking.arrivals():
                await response.write(SSE_ALIVE if arrival is None else sse(event(arrival)))
            if wants_usage(body):
                await response.write(sse(shape.last(done)))
            await response.write(DONE)
            await response.write_eof()
            return response


def wanted(body: openai_bodies.Common, top: int | None, *, prompt_ids: bool = False) -> Wanted:
    """Return what a body wants beside text."""
    return Wanted(
        top=top,
        token_ids=bool(body.return_token_ids),
        prompt_ids=prompt_ids,
        named_by_id=bool(body.return_tokens_as_token_ids),
        copies=body.n or 1,
        running_usage=body.stream_options is not None and body.stream_options.continuous_usage_stats,
    )


def wants_usage(body: openai_bodies.Common) -> bool:
    """Whether a stream is to end with its usage."""
    return body.stream_options is not None and body.stream_options.include_usage

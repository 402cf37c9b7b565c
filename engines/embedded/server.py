"""These routes of the engine's HTTP server, in SGLang 0.5.23's dialect, generate. Control routes are in `control_routes`."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from engines.embedded.admission import Gate, RequestRunner
from engines.embedded.batching import Request, Sampling
from engines.embedded.chat import ChatIn, CompletionIn, completion
from engines.embedded.compute import Compute
from engines.embedded.core import Answer, Refusal
from engines.embedded.text import ParseIn, ReasoningIn, Text, UnknownParser, function_calls, reasoning
from engines.embedded.wire import GenerateIn, Limits, Wish, answer_body, wishes

MAX_BODY: Final = 16 << 20
HEALTH_TIMEOUT_S: Final = 20.0
T = TypeVar("T")


@dataclass
class Engine:
    """What the routes share."""

    limits: Limits
    text: Text
    gate: Gate
    runner: RequestRunner
    compute: Compute
    model_path: str
    arguments: dict[str, Any]
    healthy: bool = True
    key: str | None = None


ENGINE: Final = web.AppKey("engine", Engine)


async def body_of(request: web.Request, kind: type[T]) -> T:
    """Decode the request's JSON as `kind`; an empty body is {}. Raises Refusal (400)."""
    raw = await request.read()
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not what {request.path} takes: {error}") from error


def refused(refusal: Refusal) -> web.Response:
    """Write SGLang's native error."""
    return web.json_response({"error": {"message": str(refusal)}}, status=refusal.status)


def _failure(answer: Answer) -> Refusal | None:
    """Return why a finished answer is an HTTP error, as SGLang makes one of an abort that bears a status."""
    finish = answer.finish or {}
    return Refusal(finish["message"], finish["status_code"]) if finish.get("status_code") else None


async def _last(engine: Engine, wish: Wish) -> Answer:
    async with aclosing(engine.runner.run(wish.request)) as answers:
        async for answer in answers:
            if answer.finish is not None:
                return answer
    raise AssertionError("a request ended without a finish")


async def _all(engine: Engine, samples: list[Wish]) -> list[Answer]:
    """Return the last answer of each; if one is refused, the others are aborted. Raises Refusal."""
    if len(samples) == 1:
        return [await _last(engine, samples[0])]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_last(engine, wish)) for wish in samples]
    except* Refusal as several:
        first = several.exceptions[0]
        raise (first if isinstance(first, Refusal) else Refusal(str(first))) from None
    return [task.result() for task in tasks]


async def _merged(engine: Engine, samples: list[Wish]) -> AsyncGenerator[tuple[int, Answer | Refusal], None]:
    """Yield answers of several requests as they come, with their index; a refusal ends that one only."""
    arrived: asyncio.Queue[tuple[int, Answer | Refusal]] = asyncio.Queue(len(samples))

    async def follow(index: int) -> None:
        try:
            async with aclosing(engine.runner.run(samples[index].request)) as answers:
                async for answer in answers:
                    await arrived.put((index, answer))
        except Refusal as refusal:
            await arrived.put((index, refusal))

    tasks = [asyncio.create_task(follow(index)) for index in range(len(samples))]
    try:
        unfinished = len(samples)
        while unfinished:
            index, answer = await arrived.get()
            unfinished -= isinstance(answer, Refusal) or answer.finish is not None
            yield index, answer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _open_stream(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})
    await stream.prepare(request)
    return stream


async def _send(stream: web.StreamResponse, body: Any) -> None:
    await stream.write(b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n")


async def generate(request: web.Request) -> web.StreamResponse:
    engine = request.app[ENGINE]
    try:
        body = await body_of(request, GenerateIn)
        samples, batched = wishes(body, engine.limits, engine.text)
        if not body.stream:
            answers = await _all(engine, samples)
            failure = next(filter(None, map(_failure, answers)), None)
            if failure is not None:
                return refused(failure)
            bodies = [answer_body(wish, answer, engine.text) for wish, answer in zip(samples, answers, strict=True)]
            return web.json_response(bodies if batched else bodies[0])
    except Refusal as refusal:
        return refused(refusal)
    stream = await _open_stream(request)
    async with aclosing(_merged(engine, samples)) as merged:
        async for index, answer in merged:
            if isinstance(answer, Refusal):
                await _send(stream, {"error": {"message": str(answer)}})
            else:
                chunk = answer_body(samples[index], answer, engine.text)
                await _send(stream, {**chunk, "index": index} if batched else chunk)
    await stream.write(b"data: [DONE]\n\n")
    await stream.write_eof()
    return stream


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await _openai(request, ChatIn)


async def completions(request: web.Request) -> web.StreamResponse:
    return await _openai(request, CompletionIn)


def _openai_error(refusal: Refusal) -> dict[str, Any]:
    kind = "BadRequestError" if refusal.status < 500 else "InternalServerError"
    return {"object": "error", "message": str(refusal), "type": kind, "param": None, "code": refusal.status}


async def _openai(request: web.Request, kind: type[ChatIn] | type[CompletionIn]) -> web.StreamResponse:
    engine = request.app[ENGINE]
    try:
        body = await body_of(request, kind)
        call = completion(body, engine.limits, engine.text, engine.model_path, int(time.time()))
        if not body.stream:
            answers = await _all(engine, call.wishes)
            failure = next(filter(None, map(_failure, answers)), None)
            if failure is not None:
                return web.json_response(_openai_error(failure), status=failure.status)
            return web.json_response(call.body(answers, engine.text))
    except Refusal as refusal:
        return web.json_response(_openai_error(refusal), status=refusal.status)
    stream = await _open_stream(request)
    ended: dict[int, Answer] = {}
    async with aclosing(_merged(engine, call.wishes)) as merged:
        async for index, answer in merged:
            if isinstance(answer, Refusal):
                await _send(stream, {"error": _openai_error(answer)})
                continue
            await _send(stream, call.chunk(index, answer, engine.text))
            if answer.finish is not None:
                ended[index] = answer
    if call.with_usage:
        await _send(stream, call.usage_chunk(list(ended.values())))
    await stream.write(b"data: [DONE]\n\n")
    await stream.write_eof()
    return stream


async def parse_function_call(request: web.Request) -> web.Response:
    body = await body_of(request, ParseIn)
    try:
        return web.json_response(function_calls(body))
    except UnknownParser as error:
        raise Refusal(str(error)) from error


async def separate_reasoning(request: web.Request) -> web.Response:
    body = await body_of(request, ReasoningIn)
    try:
        return web.json_response(reasoning(body))
    except UnknownParser as error:
        raise Refusal(str(error)) from error


async def models(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    entry = {"id": engine.model_path, "object": "model", "created": int(time.time()), "owned_by": "sglang", "root": engine.model_path}
    return web.json_response({"object": "list", "data": [{**entry, "max_model_len": engine.limits.context}]})


async def health(request: web.Request) -> web.Response:
    """Answer as SGLang does with SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=false: this proves that HTTP answers, and no more."""
    return web.Response(status=200)


async def health_generate(request: web.Request) -> web.Response:
    """Put one token through the model. On a paused engine this waits, gives up and marks the engine unhealthy, as SGLang's does."""
    engine = request.app[ENGINE]
    probe = Request(f"HEALTH_CHECK_{time.monotonic_ns()}", (0,), Sampling(seed=0, max_new_tokens=1, temperature=0.0))
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            answer = await _last(engine, Wish(probe))
    except (TimeoutError, Refusal):
        engine.healthy = False
        return web.Response(status=503)
    engine.healthy = _failure(answer) is None
    return web.Response(status=200 if engine.healthy else 503)


async def ready(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    return web.Response(status=200 if engine.healthy and not engine.gate.paused else 503)


async def ping(request: web.Request) -> web.Response:
    return web.Response(status=200 if request.app[ENGINE].healthy else 503)


ROUTES: Final = [
    web.post("/generate", generate),
    web.post("/v1/chat/completions", chat_completions),
    web.post("/v1/completions", completions),
    web.post("/parse_function_call", parse_function_call),
    web.post("/separate_reasoning", separate_reasoning),
    web.get("/v1/models", models),
    web.get("/health", health),
    web.get("/health_generate", health_generate),
    web.get("/ready", ready),
    web.get("/ping", ping),
]

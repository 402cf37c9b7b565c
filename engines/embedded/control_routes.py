"""These routes of the engine's HTTP server, in SGLang 0.5.23's dialect, pause it, empty it, wake it and give it weights."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from engines.embedded.core import Pausing, Refusal
from engines.embedded.server import ENGINE, Engine, body_of, refused
from engines.embedded.wire import AbortIn, LoadIn, PauseIn, TagsIn

DIALECT: Final = "0.5.23"
FLUSHED: Final = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)


async def model_info(request: web.Request) -> web.Response:
    """Answer without the compute thread, so the answer proves nothing about it."""
    engine = request.app[ENGINE]
    return web.json_response(
        {
            "model_path": engine.model_path,
            "served_model_name": engine.model_path,
            "tokenizer_path": engine.arguments["model_path"],
            "is_generation": True,
            "weight_version": engine.compute.version,
            "load_format": "auto",
            "max_context_length": engine.limits.context,
            "vocab_size": engine.limits.vocab,
            "engine": "trainshed-embedded",
        }
    )


async def server_info(request: web.Request) -> web.Response:
    """Make a round trip through the compute thread, paused or not: the probe of a sleeping engine."""
    engine = request.app[ENGINE]
    state = await engine.compute.call(lambda core: core.state())
    info = {
        **engine.arguments,
        "served_model_name": engine.model_path,
        "weight_version": engine.compute.version,
        "internal_states": [state],
    }
    info["status"] = "ready" if engine.healthy else "unhealthy"
    info["max_total_num_tokens"] = state["max_total_num_tokens"]
    return web.json_response({**info, "version": DIALECT})


async def loads(request: web.Request) -> web.Response:
    state = await request.app[ENGINE].compute.call(lambda core: core.state())
    return web.json_response({"timestamp": time.time(), "version": DIALECT, "dp_rank_count": 1, "loads": [{"dp_rank": 0, **state}]})


async def abort_request(request: web.Request) -> web.Response:
    """Answer 200 always. An id that nobody has, and an empty one without abort_all, are ignored."""
    engine = request.app[ENGINE]
    body = await body_of(request, AbortIn)
    if body.rid or body.abort_all:
        await _abort(engine, "" if body.abort_all else body.rid)
    return web.Response()


async def _abort(engine: Engine, prefix: str) -> None:
    await engine.compute.call(lambda core: core.abort(lambda rid: rid.startswith(prefix)))


async def pause_generation(request: web.Request) -> web.Response:
    """Close the gate. `abort` also aborts until nobody is inside; `retract` and `in_place` stop the steps and keep requests."""
    engine = request.app[ENGINE]
    mode = (await body_of(request, PauseIn)).mode
    if mode not in ("abort", "retract", "in_place"):
        raise Refusal(f"mode is one of abort, retract, in_place, not {mode!r}")
    engine.gate.paused = True
    engine.gate.change()
    if mode == "abort":
        while engine.gate.inside:
            changed = engine.gate.changed
            await _abort(engine, "")
            if engine.gate.inside:
                await changed.wait()
    else:
        await engine.compute.call(lambda core: core.pause(Pausing(mode)))
    print(f"paused: {mode}", flush=True)
    return web.json_response({"status": "ok"})


async def continue_generation(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    await engine.compute.call(lambda core: core.go_on())
    engine.gate.paused = False
    engine.gate.change()
    print("continued", flush=True)
    return web.json_response({"status": "ok"})


async def flush_cache(request: web.Request) -> web.Response:
    """Answer 200 only if nothing runs or waits. With `?timeout=` seconds, wait for that, also for what was retracted."""
    engine = request.app[ENGINE]
    try:
        limit = float(request.query.get("timeout", "0"))
    except ValueError:
        limit = -1.0
    if not 0.0 <= limit <= 3600.0:
        raise Refusal("timeout is a number of seconds from 0 to 3600")
    deadline = time.monotonic() + limit
    while True:
        changed = engine.gate.changed
        if await engine.compute.call(lambda core: core.flush(patient=limit > 0)):
            return web.Response(text=FLUSHED)
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            return web.Response(text="Flush cache failed.\n", status=400)
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), seconds)


async def release_memory(request: web.Request) -> web.Response:
    """Give device memory back. This kills the engine while it is busy, or for what is released already."""
    tags = (await body_of(request, TagsIn)).tags or []
    await request.app[ENGINE].compute.call(lambda core: core.release(tags))
    print(f"released: {', '.join(tags) or 'all'}", flush=True)
    return web.json_response(None)


async def resume_memory(request: web.Request) -> web.Response:
    """Take device memory again. This kills the engine for what is not released, or when there is none."""
    tags = (await body_of(request, TagsIn)).tags or []
    await request.app[ENGINE].compute.call(lambda core: core.resume(tags))
    print(f"resumed: {', '.join(tags) or 'all'}", flush=True)
    return web.json_response(None)


async def update_weights_from_disk(request: web.Request) -> web.Response:
    """Load weights at once while generation is paused, otherwise when what runs has ended."""
    engine = request.app[ENGINE]
    body = await body_of(request, LoadIn)
    if body.abort_all_requests:
        await _abort(engine, "")
    async with engine.gate.updating():
        began = time.monotonic()
        try:
            call = engine.compute.call(lambda core: core.load(Path(body.model_path), body.weight_version, body.flush_cache))
            paused, message = await call
        except Refusal as refusal:
            print(f"weight update failed: {refusal}", flush=True)
            return web.json_response({"success": False, "message": str(refusal), "num_paused_requests": 0}, status=refusal.status)
    engine.model_path = body.model_path
    print(f"loaded: version {engine.compute.version} from {body.model_path} in {time.monotonic() - began:.3f} s", flush=True)
    return web.json_response({"success": True, "message": message, "num_paused_requests": paused})


def _to_the_end(handler: Handler) -> Handler:
    """Let a control call go on when its client has gone: half a pause or half a load is worse than an answer that nobody reads."""
    calls: set[asyncio.Task[web.StreamResponse]] = set()

    async def to_the_end(request: web.Request) -> web.StreamResponse:
        await request.read()
        call = asyncio.ensure_future(handler(request))
        calls.add(call)
        call.add_done_callback(calls.discard)
        return await asyncio.shield(call)

    return to_the_end


@web.middleware
async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Write a Refusal that a route did not write in its own way as SGLang's native error."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return refused(refusal)


ROUTES: Final = [
    web.get("/model_info", model_info),
    web.get("/get_model_info", model_info),
    web.get("/server_info", server_info),
    web.get("/get_server_info", server_info),
    web.get("/v1/loads", loads),
    web.post("/abort_request", _to_the_end(abort_request)),
    web.post("/pause_generation", _to_the_end(pause_generation)),
    web.post("/continue_generation", _to_the_end(continue_generation)),
    web.get("/flush_cache", flush_cache),
    web.post("/flush_cache", flush_cache),
    web.post("/release_memory_occupation", _to_the_end(release_memory)),
    web.get("/release_memory_occupation", _to_the_end(release_memory)),
    web.post("/resume_memory_occupation", _to_the_end(resume_memory)),
    web.get("/resume_memory_occupation", _to_the_end(resume_memory)),
    web.post("/update_weights_from_disk", _to_the_end(update_weights_from_disk)),
]

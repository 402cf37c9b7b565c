"""This module writes the answers of every route: JSON bodies, events of a stream, and keep-alives while nothing comes."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from engines.gateway.routes.errors import RequestError

DONE: Final = b"data: [DONE]\n\n"
"""The last event of a stream, in SGLang's dialect and in OpenAI's."""
KEEP_ALIVE_S: Final = 10.0
"""A stream is sent something at least this often, so that its reader can tell waiting from a lost connection."""
SSE_ALIVE: Final = b": keep-alive\n\n"
LINE_ALIVE: Final = b"\n"


def json_response(body: Any, status: int = 200) -> web.Response:
    """Return a response with this body as JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def sse(event: Any) -> bytes:
    """Return one server-sent event with this JSON."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


Failed = Callable[[RequestError], bytes]
"""How a stream says that it goes no further."""
_STREAM: Final = web.RequestKey("stream", tuple)


async def open_stream(request: web.Request, content_type: str, failed: Failed) -> web.StreamResponse:
    """Send the headers of an answer whose body comes piece by piece; an error after them is written as `failed` says."""
    response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})
    await response.prepare(request)
    request[_STREAM] = response, failed
    return response


def sse_failed(error: RequestError) -> bytes:
    """Return the end of a stream of events that goes no further: the error, and the last event."""
    return sse(error.body()) + DONE


async def respond(request: web.Request, error: RequestError) -> web.StreamResponse:
    """Answer with an error, as a status or, where the headers have been sent, as the end of the stream."""
    if _STREAM not in request:
        return json_response(error.body(), error.status)
    response, failed = request[_STREAM]
    assert isinstance(response, web.StreamResponse)
    await response.write(failed(error))
    await response.write_eof()
    return response

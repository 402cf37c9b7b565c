"""This module writes the answers of every route: JSON bodies, events of a stream, and streams that say something while nothing comes."""

from typing import Any, Final

import msgspec
from aiohttp import web

DONE: Final = b"data: [DONE]\n\n"
"""The last event of a stream, in SGLang's dialect and in OpenAI's."""
SSE_ALIVE: Final = b": keep-alive\n\n"
LINE_ALIVE: Final = b"\n"


def json_response(body: Any, status: int = 200) -> web.Response:
    """Return a response with this body as JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def sse(event: Any) -> bytes:
    """Return one server-sent event with this JSON."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


async def open_stream(request: web.Request, content_type: str) -> web.StreamResponse:
    """Send the headers of an answer whose body comes piece by piece."""
    response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})
    await response.prepare(request)
    return response

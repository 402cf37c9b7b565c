"""This module decides who may speak to the gateway, before a byte of a body is read: who has the pipeline's key, and no web page."""

import hmac
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.responses import json_response
from trainers.protocol import loopback

OPEN: Final = "/health"
"""Asked by GET or HEAD without query and body, this path needs no key."""
ANTHROPICS: Final = "X-Api-Key"
"""Where Anthropic's clients send a key."""
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_WHERE: Final = "trainers find it in TRAINSHED_API_KEY and OPENAI_API_KEY, `bin/supervise env PIPELINE` prints it"
_NO_KEY: Final = RequestError(401, "no_api_key", f"this gateway wants its pipeline's key as `Authorization: Bearer KEY`; {_WHERE}")
_WRONG_KEY: Final = RequestError(401, "invalid_api_key", f"this is not the key of this gateway's pipeline; {_WHERE}")
_NOT_JSON: Final = RequestError(
    415, "not_json", "a body must be JSON and say so: `Content-Type: application/json` (curl: `-H 'Content-Type: application/json'`)"
)


@dataclass(frozen=True, slots=True)
class Access:
    """What a request must show: the key, and that it is meant for the address at which the gateway listens."""

    key: str = field(repr=False)
    address: str = "127.0.0.1"

    def refusal(self, request: web.BaseRequest) -> RequestError | None:
        """Return why the request is not answered, if so: 403 a web page or a foreign host, 401 the key, 415 the body's type."""
        headers = request.headers
        if refused := loopback.refusal(headers.getall("Host", ()), headers.getall("Origin", ()), self.address):
            return RequestError(403, *refused)
        if _is_open(request):
            return None
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get(ANTHROPICS, "")
        if not key.strip():
            return _NO_KEY
        if not hmac.compare_digest(key.strip().encode("utf-8", "surrogateescape"), self.key.encode()):
            return _WRONG_KEY
        if request.method in _WITH_BODY and request.content_type != "application/json":
            return _NOT_JSON
        return None


def _is_open(request: web.BaseRequest) -> bool:
    return request.path_qs == OPEN and request.method in ("GET", "HEAD") and not request.body_exists


def only_with(access: Access | None) -> list[Middleware]:
    """Return the middlewares that let nobody pass without access; none where the gateway is open to all (None)."""
    if access is None:
        return []

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        error = access.refusal(request)
        if error is None:
            return await handler(request)
        response = json_response(error.body(), error.status)
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    return [middleware]

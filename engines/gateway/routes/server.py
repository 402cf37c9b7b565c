"""This module is the gateway's HTTP server: routes, typed errors, limits, on a listening socket that it was given."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, Self

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from engines.gateway.routes.acceptor import Acceptor
from engines.gateway.routes.access import OPEN, Access, only_with
from engines.gateway.routes.body_reader import BodyReader
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.generate import GenerateRoutes
from engines.gateway.routes.openai_routes import OpenAIRoutes
from engines.gateway.routes.responses import json_response, respond
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell

_SHUTDOWN_S: Final = 0.2
_BACKLOG: Final = 1024


def application(shell: Shell, text: Text, *, pipeline: str, model: str, access: Access | None, log: Callable[..., Any]) -> web.Application:
    """Return all routes over one shell, for who has `access` (None: for everybody). `model` is the path that `/model_info` gives, as SGLang's does."""
    bodies = BodyReader()
    native, openai = GenerateRoutes(shell, text, bodies), OpenAIRoutes(shell, text, pipeline, bodies)

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    async def model_info(request: web.Request) -> web.Response:
        version = str(shell.version)
        return json_response({"model_path": model, "served_model_name": pipeline, "is_generation": True, "weight_version": version})

    app = web.Application(middlewares=[_errors(log), *only_with(access)])
    app.router.add_get("/health", health)
    app.router.add_get("/model_info", model_info)
    app.router.add_get("/v1/models", openai.models)
    app.router.add_post("/generate", native.generate)
    app.router.add_post("/rollouts/{rollout}/samples", native.samples)
    app.router.add_post("/v1/completions", openai.completions)
    app.router.add_post("/v1/chat/completions", openai.chat)
    return app


class Serving:
    """The application as it serves on `listener` (bound already), from `start` to `end`. A client that hangs up cancels its handler."""

    def __init__(self, app: web.Application, listener: socket.socket, log: Callable[..., Any]) -> None:
        app.middlewares.append(self._heard())  # the innermost: what `access` lets pass
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        self._listener, self._log = listener, log

    async def start(self) -> Self:
        """Listen and accept."""
        await self._runner.setup()
        assert self._runner.server is not None
        self._listener.listen(_BACKLOG)
        self._listener.setblocking(False)
        self._acceptor = Acceptor(self._listener, self._runner.server, self._log)
        self._acceptor.start()
        return self

    def _heard(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path != OPEN:
                self._acceptor.heard(request.protocol)
            return await handler(request)

        return middleware

    async def end(self) -> None:
        """Cancel the requests that run, and close every connection."""
        self._acceptor.stop()
        await self._runner.cleanup()


def _errors(log: Callable[..., Any]) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RequestError as error:
            return await respond(request, error)
        except web.HTTPException as error:
            code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status, "bad_request")
            return json_response(RequestError(error.status, code, error.reason).body(), error.status)
        except (ConnectionResetError, asyncio.CancelledError):
            raise  # the client has gone
        except Exception as error:
            log("handler failed", path=request.path, error=f"{type(error).__name__}: {error}", exc_info=True)
            return await respond(request, RequestError(500, "internal", f"{type(error).__name__}: {error}"))

    return middleware

"""This module serves `/metrics` for Prometheus, where `[host] metrics_port` asks for it: one page on the loopback interface, read only.

It asks for no key: a scraper has none. Who may read it is every user of the machine (states, counts and times are there, no texts and no
samples), but no web page: `Host` and `Origin` are checked as at a gateway.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.abc
from aiohttp import web
from aiohttp.typedefs import Handler

from trainers.protocol import loopback

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
CLOSE_S: Final = 2.0


async def serve(
    sock: socket.socket, page: Callable[[], Awaitable[bytes]], *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled. The page is made in our own loop, so it shows a state between two events, never a half of one."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=await page(), headers={"Content-Type": TEXT})

    app = web.Application(client_max_size=1 << 10, middlewares=[_only_programs])
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_S)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        task_status.started()
        await anyio.sleep_forever()
    finally:
        with anyio.move_on_after(CLOSE_S, shield=True):
            await runner.cleanup()
        sock.close()


@web.middleware
async def _only_programs(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer programs of this machine, and 403 to web pages."""
    headers = request.headers
    if refused := loopback.refusal(headers.getall("Host", ()), headers.getall("Origin", ())):
        return web.Response(status=403, text=f"{refused[1]}\n")
    return await handler(request)

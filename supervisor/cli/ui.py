"""`supervise ui` shows the report of a run in a browser, live. It is a process of its own that reads the run's files and changes nothing.

It listens on the loopback only, and answers who has the token of its address: other users of the machine have not, and a web page that asks
in a browser's name (another `Host`, another site) is refused before anything is read.
"""

import asyncio
import hmac
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from supervisor.cli import streams
from supervisor.cli.history import RunName, data_of
from supervisor.errors import ExitCode, SetUpError, UsageError

if TYPE_CHECKING:
    from aiohttp import web

    from supervisor.views.history.page_data import PageData

FRESH_S: Final = 1.0
"""How old the data of an answer may be: many browsers cost no more than one."""
_LOOPBACK: Final = "127.0.0.1"
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


def ui(run: RunName = None, /, *, port: Annotated[int, Parameter("--port", help="On 127.0.0.1. Default: a free one.")] = 0) -> int:
    """Show a run's report in a browser, live, until Ctrl-C. From elsewhere: ssh -L PORT:127.0.0.1:PORT."""
    from supervisor.attempt.find import find_run

    attempt = find_run(run)
    token = secrets.token_urlsafe(24)
    try:
        asyncio.run(_serve(_Live(attempt), token, port))
    except OSError as error:
        raise SetUpError(f"--port {port}: {error.strerror}. Name another one, or none.") from error
    return int(ExitCode.DONE)


class _Live:
    """The data of one attempt, read on at most once in `FRESH_S`."""

    def __init__(self, attempt: Path) -> None:
        from supervisor.views.history.reader import HistoryReader

        self._attempt = attempt
        self._reader: HistoryReader = HistoryReader(attempt)
        self._lock = asyncio.Lock()
        self._data: PageData | None = None
        self._read_at = 0.0

    async def data(self) -> "PageData":
        """Return what the page shows now. Raises UsageError."""
        async with self._lock:
            if self._data is None or time.monotonic() - self._read_at > FRESH_S:
                self._data = await asyncio.to_thread(data_of, self._attempt, self._reader)
                self._read_at = time.monotonic()
            return self._data


async def _serve(live: _Live, token: str, port: int) -> None:
    from aiohttp import web

    await live.data()  # what cannot be read is said before an address is
    runner = web.AppRunner(application(live, token), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, _LOOPBACK, port)
        await site.start()
        (address, *_) = runner.addresses
        streams.say(f"http://{_LOOPBACK}:{address[1]}/?token={token}")
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    finally:
        await runner.cleanup()


def application(live: _Live, token: str) -> "web.Application":
    """Return the server: the page at `/`, its data at `/data`; everything else, and whoever has no token, is refused."""
    from aiohttp import web
    from aiohttp.typedefs import Handler

    from supervisor.views.history.page import data_json, page
    from trainers.protocol import loopback

    @web.middleware
    async def only_ours(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers
        foreign = loopback.refusal(headers.getall("Host", ()), headers.getall("Origin", ())) is not None
        foreign = foreign or headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        if foreign or not hmac.compare_digest(request.query.get("token", "").encode(), token.encode()):
            return web.Response(status=403, text="Use the address that `supervise ui` has printed.\n", headers=_HEADERS)
        return await handler(request)

    async def whole(_: web.Request) -> web.Response:
        return web.Response(body=page(await live.data(), "'self'"), content_type="text/html", charset="utf-8", headers=_HEADERS)

    async def data(_: web.Request) -> web.Response:
        try:
            return web.Response(body=data_json(await live.data()), content_type="application/json", headers=_HEADERS)
        except UsageError as error:
            return web.Response(status=503, text=f"{error}\n", headers=_HEADERS)

    served = web.Application(middlewares=[only_ours])
    served.router.add_get("/", whole)
    served.router.add_get("/data", data)
    return served

"""This module makes one attempt on one engine over HTTP (`POST /generate`, streamed, in SGLang's dialect), or aborts it."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import aiohttp
import msgspec

from engines.gateway.core.events import CLIENT_ERRORS, Broken, End, Refused, Start, Tokens
from engines.gateway.upstream.sglang_stream import Stream, StreamError, error_text

CONNECT_S: Final = 5.0
SILENCE_S: Final = 900.0
"""Without a byte for so long an attempt counts as lost. The supervisor's probes find a hung engine much earlier; weights may load meanwhile."""
ABORT_S: Final = 3.0
"""An engine must answer an abort within so many seconds."""
REST_S: Final = 0.5
"""The little that follows the end of a stream is awaited for so many seconds."""
BUSY: Final = (429, 503)
"""With these statuses an engine says that it takes no more now."""
_READ: Final = 1 << 18


class EngineClient:
    """A client of all engines. `run` never raises for what an engine does: its result says how the attempt ended."""

    def __init__(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, read_bufsize=_READ)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def run(self, start: Start, rid: str, on_tokens: Callable[[Tokens], None]) -> End:
        """Send the request under `rid`, hand on its tokens as they come. Cancel it to close the connection (the engine then aborts)."""
        accepted = False
        stream = Stream(start.attempt, rows=start.rows)
        body = msgspec.json.encode({**start.body, "rid": rid})
        try:
            async with self._session.post(f"{start.url}/generate", data=body, headers=_headers(start.key)) as response:
                if response.status != 200:
                    text = error_text(await response.content.read(1 << 16))
                    if response.status in CLIENT_ERRORS:
                        return Refused(response.status, text)
                    return Broken(f"HTTP {response.status}: {text}", accepted=response.status == 500, busy=response.status in BUSY)
                accepted = True
                async for data in response.content.iter_any():
                    for tokens in stream.feed(data):
                        on_tokens(tokens)
                    if stream.end is not None:
                        await _read_rest(response)
                        return stream.end
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return Broken(f"{type(error).__name__}: {error}", accepted=accepted, died=_is_death(error, accepted))
        except StreamError as error:
            return Broken(str(error), accepted=True)
        return Broken("the stream ended before the request", accepted=True, died=True)

    async def abort(self, start: Start, rid: str) -> str:
        """Ask the engine to end `rid`; it answers at once, whatever it does. Returns what went wrong, or nothing."""
        body = msgspec.json.encode({"rid": rid})
        try:
            async with (
                asyncio.timeout(ABORT_S),
                self._session.post(f"{start.url}/abort_request", data=body, headers=_headers(start.key)) as got,
            ):
                return "" if got.status == 200 else f"HTTP {got.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"


async def _read_rest(response: aiohttp.ClientResponse) -> None:
    """Read the little that follows the end, so that the connection can be used again; its loss costs nothing now."""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(REST_S):
            async for _ in response.content.iter_any():
                pass


def _is_death(error: Exception, accepted: bool) -> bool:
    """Whether a connection that had been made broke: before the answer began, too, since a request can kill before that."""
    if isinstance(error, TimeoutError | aiohttp.ClientConnectorError):
        return False
    return accepted or isinstance(error, aiohttp.ServerDisconnectedError | OSError)


def new_rid() -> str:
    """Return a new request id. All are of one length, since SGLang aborts whatever *begins* with the rid."""
    return uuid4().hex


def _headers(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

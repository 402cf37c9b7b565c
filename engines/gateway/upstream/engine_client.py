"""This module makes one attempt on one engine over HTTP (`POST /generate`, streamed, in SGLang's dialect), or aborts it."""

import asyncio
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import msgspec

from engines.gateway.core.events import CLIENT_ERRORS, Broken, End, Refused, Start, Tokens
from engines.gateway.upstream.http_connection import Connections, Exchange, NotConnected, post
from engines.gateway.upstream.sglang_stream import Stream, StreamError, error_text

ABORT_S: Final = 3.0
"""An engine must answer an abort within so many seconds."""
REST_S: Final = 0.5
"""The little that follows the end of a stream must come within so many seconds, or the connection is not used again."""
BUSY: Final = (429, 503)
"""With these statuses an engine says that it takes no more now."""
_MOST_ERROR: Final = 1 << 16


class EngineClient:
    """A client of all engines. It never raises for what an engine does: the end of an attempt says how it came."""

    def __init__(self) -> None:
        self._connections = Connections()

    def on_bug(self, tell: Callable[[BaseException], None]) -> None:
        """Give what an attempt's callbacks raise to `tell`: nobody else would hear of it."""
        self._connections.on_bug = tell

    async def close(self) -> None:
        """Close every connection."""
        await self._connections.close()

    def run(self, start: Start, rid: str, on_tokens: Callable[[Tokens], object], on_end: Callable[[End], object]) -> "Running":
        """Send the request under `rid`. Its tokens are given on as they come, and then its end, once; `cut` it and neither is (the engine aborts)."""
        running = Running(start, on_tokens, on_end)
        body = msgspec.json.encode({**start.body, "rid": rid})
        self._connections.send(start.url, post(start.url, "/generate", start.key, body), running)
        return running

    async def abort(self, url: str, key: str, rid: str) -> str:
        """Ask the engine to end `rid`; it answers at once, whatever it does. Returns what went wrong, or nothing."""
        asked = _Abort()
        self._connections.send(url, post(url, "/abort_request", key, msgspec.json.encode({"rid": rid})), asked)
        try:
            async with asyncio.timeout(ABORT_S):
                return await asked.outcome
        except TimeoutError:
            return f"no answer within {ABORT_S:.0f} s"
        finally:
            asked.cut()


class Running(Exchange):
    """An attempt that has been sent."""

    def __init__(self, start: Start, on_tokens: Callable[[Tokens], object], on_end: Callable[[End], object]) -> None:
        self._on_tokens, self._on_end = on_tokens, on_end
        self._stream = Stream(start.attempt, rows=start.rows)
        self._error = bytearray()
        self._ended = False

    def received(self, data: bytes) -> None:
        if self.status != 200:
            self._error += data[: max(0, _MOST_ERROR - len(self._error))]
            return
        if self._ended or self._stream.end is not None:
            return
        try:
            for tokens in self._stream.feed(data):
                self._on_tokens(tokens)
        except StreamError as error:
            self._end(Broken(str(error), accepted=True))
            self.cut()

    def rested(self) -> None:
        if not self._ended and self._stream.end is not None:
            self._end(self._stream.end)
            asyncio.get_running_loop().call_later(REST_S, self.cut)  # a connection that is complete by then is no longer ours

    def over(self, error: Exception | None) -> None:
        if not self._ended:
            self._end(self._outcome(error))

    def _outcome(self, error: Exception | None) -> End:
        if self._stream.end is not None:
            return self._stream.end
        if self.status not in (0, 200):
            text = error_text(bytes(self._error))
            if self.status in CLIENT_ERRORS:
                return Refused(self.status, text)
            return Broken(f"HTTP {self.status}: {text}", accepted=self.status == 500, busy=self.status in BUSY)
        accepted = self.status == 200
        if error is None:
            return Broken("the stream ended before the request", accepted=True, died=True)
        # a connection that had been made and broke: before the answer began, too, since a request can kill before that
        died = isinstance(error, OSError) and not isinstance(error, NotConnected | TimeoutError)
        return Broken(f"{type(error).__name__}: {error}", accepted=accepted, died=died)

    def _end(self, end: End) -> None:
        self._ended = True
        self._on_end(end)

    def cut(self) -> None:
        self._ended = True
        super().cut()


class _Abort(Exchange):
    def __init__(self) -> None:
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def over(self, error: Exception | None) -> None:
        if self.outcome.done():
            return
        if error is not None:
            self.outcome.set_result(f"{type(error).__name__}: {error}")
        else:
            self.outcome.set_result("" if self.status == 200 else f"HTTP {self.status}")


def new_rid() -> str:
    """Return a new request id. All are of one length, since SGLang aborts whatever *begins* with the rid."""
    return uuid4().hex

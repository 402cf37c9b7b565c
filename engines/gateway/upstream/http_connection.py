"""This module speaks HTTP/1.1 to engines over connections that are kept: a request out, and what comes of its answer told at once, as it comes.

No task and no queue stand between the socket and who asked: with a thousand streams that is most of what a token costs. The parser is
llhttp (`httptools`), which aiohttp and uvicorn's servers use, too.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

CONNECT_S: Final = 5.0
IDLE_S: Final = 2.0
"""A connection that has been idle for longer is not used again: SGLang's server (uvicorn) closes it after 5 s, and a request that crosses
that would look like the engine's death."""
SILENCE_S: Final = 900.0
"""Without a byte for so long an answer counts as lost. The supervisor's probes find a hung engine much earlier; weights may load meanwhile."""
_LOOK_S: Final = SILENCE_S / 30

Address = tuple[str, int]


class NotConnected(OSError):
    """No connection could be made: the engine has not had the request."""


class BadHTTP(Exception):
    """What came is no HTTP."""


class Exchange:
    """One request and its answer; a subclass says what becomes of what comes. Nothing is told before `Connections.send` has returned."""

    status = 0
    """HTTP's, 0 until it has come."""
    _connection: "Connection | None" = None
    _connecting: "asyncio.Task[None] | None" = None

    def received(self, data: bytes) -> None:
        """Take some bytes of the body."""

    def rested(self) -> None:
        """Take note that everything that has come so far has been told, and the answer is not complete."""

    def over(self, error: Exception | None) -> None:
        """Take note that the answer is complete (None), or never will be: NotConnected, another OSError (the connection broke), TimeoutError
        (silence), BadHTTP. Told once, and last."""

    def cut(self) -> None:
        """Close the connection; nothing is told any more."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.cut()


class Connection(asyncio.Protocol):
    """One connection to an engine, with one exchange at a time. It is httptools' protocol, too."""

    def __init__(self, connections: "Connections", address: Address) -> None:
        self._connections, self._address = connections, address
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._complete = self._kept = False
        self.heard = 0.0
        """When something was sent or came last."""

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return not self._transport.is_closing() and self._loop.time() - self.heard < IDLE_S

    def begin(self, exchange: Exchange, request: bytes) -> None:
        """Send the request; the exchange is told what comes."""
        self._exchange, exchange._connection = exchange, self
        self.heard = self._loop.time()
        self._transport.write(request)

    def cut(self) -> None:
        """Close it now; the exchange is told nothing."""
        self._exchange = None
        self._transport.abort()

    def look(self, now: float) -> None:
        """Give up an answer of which nothing has come for too long."""
        if self._exchange is not None and now - self.heard > SILENCE_S:
            self._lose(TimeoutError(f"nothing came for {SILENCE_S:.0f} s"))

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._connections.made(self)

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lose(BadHTTP(f"{type(error).__name__}: {error}"))
            return
        if (exchange := self._exchange) is None:
            self._transport.abort()  # nobody has asked for this
        elif self._complete:
            self._complete, self._exchange, exchange._connection = False, None, None
            if self._kept:
                self._connections.free(self, self._address)
            else:
                self._transport.close()
            self._tell(exchange.over, None)
        else:
            self._tell(exchange.rested)

    def connection_lost(self, exc: Exception | None) -> None:
        del self._parser  # it holds us
        self._connections.lost(self)
        self._lose(exc if isinstance(exc, OSError) else ConnectionResetError("the engine has closed the connection"))

    def _lose(self, error: Exception) -> None:
        exchange, self._exchange = self._exchange, None
        self._transport.abort()
        if exchange is not None:
            exchange._connection = None
            self._tell(exchange.over, error)

    # ---- httptools' side

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._tell(self._exchange.received, body)

    def on_message_complete(self) -> None:
        self._complete, self._kept = True, self._parser.should_keep_alive()

    def _tell(self, what: Callable[..., None], *args: object) -> None:
        try:
            what(*args)
        except Exception as bug:  # neither asyncio nor the parser would let it through
            self._connections.on_bug(bug)


class Connections:
    """All connections to engines. `on_bug` is told exceptions of exchanges."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Address, list[Connection]] = {}
        self._all: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._looking: asyncio.TimerHandle | None = None
        self.on_bug: Callable[[BaseException], None] = lambda bug: None

    def send(self, url: str, request: bytes, exchange: Exchange) -> None:
        """Send the request (all of its bytes) to `http://host:port`; the exchange is told what comes."""
        address = address_of(url)
        idle = self._idle.get(address)
        while idle:
            if (connection := idle.pop()).usable:
                connection.begin(exchange, request)
                return
            connection.cut()
        exchange._connecting = task = self._loop.create_task(self._connect(address, exchange, request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, address: Address, exchange: Exchange, request: bytes) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await self._loop.create_connection(lambda: Connection(self, address), *address)
        except (OSError, TimeoutError) as error:
            exchange._connecting = None
            try:
                exchange.over(NotConnected(f"cannot connect to {address[0]}:{address[1]}: {str(error) or type(error).__name__}"))
            except Exception as bug:
                self.on_bug(bug)
            return
        exchange._connecting = None
        connection.begin(exchange, request)

    async def close(self) -> None:
        """Close every connection; nothing is told any more."""
        if self._looking is not None:
            self._looking.cancel()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in list(self._all):
            connection.cut()

    # ---- what connections say

    def made(self, connection: Connection) -> None:
        """Take note of a new one."""
        self._all.add(connection)
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_S, self._look)

    def free(self, connection: Connection, address: Address) -> None:
        """Keep one whose answer is complete."""
        self._idle.setdefault(address, []).append(connection)

    def lost(self, connection: Connection) -> None:
        """Forget one that is closed."""
        self._all.discard(connection)

    def _look(self) -> None:
        now = self._loop.time()
        for connection in list(self._all):
            connection.look(now)
        for address, idle in list(self._idle.items()):
            for connection in idle:
                if not connection.usable:
                    connection.cut()
            self._idle[address] = [connection for connection in idle if connection.usable]
            if not self._idle[address]:
                del self._idle[address]
        self._looking = self._loop.call_later(_LOOK_S, self._look) if self._all else None


@lru_cache(256)
def address_of(url: str) -> Address:
    """Return host and port of an engine's URL."""
    parts = urlsplit(url)
    return str(parts.hostname), parts.port or 80


@lru_cache(256)
def _head(url: str, path: str, key: str) -> bytes:
    host, port = address_of(url)
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "Content-Length: "]).encode()


def post(url: str, path: str, key: str, body: bytes) -> bytes:
    """Return all bytes of a request that posts JSON under the key ("": none)."""
    return b"%b%d\r\n\r\n%b" % (_head(url, path, key), len(body), body)

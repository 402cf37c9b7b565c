"""One HTTP call to an engine: bounded in time and size, sent again only where that is harmless, failing as what must be done next."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import aiohttp
import anyio
import msgspec

MAX_REPLY: Final = 4 << 20
"""Bytes of one reply; a longer one is not read."""
CONNECT_S: Final = 5.0
T = TypeVar("T")


class EngineError(Exception):
    """An operation on an engine did not succeed."""


class EngineUnreachable(EngineError):
    """Nobody answers, or the connection broke: the engine is dead, dying or not up. Wait for its exit; if it does not come, kill it."""


class EngineTimedOut(EngineError):
    """No answer within the deadline: what the engine has done is unknown. Never repeat; look at it, or kill it."""


class EngineRefused(EngineError):
    """The engine answered that it will not (`status`, HTTP). It has not done this call; the calls before it in the operation stand."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EnginePoisoned(EngineRefused):
    """A weight update failed: what is loaded is old, mixed or garbage. Discard this engine."""


class EngineGarbled(EngineError):
    """Something answered that does not speak the dialect, or is not our engine. Kill the group and look at the port and the version."""


@dataclass(frozen=True)
class Verb:
    """One call of the dialect. `limit_s` bounds it beside the operation's deadline; `repeatable` ones may be sent twice."""

    method: str
    path: str
    limit_s: float
    repeatable: bool


def new_session() -> aiohttp.ClientSession:
    """A session for control calls: no connection is reused, since a call that may not be repeated must not meet a stale one."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False, auto_decompress=False)


class Calls:
    """Calls to one engine."""

    def __init__(self, url: str, key: str, session: aiohttp.ClientSession) -> None:
        self.url = url.rstrip("/")
        self.has_key = bool(key)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session = session

    async def ask(self, verb: Verb, kind: type[T], body: object = None) -> T:
        """`send`, and its reply as `kind`. Raises EngineError."""
        raw = await self.send(verb, body)
        try:
            return msgspec.json.decode(raw, type=kind)
        except (ValueError, RecursionError) as error:  # all that msgspec raises: a field that is skipped may be nested too deeply
            raise EngineGarbled(f"{verb.path} of {self.url} answered {raw[:200]!r}: {error}") from error

    async def send(self, verb: Verb, body: object = None) -> bytes:
        """One call, once more if the connection breaks and the verb allows it. Raises EngineError."""
        try:
            with anyio.fail_after(verb.limit_s):
                try:
                    return await self._once(verb, body)
                except EngineUnreachable:
                    if not verb.repeatable:
                        raise
                return await self._once(verb, body)
        except TimeoutError as error:
            raise EngineTimedOut(f"{verb.path} of {self.url} did not answer within {verb.limit_s:g} s") from error

    async def _once(self, verb: Verb, body: object) -> bytes:
        data = msgspec.json.encode(body) if body is not None else None
        headers = {**self._headers, "Content-Type": "application/json"} if data is not None else self._headers
        try:
            async with self._session.request(verb.method, self.url + verb.path, data=data, headers=headers, allow_redirects=False) as reply:
                raw = bytearray()
                async for piece in reply.content.iter_any():
                    raw += piece
                    if len(raw) > MAX_REPLY:
                        raise EngineGarbled(f"{verb.path} of {self.url} answered more than {MAX_REPLY} bytes")
                if reply.status >= 300:
                    raise EngineRefused(f"{verb.path} of {self.url}: {reply.status} {_message(bytes(raw))}", reply.status)
                return bytes(raw)
        except aiohttp.ClientConnectorError as error:
            raise EngineUnreachable(f"{self.url}: nobody listens: {error}") from error
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, ConnectionError) as error:
            raise EngineUnreachable(f"{verb.path} of {self.url}: the connection broke: {type(error).__name__}: {error}") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise EngineGarbled(f"{verb.path} of {self.url}: not HTTP as we know it: {type(error).__name__}: {error}") from error

    async def status_without_key(self, verb: Verb) -> int:
        """The HTTP status that somebody gets who does not know the key. Raises EngineUnreachable."""
        try:
            async with self._session.request(verb.method, self.url + verb.path, allow_redirects=False) as reply:
                return reply.status
        except aiohttp.ClientError as error:
            raise EngineUnreachable(f"{self.url}: {type(error).__name__}: {error}") from error


@contextmanager
def within(deadline: float, what: str) -> Iterator[None]:
    """The operation's deadline, as EngineTimedOut."""
    try:
        with anyio.fail_after(deadline):
            yield
    except TimeoutError as error:
        raise EngineTimedOut(f"{what} did not end within {deadline:g} s") from error


class _Message(msgspec.Struct):
    message: str = ""
    error: "str | _Message | None" = None


def _message(raw: bytes) -> str:
    """What an error body says, in whichever of the dialect's shapes."""
    try:
        body = msgspec.json.decode(raw, type=_Message)
    except (ValueError, RecursionError):
        return raw[:500].decode("utf-8", "replace").strip()
    inner = body.error.message if isinstance(body.error, _Message) else body.error
    return (inner or body.message or raw[:500].decode("utf-8", "replace"))[:2000]

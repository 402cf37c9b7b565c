"""One attempt over a real socket, whatever the engine's server does with it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engines.gateway.core.events import Broken, End, Finished, Refused, Start, Tokens
from engines.gateway.upstream import http_connection
from engines.gateway.upstream.engine_client import EngineClient

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def event(*ids: int, count: int, reason: str | None = None) -> bytes:
    meta = {
        "completion_tokens": count,
        "finish_reason": reason and {"type": reason},
        "output_token_logprobs": [[-0.25, token, None] for token in ids],
    }
    return b"data: " + json.dumps({"output_ids": ids, "meta_info": meta}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


COMPLETE = HEAD + chunk(event(5, count=1)) + chunk(event(6, 7, count=3, reason="length")) + chunk(b"data: [DONE]\n\n") + LAST


async def asked(reader: asyncio.StreamReader) -> bytes:
    """Read one request and return its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return await reader.readexactly(length)


class Asking:
    """An attempt at an engine, and what is told of it."""

    def __init__(self, client: EngineClient, url: str) -> None:
        self.tokens: list[Tokens] = []
        self.end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        start = Start(attempt=1, engine=0, incarnation=1, url=url, key="secret", body={"input_ids": [1]})
        self.running = client.run(start, "0" * 32, self.tokens.append, self.end.set_result)

    async def ended(self) -> End:
        async with asyncio.timeout(10):
            return await self.end

    @property
    def ids(self) -> list[int]:
        return [token for one in self.tokens for token in one.ids]


@asynccontextmanager
async def engine(serve: Serve) -> AsyncIterator[tuple[EngineClient, str]]:
    """A client, and the URL of a server that does this with each connection."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = EngineClient()
    try:
        yield client, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


def answering(*parts: bytes) -> Serve:
    """A server that answers every connection's first request with these bytes, one after the other, and closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    return serve


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_an_answer_is_read_however_it_is_cut(size: int) -> None:
    async def play() -> None:
        async with engine(answering(*(COMPLETE[at : at + size] for at in range(0, len(COMPLETE), size)))) as (client, url):
            asking = Asking(client, url)
            assert await asking.ended() == Finished({"type": "length"}, {"completion_tokens": 3})
            assert asking.ids == [5, 6, 7]
            assert [value for one in asking.tokens for value in one.logprobs] == [-0.25] * 3

    asyncio.run(play())


CASES: list[tuple[str, bytes, End]] = [
    ("closed before an answer", b"", Broken("", accepted=False, died=True)),
    ("closed within the head", HEAD[:20], Broken("", accepted=False, died=True)),
    ("closed within the stream", HEAD + chunk(event(5, count=1)), Broken("", accepted=True, died=True)),
    ("a stream without an end", HEAD + chunk(event(5, count=1)) + LAST, Broken("", accepted=True, died=True)),
    ("no HTTP", b"hello\r\n\r\n", Broken("", accepted=False)),
    ("no chunk", HEAD + b"x\r\n", Broken("", accepted=True)),
    ("no event", HEAD + chunk(b"data: {\n\n") + LAST, Broken("", accepted=True)),
    ("refused", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno", Refused(400, "no")),
    ("busy", b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", Broken("HTTP 503: no", accepted=False, busy=True)),
    ("failed", b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno", Broken("HTTP 500: no", accepted=True)),
    ("failed, and closed", b"HTTP/1.1 500 Oh\r\nContent-Length: 9\r\n\r\nno", Broken("HTTP 500: no", accepted=True)),
]


@pytest.mark.parametrize(("sent", "end"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_an_engine_does_becomes_the_end_of_the_attempt(sent: bytes, end: End) -> None:
    async def play() -> None:
        async with engine(answering(sent)) as (client, url):
            got = await Asking(client, url).ended()
            if isinstance(end, Broken):
                assert isinstance(got, Broken)
                assert (got.accepted, got.busy, got.died) == (end.accepted, end.busy, end.died), got
                assert got.cause.endswith(end.cause)
                assert got.cause
            else:
                assert got == end

    asyncio.run(play())


def test_an_engine_that_is_not_there_has_not_had_the_request() -> None:
    async def play() -> None:
        async with engine(answering(COMPLETE)) as (client, url):
            pass
        client = EngineClient()
        got = await Asking(client, url).ended()
        assert isinstance(got, Broken)
        assert not got.accepted
        assert not got.died
        assert "cannot connect to 127.0.0.1" in got.cause
        assert "NotConnected" in await client.abort(url, "secret", "0" * 32)
        await client.close()

    asyncio.run(play())


def test_a_connection_is_kept_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while True:
                await asked(reader)
                writer.write(COMPLETE)
        except asyncio.IncompleteReadError:
            writer.close()

    async def play() -> None:
        async with engine(serve) as (client, url):
            for _ in range(3):
                assert isinstance(await Asking(client, url).ended(), Finished)
            assert connections == 1
            monkeypatch.setattr(http_connection, "IDLE_S", 0.0)
            assert isinstance(await Asking(client, url).ended(), Finished)
            assert connections == 2
            at_once = [Asking(client, url) for _ in range(4)]
            for one in at_once:
                assert isinstance(await one.ended(), Finished)
            assert connections == 6

    asyncio.run(play())


def test_a_cut_closes_the_connection_and_nothing_more_is_told() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(HEAD + chunk(event(5, count=1)))
        assert await reader.read() == b""
        gone.set()
        writer.close()

    async def play() -> None:
        async with engine(serve) as (client, url):
            asking = Asking(client, url)
            while not asking.tokens:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
            asking.running.cut()
            async with asyncio.timeout(10):
                await gone.wait()
            early = Asking(client, url)
            early.running.cut()
            await asyncio.sleep(0.05)
            assert not asking.end.done()
            assert not early.end.done()
            assert not early.tokens

    asyncio.run(play())


def test_a_silent_engine_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "SILENCE_S", 0.1)
    monkeypatch.setattr(http_connection, "_LOOK_S", 0.02)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(HEAD)
        await reader.read()
        writer.close()

    async def play() -> None:
        async with engine(serve) as (client, url):
            got = await Asking(client, url).ended()
            assert isinstance(got, Broken)
            assert got.accepted
            assert not got.died

    asyncio.run(play())


def test_a_bug_in_what_is_told_is_heard() -> None:
    def bug(tokens: Tokens) -> None:
        raise AssertionError("a bug")

    async def play() -> None:
        heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        async with engine(answering(COMPLETE)) as (client, url):
            client.on_bug(heard.set_result)
            start = Start(attempt=1, engine=0, incarnation=1, url=url, key="", body={})
            client.run(start, "0" * 32, bug, lambda end: None)
            async with asyncio.timeout(10):
                assert isinstance(await heard, AssertionError)

    asyncio.run(play())

"""Driving a real embedded engine through EngineControl: sleep, wake, loads in place, and what each failure is called."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from engines.control import (
    EngineControl,
    EngineGarbled,
    EnginePoisoned,
    EngineRefused,
    EngineTimedOut,
    EngineUnreachable,
    Memory,
    new_session,
)
from tests.harness.engine_process import KEY, EngineProcess, engine_process
from trainers.protocol.ids import Version

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine(tiny: Path, tmp_path: Path) -> Iterator[EngineProcess]:
    with engine_process(tiny, tmp_path / "engine.log") as engine:
        yield engine


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


async def test_a_whole_life(engine: EngineProcess, session: aiohttp.ClientSession, tiny: Path, other: Path) -> None:
    control = EngineControl(engine.url, KEY, session)
    info = await control.ready(10)
    assert (info.version, info.model_path, info.engine) == (0, str(tiny), "trainshed-embedded")
    await control.canary(10)
    await control.health(5)
    awake = engine.held()
    await control.pause(10)
    await control.pause(10)
    assert engine.held() == 0
    assert (await control.probe(5)).running == 0
    for version, folder in ((3, other), (4, tiny)):
        assert await control.wake(Version(version), str(folder), 10) == version
        assert engine.held() == awake
        await control.canary(10)
        await control.health_generate(5)
        assert (await control.model_info(5)).version == version
        await control.pause(10)
    assert await control.wake(Version(0), str(tiny), 10) == 0
    assert await control.load(Version(5), str(other), 10) == 5
    assert control.memory is Memory.AWAKE
    assert (await control.load_info(5)).running == 0


async def _until_running(control: EngineControl) -> None:
    while not (await control.load_info(5)).running:  # noqa: ASYNC110 - another process gives no event
        await anyio.sleep(0.005)


async def test_a_load_in_place_lets_running_requests_go_on(engine: EngineProcess, session: aiohttp.ClientSession, other: Path) -> None:
    control = EngineControl(engine.url, KEY, session)
    params = {"max_new_tokens": 60, "ignore_eos": True, "sampling_seed": 1}
    body = {"input_ids": [[1, index % 64] for index in range(128)], "sampling_params": params}

    async def ask() -> Any:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with session.post(engine.url + "/generate", json=body, headers=headers) as reply:
            return await reply.json()

    task = asyncio.create_task(ask())
    with anyio.fail_after(10):
        await _until_running(control)
        assert await control.load(Version(1), str(other), 10) == 1
        answers = await task
    versions = [tuple(span["version"] for span in answer["meta_info"]["weight_versions"]) for answer in answers]
    assert ("0", "1") in versions
    assert ("1",) in versions
    assert all(answer["meta_info"]["completion_tokens"] == 60 for answer in answers)


async def test_pausing_a_busy_engine_aborts_and_sleeps(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    control = EngineControl(engine.url, KEY, session)
    body = {"input_ids": [[1, index % 64] for index in range(512)], "sampling_params": {"max_new_tokens": 60, "ignore_eos": True}}

    async def ask() -> Any:
        async with session.post(engine.url + "/generate", json=body, headers={"Authorization": f"Bearer {KEY}"}) as reply:
            return await reply.json()

    task = asyncio.create_task(ask())
    with anyio.fail_after(10):
        await _until_running(control)
        await control.pause(10)
        assert engine.held() == 0
        answers = await task
    ends = [answer["meta_info"]["finish_reason"] for answer in answers]
    assert {end["message"] for end in ends if end["type"] == "abort"} == {"Aborted", "Abort in waiting queue"}


async def test_misuse_is_refused_here_and_never_sent(engine: EngineProcess, session: aiohttp.ClientSession, tiny: Path) -> None:
    control = EngineControl(engine.url, KEY, session)
    with pytest.raises(EngineRefused, match="awake"):
        await control.wake(Version(1), str(tiny), 10)
    await control.pause(10)
    with pytest.raises(EngineRefused, match="asleep"):
        await control.load(Version(1), str(tiny), 10)
    assert await control.wake(Version(1), str(tiny), 10) == 1


async def test_a_failed_load_is_poison_and_the_state_unknown_from_then_on(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    control = EngineControl(engine.url, KEY, session)
    with pytest.raises(EnginePoisoned, match="version 9 from /nonexistent"):
        await control.load(Version(9), "/nonexistent", 10)
    assert control.memory is Memory.UNKNOWN
    with pytest.raises(EngineTimedOut, match="unknown"):
        await control.pause(10)
    await control.probe(5)


async def test_an_operation_that_hangs_is_unknown_and_looks_time_out(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    control = EngineControl(engine.url, KEY, session)
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        with pytest.raises(EngineTimedOut, match=r"pause did not end within 0\.3 s"):
            await control.pause(0.3)
        with pytest.raises(EngineTimedOut):
            await control.model_info(0.2)
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    with pytest.raises(EngineTimedOut, match="unknown"):
        await control.pause(5)


async def test_the_dead_are_unreachable(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    control = EngineControl(engine.url, KEY, session)
    engine.process.kill()
    engine.exit_code()
    with pytest.raises(EngineUnreachable, match="nobody listens"):
        await control.probe(5)
    with pytest.raises(EngineTimedOut, match="becoming ready"):
        await control.ready(0.2)


async def test_an_engine_of_another_life_is_not_ours(engine: EngineProcess, session: aiohttp.ClientSession) -> None:
    with pytest.raises(EngineGarbled, match="another process has the port"):
        await EngineControl(engine.url, "key of this life", session).ready(5)


Reply = Callable[[str], bytes]


@asynccontextmanager
async def _scripted(reply: Reply) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers each request with raw bytes and hangs up; its URL and the request lines that it saw."""
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line = head.split(" HTTP")[0]
            seen.append(line)
            writer.write(reply(line))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()


def _ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


INFO = _ok(b'{"model_path": "m", "weight_version": "3"}')


async def test_releases_are_sent_once_and_questions_twice(session: aiohttp.ClientSession) -> None:
    def hang_up(line: str) -> bytes:
        return b"" if "release" in line or "model_info" in line else _ok(b"{}")

    async with _scripted(hang_up) as (url, seen):
        control = EngineControl(url, "", session)
        with pytest.raises(EngineUnreachable, match="connection broke"):
            await control.model_info(5)
        with pytest.raises(EngineUnreachable, match="connection broke"):
            await control.pause(5)
    assert [line for line in seen if "release" in line] == ["POST /release_memory_occupation"]
    assert len([line for line in seen if "model_info" in line]) >= 2  # aiohttp itself repeats a GET too, but never a POST


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (_ok(b"not json"), EngineGarbled),
        (_ok(b'{"model_path": 7}'), EngineGarbled),
        (_ok(b"\xff\xfe"), EngineGarbled),
        (_ok(b'{"zz":' + b"[" * 50_000), EngineGarbled),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (5 << 20), EngineGarbled),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", EngineGarbled),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", EngineUnreachable),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", EngineRefused),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", EngineRefused),
        (b"HTTP/1.1 500 No\r\nContent-Length: 27\r\n\r\n" + b'{"error":{"message":"boom"}}'[:27], EngineRefused),
    ],
)
async def test_bad_replies_have_a_name(session: aiohttp.ClientSession, reply: bytes, error: type[Exception]) -> None:
    async with _scripted(lambda line: reply) as (url, _):
        with pytest.raises(error):
            await EngineControl(url, "", session).model_info(5)


async def test_a_server_that_serves_everybody_is_not_our_engine(session: aiohttp.ClientSession) -> None:
    async with _scripted(lambda line: INFO) as (url, _):
        with pytest.raises(EngineGarbled, match="without a key"):
            await EngineControl(url, "k", session).ready(5)


async def test_an_aborted_canary_is_a_refusal(session: aiohttp.ClientSession) -> None:
    body = _ok(b'{"meta_info": {"finish_reason": {"type": "abort", "message": "no"}, "completion_tokens": 0}}')
    async with _scripted(lambda line: body) as (url, _):
        with pytest.raises(EngineRefused, match="abort no"):
            await EngineControl(url, "", session).canary(5)


async def test_a_version_that_is_not_ours_is_no_version(session: aiohttp.ClientSession) -> None:
    unnamed = _ok(b'{"model_path": "m", "weight_version": "default"}')

    def answer(line: str) -> bytes:
        return unnamed if "model_info" in line else _ok(b'{"success": true, "message": ""}')

    async with _scripted(answer) as (url, _):
        with pytest.raises(EngineGarbled, match="'default'"):
            await EngineControl(url, "", session).load(Version(2), "/x", 5)

"""What one request may ask for and hold, and that the gateway goes on serving others meanwhile."""

import asyncio
import http.client
import json
import random
import socket
import threading
import time
from array import array
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from engines.gateway.core import dispatch, rollouts
from engines.gateway.core.samples import TOKENS, Request
from engines.gateway.routes import acceptor, body_reader, request_bodies
from engines.gateway.routes.acceptor import Acceptor
from engines.gateway.routes.body_reader import BodyReader, refuse_crowded
from engines.gateway.routes.errors import RequestError
from tests.harness.dispatch_driver import DispatchDriver
from tests.harness.gateway_box import Box, box, sample, samples
from tests.harness.scripted_engine import Script, ScriptedEngine

JSON = {"Content-Type": "application/json"}
SILENCE_S = 1.0
"""The gateway is silent for no longer, on a box that is busy with other tests: without limits it was for 4 s and more."""


class Listening:
    """Somebody else asks for `/health` all the time, and notes the longest wait."""

    def __init__(self, url: str) -> None:
        self.longest = 0.0
        self.answers = 0
        self._at = url.removeprefix("http://")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> "Listening":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._stop.wait(0.005):
            connection = http.client.HTTPConnection(self._at, timeout=60)
            began = time.monotonic()
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            connection.close()
            self.longest = max(self.longest, time.monotonic() - began)
            self.answers += 1


HUGE = {
    "a million prompts": ("/generate", b'{"input_ids": [' + b"[3]," * 1_000_000 + b"[3]]}"),
    "a million texts": ("/v1/completions", b'{"prompt": [' + b'"a",' * 1_000_000 + b'"a"]}'),
    "a million samples": ("/rollouts/0/samples", b'{"samples": [' + b'{"sample":1,"input_ids":[4]},' * 1_000_000 + b"1]}"),
    "a million lists in a parameter": ("/generate", b'{"input_ids": [4], "sampling_params": {"x": [' + b"[]," * 1_000_000 + b"[]]}}"),
    "a million messages": ("/v1/chat/completions", b'{"messages": [' + b'{"role":"user"},' * 1_000_000 + b'{"role":"user"}]}'),
    "ten million tokens": ("/generate", b'{"input_ids": [' + b"4," * 10_000_000 + b"4]}"),
    "copies": ("/generate", b'{"input_ids": [' + b"[4]," * 4 + b'[4]], "sampling_params": {"n": 1024}}'),
    "prompts": ("/generate", b'{"input_ids": [' + b"[4]," * 4096 + b"[4]]}"),
    "a prompt": ("/generate", b'{"input_ids": [' + b"4," * (1 << 20) + b"4]}"),
}


def test_a_body_that_asks_for_too_much_is_refused_and_delays_nobody(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session):
            before = memory(gateway)
            with Listening(gateway.url) as others:
                for name, (path, body) in HUGE.items():
                    async with session.post(path, data=body, headers=JSON) as response:
                        assert (response.status, (await response.json())["error"]["code"]) == (413, "too_large"), name
            assert others.longest < SILENCE_S
            assert others.answers > 20
            assert memory(gateway) - before < 400 << 20
            assert not gateway.progress.rollouts, "nothing of it waits"

    asyncio.run(play())


def memory(gateway: Box) -> int:
    """Bytes that the gateway has had at most."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.slow
def test_as_many_samples_as_may_be_are_asked_and_given_up_beside_others(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(key="secret")) as engine:
            body = b'{"input_ids": [' + b"[4]," * (request_bodies.MAX_SAMPLES - 1) + b'[4]], "sampling_params": {"max_new_tokens": 2}}'
            with Listening(gateway.url) as others:
                lost = asyncio.create_task(session.post("/generate", data=body, headers=JSON))
                await gateway.until(lambda said: said.rollouts and said.rollouts[0].waiting == request_bodies.MAX_SAMPLES)
                lost.cancel()  # the client hangs up
                await gateway.until(lambda said: said.rollouts and said.rollouts[0].waiting == 0)
                assert others.longest < SILENCE_S / 2
                await gateway.route(engine, slots=64)
                async with session.post("/generate", data=body, headers=JSON) as response:
                    made = await response.json()
            assert len(made) == request_bodies.MAX_SAMPLES
            assert all(len(one["output_ids"]) == 2 for one in made)

    asyncio.run(play())


def test_what_a_body_holds_is_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    monkeypatch.setattr(body_reader, "_PIECE", 7)
    for _ in range(300):
        texts = ["".join(chance.choices('\\",[{a', k=chance.randrange(12))) for _ in range(chance.randrange(5))]
        body = json.dumps({"a": texts, '\\"x': [1, 2, {"q": "\\"}], "": [[]]}).encode()
        values, containers, strings = counted(json.loads(body))
        monkeypatch.setattr(body_reader, "MAX_VALUES", values)
        monkeypatch.setattr(body_reader, "MAX_CONTAINERS", containers)
        monkeypatch.setattr(body_reader, "MAX_STRINGS", strings)
        refuse_crowded(body)
        for name, most in (("MAX_VALUES", values), ("MAX_CONTAINERS", containers), ("MAX_STRINGS", strings)):
            with monkeypatch.context() as less:
                less.setattr(body_reader, name, most - 1)
                with pytest.raises(RequestError):
                    refuse_crowded(body)


def counted(value: object) -> tuple[int, int, int]:
    """Commas, lists and objects, and strings of a value."""
    if isinstance(value, dict | list):
        parts = [counted(one) for one in (value.values() if isinstance(value, dict) else value)]
        names = len(value) if isinstance(value, dict) else 0
        commas, containers, strings = (sum(part[index] for part in parts) for index in range(3))
        return commas + max(0, len(value) - 1), containers + 1, strings + names
    return 0, 0, int(isinstance(value, str))


def test_a_body_that_does_not_come_or_is_one_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_reader, "MAX_READING", 100)
    reader = BodyReader(0.3)

    async def play() -> None:
        begun: asyncio.Queue[None] = asyncio.Queue()
        said: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

        async def handler(request: web.Request) -> web.Response:
            begun.put_nowait(None)
            try:
                await reader.decoded(request, bytes)
            except RequestError as error:
                said.put_nowait((error.status, error.code))
            return web.Response()

        app = web.Application()
        app.router.add_post("/", handler)
        runner = web.AppRunner(app, lingering_time=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        _, port = runner.addresses[0]
        _, slow = await asyncio.open_connection("127.0.0.1", port)
        slow.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 60)
        await asyncio.wait_for(begun.get(), 5)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.post("/", data=b"x" * 60):
                assert await said.get() == (503, "full")
            assert await asyncio.wait_for(said.get(), 5) == (408, "too_late")
            async with session.post("/", data=b"x" * 60):
                assert said.empty(), "what is read no more counts no more"
        slow.close()
        await runner.cleanup()

    asyncio.run(play())


def connections(monkeypatch: pytest.MonkeyPatch, silent_s: float, most: int) -> tuple[int, int]:
    """How many of ten silent connections stay, and of ten over which something was heard."""
    monkeypatch.setattr(acceptor, "SILENT_S", silent_s)
    monkeypatch.setattr(acceptor, "MAX_SILENT", most)
    lost: list[object] = []

    class Connection(asyncio.Protocol):
        heard = False

        def data_received(self, data: bytes) -> None:
            self.heard = True
            accept[0].heard(self)

        def connection_lost(self, error: Exception | None) -> None:
            lost.append(self.heard)

    async def play() -> tuple[int, int]:
        accept.append(Acceptor(listener, Connection, print))
        accept[0].start()
        address = listener.getsockname()
        ends = []
        for index in range(20):
            _, writer = await asyncio.open_connection(*address)
            if index % 2:
                writer.write(b"x")
            ends.append(writer)
        await asyncio.sleep(0.5)
        stay = 10 - lost.count(False), 10 - lost.count(True)
        accept[0].stop()
        for writer in ends:
            writer.close()
        return stay

    accept: list[Acceptor] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.setblocking(False)
        return asyncio.run(play())


def test_connections_over_which_nothing_is_heard_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connections(monkeypatch, 0.1, 100) == (0, 10)
    silent, heard = connections(monkeypatch, 60.0, 3)
    assert (0 < silent <= 3, heard) == (True, 10), "the youngest silent ones stay"


def test_so_many_rollouts_that_are_not_open_may_be_named() -> None:
    driver = DispatchDriver()
    for number in range(rollouts.MAX_EXPECTED):
        driver.ask(number, "0")
    assert driver.failure(driver.ask(rollouts.MAX_EXPECTED, "0")).code == "full"
    driver.open(0)
    asker = driver.ask(rollouts.MAX_EXPECTED, "0")
    assert asker not in driver.outcomes, "one of them is open: there is room"


def test_prompts_are_held_until_their_samples_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_TOKENS", 10)
    driver = DispatchDriver()
    driver.open()
    large = Request(array(TOKENS, [1] * 6), {}, 4, fingerprint=1)
    first = driver.ask(0, "0", wants=large)
    assert driver.failure(driver.ask(0, "1", wants=large)).code == "full"
    assert driver.ask(0, "0", wants=large) not in driver.outcomes, "it joins the one that is held"
    driver.route()
    driver.make(driver.only(), 7, 8, 9, 10)
    driver.end(driver.only())
    assert driver.answer(first).prompt_tokens == 6
    third = driver.ask(0, "1", wants=large)
    assert third not in driver.outcomes, "the first needs its prompt no more"
    driver.close()
    assert sum(one.tokens for one in driver.core.rollouts) == 6, "it runs yet"
    driver.end(driver.only())
    assert sum(one.tokens for one in driver.core.rollouts) == 0


def test_a_large_rollout_of_ours_is_asked_and_answered(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(key="secret")) as engine:
            await gateway.open(3, target=1000)
            await gateway.route(engine, slots=64)
            lines = await samples(session, 3, [sample(index, 2) for index in range(1000)])
            assert len(lines) == 1000
            assert all(len(line["output_ids"]) == 2 for line in lines.values())

    asyncio.run(play())

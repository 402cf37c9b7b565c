"""What our gateway costs: added latency and requests per second, beside an engine addressed directly and beside `sglang-router`.

    bin/bench gateway [ROUTER_PYTHON] [ROUNDS]      ROUTER_PYTHON: interpreter of an environment with `pip install sglang-router`

One engine from prepared bytes (`tests/harness/fast_engine.py`), asked for 32 tokens with log-probs, whole or streamed, by 1, 64 and 256 clients that each
ask again as soon as they have their answer. *Paced*: a token each 30 ms, as a real batch makes them; what a way adds is its latency minus
the direct one's. *Flat out*: all tokens at once; requests a second, and processor milliseconds a request of the process in between. The three ways
are taken in turn, round by round. Ours asks the engine for a stream of tokens even when its client wants the answer whole (else a lost
engine's tokens would be lost), and the router passes on one JSON then: that is part of the price.
"""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import psutil
import uvloop

from tests.harness.gateway_box import KEY, box
from trainers.grpo.tiny import VOCABULARY, write_tokenizer

CHECKOUT = Path(__file__).resolve().parents[1]

AT_ONCE = (1, 64, 256)
TOKENS = 32
PACE_S = 0.03
FLAT_S, PACED_S = 1.5, 3.0
WARM_S = 0.3
WAYS = ("direct", "ours", "router")


@dataclass
class Measured:
    """`cpu_s` of the process between client and engine."""

    seconds: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def at(self, share: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.wall_s

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu_s / max(1, len(self.seconds))


class Client(asyncio.Protocol):
    """Asks, and asks again when the answer is complete."""

    def __init__(self, request: bytes, measured: Measured, until: float, over: "asyncio.Future[None]") -> None:
        self._request, self._measured, self._until, self._over = request, measured, until, over
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_exception(ConnectionError(f"the connection was lost: {exc}: {self._buffer[:300]!r}"))

    def _ask(self) -> None:
        self._asked = time.monotonic()
        self._length: int | None = None
        self._buffer = b""
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._length is None:
            if (end := self._buffer.find(b"\r\n\r\n")) < 0:
                return
            head = self._buffer[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                self._over.set_exception(ConnectionError(repr(self._buffer[:500])))
                self._transport.abort()
                return
            start = head.find(b"content-length:")
            self._length = 0 if start < 0 else end + 4 + int(head[start + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) >= self._length if self._length else self._buffer.endswith(b"0\r\n\r\n"):
            self._answered()

    def _answered(self) -> None:
        if b"output_token_logprobs" not in self._buffer:
            self._over.set_exception(ConnectionError(repr(self._buffer[:500])))
            return
        now = time.monotonic()
        self._measured.seconds.append(now - self._asked)
        if now < self._until:
            self._ask()
        elif not self._over.done():
            self._over.set_result(None)
            self._transport.close()


async def ask(url: str, path: str, body: bytes, at_once: int, seconds: float, measured: Measured, pid: int | None) -> None:
    """So many clients for so long; adds to `measured`."""
    address = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    loop = asyncio.get_running_loop()
    process = psutil.Process(pid) if pid is not None else None
    before, began = sum(process.cpu_times()[:2]) if process else 0.0, time.monotonic()
    overs = []
    for _ in range(at_once):
        over: asyncio.Future[None] = loop.create_future()
        overs.append(over)
        await loop.create_connection(
            partial(Client, request, measured, began + seconds, over), str(address.hostname), int(address.port or 80)
        )
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*overs)
    measured.wall_s += time.monotonic() - began
    if process:
        measured.cpu_s += sum(process.cpu_times()[:2]) - before


def generate(stream: bool) -> bytes:
    params = {"max_new_tokens": TOKENS, "temperature": 1.0, "ignore_eos": True}
    return json.dumps({"input_ids": list(range(4, 34)) * 2, "sampling_params": params, "return_logprob": True, "stream": stream}).encode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def started(stack: ExitStack, command: Sequence[str], log: Path) -> int:
    """A process that ends with the stack."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ""})
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process.pid


def engine(stack: ExitStack, pace: float, folder: Path, interval: int = 1) -> str:
    port = free_port()
    started(
        stack,
        [sys.executable, str(CHECKOUT / "tests" / "harness" / "fast_engine.py"), str(port), str(pace), str(interval)],
        folder / f"engine-{pace}.log",
    )
    return f"http://127.0.0.1:{port}"


def router(stack: ExitStack, python: str, worker: str, log: Path) -> tuple[str, int]:
    port = free_port()
    options = [
        "--policy",
        "round_robin",
        "--max-concurrent-requests",
        "4096",
        "--disable-circuit-breaker",
        "--prometheus-port",
        str(free_port()),
    ]
    command = [python, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", worker, *options]
    return f"http://127.0.0.1:{port}", started(stack, [*command, "--log-level", "error"], log)


async def answers(url: str, log: Path) -> None:
    """Wait until one request comes back."""
    async with asyncio.timeout(60):
        while True:
            try:
                await ask(url, "/generate", generate(False), 1, 0.0, Measured(), None)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            return


async def compare(ways: dict[str, tuple[str, int | None]], stream: bool, at_once: int, seconds: float, rounds: int) -> dict[str, Measured]:
    """The ways in turn; each has a little time to get warm that does not count."""
    made = {way: Measured() for way in ways}
    for number in range(rounds):
        order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for way in order:
            url, pid = ways[way]
            await ask(url, "/generate", generate(stream), at_once, WARM_S, Measured(), None)
            await ask(url, "/generate", generate(stream), at_once, seconds, made[way], pid)
    return made


async def batches(url: str, at_once: int, rounds: int) -> Measured:
    """Our clients' own route: one request for all samples of a rollout, a line each as it finishes."""
    measured = Measured()
    params = {"max_new_tokens": TOKENS, "temperature": 1.0, "ignore_eos": True}
    import aiohttp

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        for number in range(rounds):
            samples = [{"sample": index, "input_ids": list(range(4, 34)) * 2, "sampling_params": params} for index in range(at_once)]
            began = time.monotonic()
            async with session.post(f"{url}/rollouts/{number}/samples", json={"samples": samples}) as response:
                lines = [line async for line in response.content if line.strip()]
            assert len(lines) == at_once, lines[:1]
            measured.wall_s += time.monotonic() - began
            measured.seconds += [0.0] * at_once
    return measured


def model(folder: Path) -> Path:
    """As much of one as the gateway reads."""
    folder.mkdir()
    write_tokenizer(folder, 4096)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": VOCABULARY["<eos>"]}))
    return folder


async def play(python: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gateway-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        made = model(folder / "model")
        for name, pace, seconds in (("flat out", 0.0, FLAT_S), ("paced", PACE_S, PACED_S)):
            url = engine(stack, pace, folder)
            await answers(url, folder)
            ours_folder = folder / f"ours-{pace}"
            ours_folder.mkdir()
            async with box(made, ours_folder) as (gateway, _):
                ways: dict[str, tuple[str, int | None]] = {"direct": (url, None), "ours": (gateway.url, gateway.process.pid)}
                await gateway.route(url, slots=4096)
                if python:
                    ways["router"] = router(stack, python, url, folder / f"router-{pace}.log")
                for way, (where, _pid) in ways.items():
                    await answers(where, folder / way)
                for stream in (False, True):
                    for at_once in AT_ONCE:
                        show(name, stream, at_once, await compare(ways, stream, at_once, seconds, rounds))
                if pace == 0.0:
                    for number in range(rounds):
                        await gateway.open(number)
                    got = await batches(gateway.url, AT_ONCE[-1], rounds)
                    print(f"{name}: {AT_ONCE[-1]} samples in one request of our client: {got.per_second:.0f} samples/s", flush=True)


def show(name: str, stream: bool, at_once: int, made: dict[str, Measured]) -> None:
    direct = made["direct"]
    row: dict[str, object] = {"load": name, "answers": "streamed" if stream else "whole", "at_once": at_once}
    for way, measured in made.items():
        row[way] = {
            "p50_ms": round(measured.at(0.5), 2), "p99_ms": round(measured.at(0.99), 2), "per_s": round(measured.per_second),
            "mean_ms": round(1000 * statistics.fmean(measured.seconds), 2),
            **({} if way == "direct" else {
                "added_p50_ms": round(measured.at(0.5) - direct.at(0.5), 2), "added_p99_ms": round(measured.at(0.99) - direct.at(0.99), 2),
                "cpu_ms": round(measured.cpu_ms, 3),
            }),
        }  # fmt: skip
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    rounds = next((int(word) for word in words if word.isdigit()), 5)
    uvloop.run(play(next((word for word in words if not word.isdigit()), ""), rounds))

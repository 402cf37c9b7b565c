"""A gateway process, its supervisor's end, and an HTTP client: what the tests with real sockets share."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engines.gateway.routes.text import Text
from tests.harness.scripted_engine import ScriptedEngine, expected
from trainers.protocol import gateway_messages
from trainers.protocol.framing import FrameReader, encode
from trainers.protocol.gateway_messages import Done, Progress, Ready, Report
from trainers.protocol.seeds import sample_seed

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 15.0
KEY = "the key of the tests' pipeline"
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Tokens 4, 5, 6 … of the tests' model."""


class Box:
    """One gateway process. Orders are awaited until they are done; what it reports is kept."""

    def __init__(self, model: Path, log: Path, *arguments: str) -> None:
        self._model, self._log, self._arguments = model, log, arguments
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.progress = Progress(())
        self.reports = 0
        self._orders = 0
        self._done: dict[int, str] = {}
        self._changed = asyncio.Condition()
        self.ready = asyncio.Event()

    async def start(self) -> None:
        """Start it (again): nothing of an earlier life is told to it."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "engines.gateway", "--pipeline", "p1", "--listen-fd", str(self.listener.fileno())]
        fds = (self.listener.fileno(), theirs.fileno())
        with self._log.open("ab") as log, theirs:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                "--seed",
                "7",
                "--model",
                str(self._model),
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env={"PYTHONPATH": str(ROOT), "TRAINSHED_FD": str(theirs.fileno()), "TRAINSHED_API_KEY": KEY, "PATH": os.environ["PATH"]},
                cwd="/",
            )
        self.ready.clear()
        self.reader, self.writer = await asyncio.open_unix_connection(sock=ours)
        self._listening = asyncio.create_task(self._listen())
        async with asyncio.timeout(PATIENCE):
            await self.ready.wait()

    async def stop(self) -> int:
        self.writer.close()
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
        await self._listening
        return code

    async def _listen(self) -> None:
        frames: FrameReader[Report] = FrameReader(Report)
        while data := await self._read():
            for report in frames.feed(data):
                async with self._changed:
                    match report:
                        case Ready():
                            self.ready.set()
                        case Done(order, error):
                            assert order not in self._done, "an order answered twice"
                            self._done[order] = error
                        case Progress():
                            self.progress = report
                            self.reports += 1
                    self._changed.notify_all()

    async def _read(self) -> bytes:
        try:
            return await self.reader.read(1 << 16)
        except ConnectionError:
            return b""

    async def until(self, condition: Any) -> None:
        """Wait until the reported progress is so."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: condition(self.progress))

    async def busy(self, rank: int) -> None:
        """Wait until this engine has made tokens since its route was set, or nothing is left to be made."""

        def holds(said: Progress) -> bool:
            works = any(load.engine == rank and load.tokens for load in said.engines)
            return works or (bool(said.rollouts) and not any(one.waiting or one.in_flight for one in said.rollouts))

        await self.until(holds)

    async def order(self, kind: type, **fields: Any) -> float:
        """Give the order and wait until it holds; returns the seconds it took."""
        self._orders += 1
        number, begun = self._orders, asyncio.get_running_loop().time()
        self.writer.write(encode(kind(order=number, **fields)))
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: number in self._done)
        return asyncio.get_running_loop().time() - begun

    async def route(
        self, engine: ScriptedEngine | str, rank: int = 0, incarnation: int = 1, slots: int = 4, version: int = 0, key: str = "secret"
    ) -> float:
        url = engine if isinstance(engine, str) else engine.url
        return await self.order(
            gateway_messages.Route, engine=rank, incarnation=incarnation, url=url, key=key, slots=slots, version=version
        )

    async def drain(self, rank: int = 0, incarnation: int = 1) -> float:
        return await self.order(gateway_messages.Drain, engine=rank, incarnation=incarnation)

    async def lost(self, rank: int = 0, incarnation: int = 1) -> float:
        return await self.order(gateway_messages.Lost, engine=rank, incarnation=incarnation)

    async def open(self, rollout: int = 0, target: int = 8) -> float:
        return await self.order(gateway_messages.OpenRollout, rollout=rollout, target=target)

    async def close(self, rollout: int = 0) -> float:
        return await self.order(gateway_messages.CloseRollout, rollout=rollout)


@asynccontextmanager
async def box(model: Path, tmp_path: Path, *arguments: str) -> AsyncIterator[tuple[Box, aiohttp.ClientSession]]:
    """A running gateway and a session of HTTP; the gateway must end by itself when the channel closes."""
    made = Box(model, tmp_path / "gateway.log", *arguments)
    await made.start()
    try:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(base_url=made.url, headers=headers, timeout=aiohttp.ClientTimeout(total=60)) as session:
            yield made, session
        assert await made.stop() == 0, made._log.read_text()
    finally:
        made.listener.close()
        if made.process.returncode is None:
            made.process.kill()
            await made.process.wait()


async def samples(session: aiohttp.ClientSession, rollout: int, asked: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Ask for these samples and return their lines by number; a number that comes twice fails."""
    lines: dict[int, dict[str, Any]] = {}
    async with session.post(f"/rollouts/{rollout}/samples", json={"samples": asked}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "application/x-ndjson"
        async for line in response.content:
            if line.strip():
                made = json.loads(line)
                assert made["sample"] not in lines, "delivered twice"
                lines[made["sample"]] = made
    return lines


def text_of(ids: list[int]) -> str:
    return "".join(CHARACTERS[token - 4] for token in ids)


def sample(index: int, limit: int = 12, **params: Any) -> dict[str, Any]:
    return {"sample": index, "input_ids": [4 + index % 60, 5], "sampling_params": {"max_new_tokens": limit, **params}}


def right(rollout: int, index: int, line: dict[str, Any], limit: int = 12) -> bool:
    """Whether it is the sample that an uninterrupted engine makes, with spans that cover it."""
    ids, logprobs = expected([4 + index % 60, 5], {"max_new_tokens": limit, "sampling_seed": sample_seed(7, rollout, index)})
    covered = [token for span in line["spans"] for token in range(span["start"], span["end"])]
    return bool(
        line["output_ids"] == ids and line["logprobs"] == logprobs and covered == list(range(limit)) and line["text"] == text_of(ids)
    )


def byte_level(directory: Path) -> Text:
    """One token a byte, so that characters are cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return Text(directory)

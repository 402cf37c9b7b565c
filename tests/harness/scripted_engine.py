"""An engine for tests: SGLang's dialect, deterministic tokens, no model. Ready in some 100 ms as a process, at once inside a test.

The next token is a hash of (seed, everything so far), so a continuation from `prompt + so far` is what the uninterrupted run makes, and
any lost, doubled or swapped token shows. As a process: `python -m tests.harness.scripted_engine --listen-fd N '{"delay": 0.001}'`.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
from aiohttp import web

VOCABULARY = 60
FIRST = 4
"""Tokens are in FIRST .. FIRST + VOCABULARY - 1, so that small ids can be end-of-sequence tokens."""


def next_token(seed: int, sequence: Sequence[int]) -> tuple[int, float]:
    """The token after `sequence` and its log-prob."""
    packed = struct.pack(f">Q{len(sequence)}i", seed % 2**63, *sequence)
    value = int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "big")
    return FIRST + value % VOCABULARY, -(value >> 20) / 2**44 * 5.0


def expected(prompt: Sequence[int], params: dict[str, Any]) -> tuple[list[int], list[float]]:
    """What an uninterrupted request makes (without stop conditions)."""
    sequence, logprobs = list(prompt), []
    for _ in range(params.get("max_new_tokens", 128)):
        token, logprob = next_token(params.get("sampling_seed", 0), sequence)
        sequence.append(token)
        logprobs.append(logprob)
    return sequence[len(prompt) :], logprobs


@dataclass
class Script:
    """What it does. Times in seconds; `die_after` counts tokens over all requests (-1: never)."""

    delay: float = 0.0
    die_after: int = -1
    hang: bool = False
    status: int = 200
    error: str = ""
    deaf: bool = False
    incremental: bool = False
    slots: int = 1 << 30
    key: str = ""
    version: str = "default"
    eos: list[int] = field(default_factory=list)


class ScriptedEngine:
    """`async with ScriptedEngine() as engine: engine.url`. `most` is the highest number of requests at once that it has seen."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.running: dict[str, asyncio.Event] = {}
        self.bodies: list[dict[str, Any]] = []
        self.most = 0
        self.tokens = 0
        self.dead = False
        self.process = False
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        return await self.serve(listener)

    async def __aexit__(self, *error: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def serve(self, listener: socket.socket) -> Self:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/model_info", self._model_info)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/abort_request", self._abort)
        app.router.add_post("/script", self._script)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        return self

    async def die(self) -> None:
        """As by kill -9: every connection is reset, the port refuses."""
        self.dead = True
        if self.process:
            os.kill(os.getpid(), signal.SIGKILL)
        assert self._runner is not None
        for site in list(self._runner.sites):
            await site.stop()
        server = self._runner.server
        assert server is not None
        for connection in list(server.connections):
            if (transport := connection.transport) is not None:
                transport.abort()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _model_info(self, request: web.Request) -> web.Response:
        return web.json_response({"model_path": "scripted", "weight_version": self.script.version})

    async def _script(self, request: web.Request) -> web.Response:
        for name, value in (await request.json()).items():
            setattr(self.script, name, value)
        return web.Response()

    async def _abort(self, request: web.Request) -> web.Response:
        body = await request.json()
        for rid, aborted in self.running.items():
            if not self.script.deaf and (body.get("abort_all") or rid.startswith(body.get("rid") or "?")):
                aborted.set()
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        script = self.script
        if script.key and request.headers.get("Authorization") != f"Bearer {script.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = msgspec.json.decode(await request.read())
        self.bodies.append(body)
        if script.status != 200:
            return web.json_response({"error": {"message": script.error}}, status=script.status)
        rid, aborted = body["rid"], asyncio.Event()
        self.running[rid] = aborted
        self.most = max(self.most, len(self.running))
        try:
            return await self._stream(request, body, aborted)
        finally:
            del self.running[rid]

    async def _stream(self, request: web.Request, body: dict[str, Any], aborted: asyncio.Event) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        params, sequence = body["sampling_params"], list(body["input_ids"])
        prompt, pairs, versions = len(sequence), [], []
        reason: dict[str, Any] | None = None
        sent = 0
        limit = params["max_new_tokens"] if params["max_new_tokens"] is not None else 40
        while reason is None:
            if self.script.delay or self.script.hang:
                await self._pause(aborted)
            else:
                await asyncio.sleep(0)
            if aborted.is_set():
                reason = {"type": "abort", "message": "Aborted"}
            elif len(pairs) < limit:
                token, logprob = next_token(params.get("sampling_seed", 0), sequence)
                sequence.append(token)
                pairs.append((logprob, token, None))
                label = self.script.version
                if versions and versions[-1]["version"] == label:
                    versions[-1]["end"] = len(pairs)
                else:
                    versions.append({"version": label, "start": len(pairs) - 1, "end": len(pairs)})
                self.tokens += 1
                if token in self.script.eos and not params.get("ignore_eos"):
                    reason = {"type": "stop", "matched": token}
                elif len(pairs) >= limit:
                    reason = {"type": "length", "length": limit}
            else:
                reason = {"type": "length", "length": limit}
            if 0 <= self.script.die_after <= self.tokens:
                await self.die()
            first = sent if self.script.incremental else 0
            meta = {
                "id": body["rid"],
                "finish_reason": reason,
                "prompt_tokens": prompt,
                "completion_tokens": len(pairs),
                "cached_tokens": 0,
                "weight_version": self.script.version,
                "weight_versions": versions,
                "output_token_logprobs": pairs[first:],
            }
            if params_top := body.get("top_logprobs_num"):
                meta["output_top_logprobs"] = [[pair] * params_top for pair in pairs[first:]]
            event = {"text": "", "output_ids": sequence[prompt + first :], "meta_info": meta}
            sent = len(pairs)
            await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _pause(self, aborted: asyncio.Event) -> None:
        if self.script.hang:
            await asyncio.sleep(3600)
        try:
            async with asyncio.timeout(self.script.delay):
                await aborted.wait()
        except TimeoutError:
            return


async def _main(fd: int, script: Script) -> None:
    engine = ScriptedEngine(script)
    engine.process = True
    await engine.serve(socket.socket(fileno=fd))
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("script", nargs="?", default="{}")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(_main(arguments.listen_fd, Script(**json.loads(arguments.script)))))

"""An engine for tests: SGLang's dialect, deterministic tokens, no model. Ready in some 100 ms as a process, at once inside a test.

It streams as SGLang 0.5.23 does with `--incremental-streaming-output`, the flag that we launch it with: `text`, `output_ids` and the rows of
tokens in meta_info are what is new since the last event; all else is as of now. `incremental=False` is SGLang without the flag.

The next token is a hash of (seed, everything so far), so a continuation from `prompt + so far` is what the uninterrupted run makes, and
any lost, doubled or swapped token shows. As a process: `python -m tests.harness.scripted_engine --listen-fd N '{"delay": 0.001}'`.
"""

import argparse
import asyncio
import base64
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

from engines.embedded.text import ParseIn, ReasoningIn, function_calls, reasoning

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
    """What it does. Times in seconds; `die_after` counts tokens over all requests (-1: never); a prompt with token `lethal` kills it; an event has
    `interval` tokens where the request does not say it (`stream_interval`).
    """

    delay: float = 0.0
    die_after: int = -1
    hang: bool = False
    status: int = 200
    error: str = ""
    deaf: bool = False
    incremental: bool = True
    interval: int = 1
    lethal: int = -1
    slots: int = 1 << 30
    key: str = ""
    version: str = "default"
    eos: list[int] = field(default_factory=list)
    says: list[int] = field(default_factory=list)
    """Every answer is these tokens, one after the other, and then the first of `eos` …"""
    sign: list[int] = field(default_factory=list)
    then: list[int] = field(default_factory=list)
    """… and where the prompt has the tokens `sign` in a row, these instead."""


_SLICED = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")


def text_of(ids: Sequence[int]) -> str:
    """The text of made tokens: one character each."""
    return "".join(chr(ord("A") + token - FIRST) for token in ids)


class _Answer:
    """One answer as it grows."""

    def __init__(self, script: Script, body: dict[str, Any]) -> None:
        self.script, self.body = script, body
        self.params = body.get("sampling_params") or {}
        self.prompt: list[int] = list(body["input_ids"])
        self.made: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[dict[str, Any]] = []
        self.reason: dict[str, Any] | None = None
        self._sent = 0
        sign = script.sign
        self._signed = bool(sign) and any(self.prompt[at : at + len(sign)] == sign for at in range(len(self.prompt)))
        self._interval = self.params.get("stream_interval") or script.interval
        limit = self.params.get("max_new_tokens", 128)
        self._limit = 40 if limit is None else limit

    def step(self) -> bool:
        """Make a token, if there is one to be made."""
        made = len(self.made) < self._limit
        if made:
            token, logprob = next_token(self.params.get("sampling_seed", 0), self.prompt + self.made)
            if self.script.says:
                said = [*(self.script.then if self._signed else self.script.says), *self.script.eos[:1]]
                token = said[min(len(self.made), len(said) - 1)]
            self.made.append(token)
            self.logprobs.append(logprob)
            label = self.script.version
            if self.versions and self.versions[-1]["version"] == label:
                self.versions[-1]["end"] = len(self.made)
            else:
                self.versions.append({"version": label, "start": len(self.made) - 1, "end": len(self.made)})
            if token in self.script.eos and not self.params.get("ignore_eos"):
                self.reason = {"type": "stop", "matched": token}
        if self.reason is None and len(self.made) >= self._limit:
            self.reason = {"type": "length", "length": self._limit}
        return made

    @property
    def is_due(self) -> bool:
        """Whether a stream is sent an event now: for the first token, for so many more, and for the end."""
        unsent = len(self.made) - self._sent
        return self.reason is not None or unsent >= self._interval or (self._sent == 0 and unsent > 0)

    def everything(self) -> dict[str, Any]:
        """All of it so far."""
        meta: dict[str, Any] = {
            "id": self.body["rid"],
            "finish_reason": self.reason,
            "prompt_tokens": len(self.prompt),
            "weight_version": self.script.version,
            "num_retractions": 0,
            "reasoning_tokens": 0,
            "completion_tokens": len(self.made),
            "cached_tokens": len(self.prompt) // 2,
            "weight_versions": self.versions,
        }
        if self.body.get("return_logprob"):
            meta.update(self._logprob_fields())
        if self.body.get("return_hidden_states"):
            of_prompt = [[float(token)] for token in self.prompt]
            meta["hidden_states"] = [of_prompt, *([float(token)] for token in self.made[1:])]
        if self.reason is not None:
            meta["e2e_latency"] = 0.25
            if self.body.get("return_routed_experts"):
                meta["routed_experts"] = base64.b64encode(bytes((self.prompt + self.made)[:-1])).decode()
        return {"text": text_of(self.made), "output_ids": list(self.made), "meta_info": meta}

    def event(self) -> dict[str, Any]:
        """What a stream is sent next."""
        event = self.everything()
        if self.script.incremental:
            event["text"] = text_of(self.made[self._sent :])
            event["output_ids"] = self.made[self._sent :]
            for name in event["meta_info"].keys() & set(_SLICED):
                event["meta_info"][name] = event["meta_info"][name][self._sent :]
        self._sent = len(self.made)
        return event

    def _logprob_fields(self) -> dict[str, Any]:
        start, text = self.body.get("logprob_start_len", -1), bool(self.body.get("return_text_in_logprobs"))
        pairs = [(logprob, token, text_of([token]) if text else None) for logprob, token in zip(self.logprobs, self.made, strict=True)]
        prompt = [] if start < 0 else [(None if at == 0 else -0.125 * at, token, None) for at, token in enumerate(self.prompt)][start:]
        fields: dict[str, Any] = {
            "input_token_logprobs": prompt,
            "output_token_logprobs": pairs,
            "output_token_logprobs_length": len(pairs),
        }
        if top := self.body.get("top_logprobs_num"):
            fields["input_top_logprobs"] = [None if at == 0 else [pair] * top for at, pair in enumerate(prompt)]
            fields["output_top_logprobs"] = [[(pair[0] - rank, pair[1] + rank, pair[2]) for rank in range(top)] for pair in pairs]
        if (wanted := self.body.get("token_ids_logprob")) is not None:
            fields["input_token_ids_logprobs"] = [
                None if at == 0 else [(-1.0, token, None) for token in wanted] for at, _ in enumerate(prompt)
            ]
            fields["output_token_ids_logprobs"] = [[(pair[0] - token, token, None) for token in wanted] for pair in pairs]
        return fields


class ScriptedEngine:
    """`async with ScriptedEngine() as engine: engine.url`. `most` is the highest number of requests at once that it has seen."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.running: dict[str, asyncio.Event] = {}
        self.bodies: list[dict[str, Any]] = []
        self.most = self.parsed = 0
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
        app.router.add_post("/parse_function_call", self._parse)
        app.router.add_post("/separate_reasoning", self._separate)
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

    async def _parse(self, request: web.Request) -> web.Response:
        self.parsed += 1
        return web.json_response(function_calls(msgspec.json.decode(await request.read(), type=ParseIn)))

    async def _separate(self, request: web.Request) -> web.Response:
        return web.json_response(reasoning(msgspec.json.decode(await request.read(), type=ReasoningIn)))

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
            return await self._respond(request, body, aborted)
        finally:
            del self.running[rid]

    async def _respond(self, request: web.Request, body: dict[str, Any], aborted: asyncio.Event) -> web.StreamResponse:
        """Stream the answer, or give it in one piece where `stream` is not set."""
        answer = _Answer(self.script, body)
        response: web.StreamResponse | None = None
        if body.get("stream"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
        if self.script.lethal in body["input_ids"]:
            await self.die()
            raise ConnectionResetError("dead")
        while answer.reason is None:
            if self.script.delay or self.script.hang:
                await self._pause(aborted)
            else:
                await asyncio.sleep(0)
            if aborted.is_set():
                answer.reason = {"type": "abort", "message": "Aborted"}
            elif answer.step():
                self.tokens += 1
            if 0 <= self.script.die_after <= self.tokens:
                await self.die()
            if response is not None and answer.is_due:
                await response.write(b"data: " + msgspec.json.encode(answer.event()) + b"\n\n")
        if response is None:
            return web.json_response(body=msgspec.json.encode(answer.everything()))
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

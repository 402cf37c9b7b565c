"""Who may speak to a gateway: who has its pipeline's key, and no web page; on every route that there is."""

import asyncio
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.routes.access import Access
from engines.gateway.routes.server import application
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell
from engines.gateway.upstream.engine_client import EngineClient
from tests.harness.gateway_box import KEY, ROOT, Box, box
from tests.harness.scripted_engine import ScriptedEngine

NOBODY = 65534
JSON = {"Content-Type": "application/json"}
BEARER = {"Authorization": f"Bearer {KEY}"}
BODY = json.dumps({"input_ids": [4], "prompt": "0", "samples": [], "messages": [], "sampling_params": {"max_new_tokens": 1}})


async def routes(model: Path) -> list[tuple[str, str]]:
    """Every method and path that the application has, and one that it has not."""
    shell = Shell(Dispatch(), EngineClient(), lambda *_, **__: None)
    app: web.Application = application(shell, Text(model), pipeline="p1", model="m", access=Access(KEY), log=print)
    await shell.close()
    found = []
    for route in app.router.routes():
        assert route.resource is not None
        found.append((route.method, route.resource.canonical.replace("{rollout}", "0")))
    assert len(found) >= 9
    return [*found, ("GET", "/nothing"), ("POST", "/nothing"), ("OPTIONS", "/generate"), ("POST", "/health")]


REFUSED: dict[str, tuple[dict[str, str], int, str | None]] = {
    "no key": (JSON, 401, "no_api_key"),
    "another scheme": ({**JSON, "Authorization": f"Basic {KEY}"}, 401, "no_api_key"),
    "an empty key": ({**JSON, "Authorization": "Bearer "}, 401, "no_api_key"),
    "a wrong key": ({**JSON, "Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
    "the beginning of the key": ({**JSON, "Authorization": f"Bearer {KEY[:-1]}"}, 401, "invalid_api_key"),
    "a key that is no ASCII": ({**JSON, "Authorization": "Bearer schl\u00fcssel"}, 401, "invalid_api_key"),
    "a web page with the key": ({**JSON, **BEARER, "Origin": "http://127.0.0.1"}, 403, "origin_refused"),
    "a sandboxed web page": ({**JSON, "Origin": "null"}, 403, "origin_refused"),
    "a rebound name": ({**JSON, **BEARER, "Host": "evil.example"}, 403, "host_refused"),
    "a name that begins like ours": ({**JSON, **BEARER, "Host": "localhost.evil.example:80"}, 403, "host_refused"),
    "a name with a user": ({**JSON, **BEARER, "Host": "127.0.0.1@evil.example"}, 403, "host_refused"),
    "no name": ({**JSON, **BEARER, "Host": ""}, 403, "host_refused"),
}


@pytest.mark.parametrize("who", REFUSED)
def test_strangers_are_refused_on_every_route(model: Path, tmp_path: Path, who: str) -> None:
    headers, status, code = REFUSED[who]

    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), aiohttp.ClientSession(base_url=gateway.url) as session:
            for method, path in await routes(model):
                if path == "/health" and method != "POST" and status == 401:
                    continue
                async with session.request(method, path, data=BODY if method == "POST" else None, headers=headers) as response:
                    assert response.status == status, (method, path)
                    if method == "HEAD":
                        continue
                    error = (await response.json())["error"]
                    assert (error["code"], error["type"]) == (code, "invalid_request_error"), (method, path)
                    assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
            assert gateway.progress.rollouts == (), "nothing was asked of the core"

    asyncio.run(play())


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", None])
def test_bodies_that_do_not_say_json_are_refused_on_every_route(model: Path, tmp_path: Path, kind: str | None) -> None:
    """What a page can send without a preflight, and `curl -d`."""

    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session):
            for method, path in await routes(model):
                if method == "POST":
                    headers = {} if kind is None else {"Content-Type": kind}
                    async with session.post(path, data=BODY.encode(), headers=headers, skip_auto_headers=["Content-Type"]) as response:
                        assert (response.status, (await response.json())["error"]["code"]) == (415, "not_json"), path
            assert gateway.progress.rollouts == ()

    asyncio.run(play())


def test_only_a_bare_health_is_open(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), aiohttp.ClientSession(base_url=gateway.url) as session:
            asked: list[tuple[str, bytes | None, int]] = [("/health", None, 200), ("/health?a=1", None, 401), ("/health", b"x", 401)]
            for path, body, status in asked:
                async with session.get(path, data=body) as response:
                    assert response.status == status, (path, body)

    asyncio.run(play())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost", "LocalHost:8000", "[::1]", "[::1]:80"])
def test_who_has_the_key_may_use_any_name_of_this_machine(model: Path, tmp_path: Path, host: str) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            headers = {"Host": host, "Content-Type": "Application/JSON; charset=utf-8", "Authorization": f"bearer {KEY}"}
            async with session.post("/generate", data=BODY.replace('"prompt"', '"rid"').encode(), headers=headers) as response:
                assert response.status in (200, 400), await response.text()  # 400: the body's matter, it was let in
            async with session.get("/v1/models", headers={"Host": host}) as response:
                assert response.status == 200

    asyncio.run(play())


def test_openais_client_finds_its_key_in_the_environment(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), ScriptedEngine() as engine:
            await gateway.route(engine)
            monkeypatch.setenv("OPENAI_BASE_URL", gateway.url + "/v1")
            monkeypatch.setenv("OPENAI_API_KEY", KEY)
            async with openai.AsyncOpenAI(max_retries=0) as client:
                made = await client.completions.create(model="p1", prompt="01", max_tokens=3)
                assert made.usage is not None
                assert made.usage.completion_tokens == 3
            monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
            async with openai.AsyncOpenAI(max_retries=0) as client:
                with pytest.raises(openai.AuthenticationError, match="bin/supervise env"):
                    await client.models.list()

    asyncio.run(play())


def test_an_open_gateway_answers_everybody(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            box(model, tmp_path, "--no-auth") as (gateway, _),
            ScriptedEngine() as engine,
            aiohttp.ClientSession(base_url=gateway.url) as session,
        ):
            await gateway.route(engine)
            body = {"input_ids": [4], "sampling_params": {"max_new_tokens": 1}}
            headers = {"Content-Type": "text/plain", "Origin": "http://evil.example", "Host": "evil.example"}
            async with session.post("/generate", data=json.dumps(body), headers=headers) as response:
                assert response.status == 200

    asyncio.run(play())


def test_it_does_not_start_without_a_key_by_accident(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        gateway = Box(model, tmp_path / "gateway.log")
        ours, theirs = socket.socketpair()
        with gateway.listener, ours, theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "engines.gateway", "--pipeline", "p1", "--model", str(model),
                "--listen-fd", str(gateway.listener.fileno()), pass_fds=(gateway.listener.fileno(), theirs.fileno()),
                env={"PYTHONPATH": str(ROOT), "TRAINSHED_FD": str(theirs.fileno())}, cwd="/", stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, errors = await process.communicate()
            assert (process.returncode, b"TRAINSHED_API_KEY" in errors) == (2, True)

    asyncio.run(play())


def as_nobody(attempt: Any) -> int:
    """Run `attempt` in a forked child as another user; returns the exit code, 0 when it returned."""
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            attempt()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_has_no_key_and_gets_none(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _):
            pid = gateway.process.pid

            def speaks() -> None:
                request = urllib.request.Request(f"{gateway.url}/rollouts/0/samples", BODY.encode(), JSON)
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    opener.open(request, timeout=5)

            def reads() -> None:
                Path(f"/proc/{pid}/environ").read_bytes()

            environment = await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_bytes)
            command = await asyncio.to_thread(Path(f"/proc/{pid}/cmdline").read_bytes)
            assert KEY.encode() in environment
            assert KEY.encode() not in command
            assert await asyncio.to_thread(as_nobody, speaks) == 0
            assert await asyncio.to_thread(as_nobody, reads) == 1

    asyncio.run(play())

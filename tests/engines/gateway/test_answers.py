"""Every field of an answer is what the engine would have said directly: whole and streamed, calm and interrupted, on every route."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.harness.answers import answer, comparable, matrix
from tests.harness.gateway_box import box
from tests.harness.scripted_engine import Script, ScriptedEngine

OF_ONE_ATTEMPT = {"reasoning_tokens"}
"""Only an engine that has made all of an answer can say it."""
TOP = {"model": "p1", "max_tokens": 12, "seed": 3}


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("incremental", [True, False])
def test_answers_are_the_engines_own(model: Path, tmp_path: Path, incremental: bool, interval: int) -> None:
    async def play() -> None:
        script = Script(incremental=incremental, interval=interval)
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(script) as engine:
            await gateway.route(engine)
            more: dict[str, dict[str, Any]] = {
                "hidden states": {"return_hidden_states": True},
                "experts": {"return_routed_experts": True, "top_logprobs_num": 1},
            }
            asked = list(matrix(max_new_tokens=8, sampling_seed=3))
            asked += [(name, {**asked[0][1], **options}) for name, options in more.items()]
            for name, body in asked:
                direct = comparable(await answer(session, engine.url, {**body, "rid": "direct"}), text=False)
                for stream in (False, True):
                    got = comparable(await answer(session, gateway.url, {**body, "stream": stream}), text=False)
                    assert got == direct, (name, stream)

    asyncio.run(play())


@pytest.mark.parametrize("incremental", [True, False])
def test_interrupted_answers_are_those_of_one_engine(model: Path, tmp_path: Path, incremental: bool) -> None:
    async def play() -> None:
        slow, fast = Script(incremental=incremental, delay=0.5), Script(incremental=incremental)
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(slow) as one, ScriptedEngine(fast) as two:
            asked = dict(matrix(max_new_tokens=20, sampling_seed=3, stream_interval=2))
            direct = {
                name: comparable(await answer(session, two.url, {**body, "rid": "direct"}), text=False) for name, body in asked.items()
            }
            for stream in (False, True):
                life = 1 + stream
                await gateway.route(one, 0, incarnation=life, slots=64)
                work = {name: asyncio.create_task(answer(session, gateway.url, {**body, "stream": stream})) for name, body in asked.items()}
                await gateway.until(
                    lambda said, life=life: any(
                        (load.engine, load.incarnation) == (0, life) and load.tokens >= len(asked) for load in said.engines
                    )
                )
                await gateway.route(two, 1, slots=64)
                await gateway.drain(0, life)
                interrupted = 0
                for name, task in work.items():
                    got = await task
                    interrupted += len(got["meta_info"]["spans"]) > 1
                    expected = {field: value for field, value in direct[name].items() if field not in OF_ONE_ATTEMPT}
                    found = {field: value for field, value in comparable(got, text=False).items() if field not in OF_ONE_ATTEMPT}
                    assert found == expected, (name, stream)
                assert interrupted >= 9, "nothing was interrupted"
                await gateway.drain(1)

    asyncio.run(play())


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_top_logprobs_stand_at_their_own_tokens(model: Path, tmp_path: Path, route: str) -> None:
    async def tops(session: aiohttp.ClientSession, stream: bool) -> list[Any]:
        asked = {"prompt": [4, 5], "logprobs": 2} if route == "/v1/completions" else {"messages": [{"role": "user", "content": "01"}]}
        more = {} if route == "/v1/completions" else {"logprobs": True, "top_logprobs": 2}
        found: list[Any] = []
        async for choice in choices(session, route, {**TOP, **asked, **more, "stream": stream}):
            logprobs = choice["logprobs"] or {}
            found += logprobs.get("top_logprobs") or []
            found += [(entry["logprob"], entry["token"], entry["top_logprobs"]) for entry in logprobs.get("content") or []]
        return found

    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            complete, streamed = await tops(session, False), await tops(session, True)
            assert len(complete) == 12
            assert all(complete), "a token without its alternatives"
            assert streamed == complete
            if route != "/v1/completions":
                assert all(len(row) == 2 and row[0]["logprob"] == logprob for logprob, _, row in complete)

    asyncio.run(play())


async def choices(session: aiohttp.ClientSession, route: str, body: dict[str, Any]) -> Any:
    """Yield the choices of an answer of OpenAI's, or of the events of its stream."""
    async with session.post(route, json=body) as response:
        assert response.status == 200, await response.text()
        if not body["stream"]:
            for choice in (await response.json())["choices"]:
                yield choice
            return
        async for line in response.content:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    yield choice

"""Answers through a real gateway equal those of the engine asked directly, field by field, whole and streamed, calm and interrupted."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.harness.answers import alike, answer, comparable, differences, matrix
from tests.harness.gateway_box import KEY, box
from tests.harness.sglang.served import Served
from trainers.protocol import gateway_messages

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_are_the_engines_own(engine: Served, tmp_path: Path, stream: bool) -> None:
    if not engine.kind.startswith("sglang"):
        pytest.skip("our own engines know fewer options")
    async with aiohttp.ClientSession() as session, box(engine.first, tmp_path) as (gateway, _):
        await gateway.order(gateway_messages.Route, engine=0, incarnation=1, url=engine.url, key=engine.key, slots=4, version=0)
        different = []
        for name, body in matrix(max_new_tokens=12, temperature=0.0, ignore_eos=True):
            direct = comparable(await answer(session, engine.url, body, engine.key))
            got = comparable(await answer(session, gateway.url, {**body, "stream": stream}, KEY))
            if not alike(got, direct):
                different.append((name, differences(got, direct)))
        assert not different, (len(different), different[:2])


async def test_what_is_interrupted_has_every_row_once(engine: Served, tmp_path: Path) -> None:
    if not engine.kind.startswith("sglang"):
        pytest.skip("our own engines know fewer options")
    async with aiohttp.ClientSession() as session, box(engine.first, tmp_path) as (gateway, _):
        asked = {name: body for name, body in matrix(max_new_tokens=48, temperature=0.0, ignore_eos=True) if "regex" not in name}
        direct = {name: comparable(await answer(session, engine.url, body, engine.key)) for name, body in asked.items()}
        life = 1
        await gateway.order(gateway_messages.Route, engine=0, incarnation=life, url=engine.url, key=engine.key, slots=4, version=0)
        work = {name: asyncio.create_task(answer(session, gateway.url, body, KEY)) for name, body in asked.items()}
        while not all(task.done() for task in work.values()):
            await asyncio.sleep(0.1)
            await gateway.drain(0, life)
            life += 1
            await gateway.order(gateway_messages.Route, engine=0, incarnation=life, url=engine.url, key=engine.key, slots=4, version=0)
        interrupted, different = 0, []
        for name, task in work.items():
            got = await task
            interrupted += len(got["meta_info"]["spans"]) > 1
            found = comparable(got)
            for answers in (found, direct[name]):
                answers.pop("reasoning_tokens", None)  # which only an engine that has made all of an answer can say
            if not alike(found, direct[name]):
                different.append((name, differences(found, direct[name])))
        assert interrupted >= 3, "nothing was interrupted"
        assert not different, (len(different), different[:2])

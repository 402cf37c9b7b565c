"""Answers through a real gateway equal those of the engine asked directly, field by field, whole and streamed, calm and interrupted."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from engines.gateway.upstream.sglang_stream import PER_TOKEN
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
        asked = {
            name: body for name, body in matrix(max_new_tokens=48, temperature=0.0, ignore_eos=True) if name.endswith("plain")
        }  # penalties answer otherwise in a batch, directly too
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
            pairs = found.get("output_token_logprobs")
            assert pairs is None or [pair[1] for pair in pairs] == found["output_ids"], name
            assert all(len(found[field]) == 48 for field in found if field in PER_TOKEN), name
            same_tokens = found["output_ids"] == direct[name]["output_ids"]  # else two tokens were as good, and its neighbours have decided
            if found.keys() != direct[name].keys() or (same_tokens and not alike(found, direct[name])):
                different.append((name, differences(found, direct[name])))
        assert interrupted >= 3, "nothing was interrupted"
        assert not different, (len(different), different[:2])


POISON: list[dict[str, Any]] = [
    {"input_ids": [5, 64]},
    {"top_logprobs_num": 65, "return_logprob": True},
    {"logprob_start_len": -7, "return_logprob": True},
    {"sampling_params": {"stop_token_ids": [64], "min_new_tokens": 2}},
    {"sampling_params": {"top_k": 2**31, "temperature": 1.0}},
    {"input_ids": [5, -3]},
    {"sampling_params": {"stop_token_ids": [-64], "min_new_tokens": 2}},
]
"""Each of these kills SGLang 0.5.23 when it is asked directly."""


async def test_requests_that_would_kill_the_engine_are_refused_before(engine: Served, tmp_path: Path) -> None:
    if not engine.kind.startswith("sglang"):
        pytest.skip("our own engines refuse them themselves")
    async with box(engine.first, tmp_path) as (gateway, session):
        await gateway.order(gateway_messages.Route, engine=0, incarnation=1, url=engine.url, key=engine.key, slots=4, version=0)
        for poison in POISON:
            async with session.post("/generate", json={"input_ids": [5], **poison}) as response:
                assert response.status == 400, poison
        assert engine.alive()
        await answer(session, gateway.url, {"input_ids": [5]})

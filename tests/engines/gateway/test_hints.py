"""A real gateway process: what clients say of length and session, and what `on_publish` makes of samples in flight."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.harness.gateway_box import box, right, sample, samples
from tests.harness.scripted_engine import Script, ScriptedEngine
from trainers.protocol import gateway_messages


async def generate(session: aiohttp.ClientSession, prompt: int, route: str = "/generate", limit: int = 3, **headers: str) -> Any:
    named = {f"X-Trainshed-{name.replace('_', '-')}": value for name, value in headers.items()}
    ours: dict[str, Any] = {"input_ids": [prompt], "sampling_params": {"max_new_tokens": limit, "ignore_eos": True}}
    body = ours if route == "/generate" else {"prompt": [prompt], "max_tokens": limit}
    async with session.post(route, json=body, headers=named) as response:
        assert response.status == 200, await response.text()
        return await response.json()


def test_the_longest_expected_first_by_header_and_by_field(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.open(0)
            asked = [{**sample(index, 40), "expected_tokens": 10 * index} for index in range(1, 4)]
            work = [asyncio.create_task(samples(session, 0, asked))]
            for prompt, route, expected in [(10, "/generate", "35"), (11, "/v1/completions", "5"), (12, "/v1/completions", "15")]:
                work.append(asyncio.create_task(generate(session, prompt, route, 40, Rollout="0", Expected_Tokens=expected)))
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].waiting == 6)
            (report,) = gateway.progress.rollouts
            assert 110 < report.expected < 160
            assert 35 < report.longest <= 40
            await gateway.route(engine, slots=1)
            lines, *_ = await asyncio.gather(*work)
            assert [body["input_ids"][0] for body in engine.bodies] == [10, 7, 6, 12, 5, 11]
            assert all(right(0, index, lines[index], 40) for index in (1, 2, 3)), "the order changes no answer"
            await gateway.until(lambda progress: progress.rollouts[0].expected == 0)

    asyncio.run(play())


def test_a_second_rollout_of_the_same_prompts_begins_with_those_that_were_long(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.open(0)
            await gateway.route(engine, slots=1)
            await samples(session, 0, [sample(index, limit) for index, limit in enumerate([3, 30, 10])])
            await gateway.close(0)
            await gateway.drain()
            await gateway.open(1)
            engine.bodies.clear()
            work = asyncio.create_task(samples(session, 1, [sample(index, 40) for index in range(3)]))
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].waiting == 3)
            assert gateway.progress.rollouts[0].expected > 0
            await gateway.route(engine, slots=1)
            await work
            assert [body["input_ids"][0] for body in engine.bodies] == [5, 6, 4]

    asyncio.run(play())


def test_a_session_keeps_to_its_engine_and_moves_when_that_is_drained(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(delay=0.01)) as one, ScriptedEngine() as two:
            await gateway.open(0)
            await gateway.route(one, 0)
            await gateway.route(two, 1)
            blocker = asyncio.create_task(generate(session, 4, limit=100))
            await gateway.until(lambda progress: progress.rollouts[0].in_flight == 1)
            turns = [await generate(session, 5 + turn, Session="game-1") for turn in range(3)]
            turns += [await generate(session, 9, "/v1/completions", Session="game-1")]
            lines = await samples(session, 0, [{**sample(0, 3), "session": "game-1"}])
            spans = [turn["meta_info"]["spans"] if "meta_info" in turn else turn["choices"][0]["spans"] for turn in turns]
            spans.append(lines[0]["spans"])
            assert [span[0]["engine"] for span in spans] == [1] * 5
            await blocker
            await generate(session, 6, Session="game-1")
            await gateway.drain(1)
            moved = await generate(session, 7, Session="game-1")
            await gateway.route(two, 1)
            stays = await generate(session, 8, Session="game-1")
            assert [turn["meta_info"]["spans"][0]["engine"] for turn in (moved, stays)] == [0, 0]

    asyncio.run(play())


def test_bad_hints_are_refused(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            for name, value in [("Expected-Tokens", "many"), ("Expected-Tokens", "-1"), ("Session", "a b"), ("Session", "x" * 201)]:
                async with session.post("/generate", json={"input_ids": [4]}, headers={f"X-Trainshed-{name}": value}) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (400, "bad_request"), name
            await gateway.open(0)
            async with session.post("/rollouts/0/samples", json={"samples": [{**sample(0), "session": 7}]}) as response:
                assert response.status == 400

    asyncio.run(play())


async def published_in_the_middle(model: Path, tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Four samples in flight when version 2 comes: what the supervisor does for an engine that loads in place, and the answers."""
    async with box(model, tmp_path, *arguments) as (gateway, session), ScriptedEngine(Script(delay=0.01)) as engine:
        await gateway.open(0)
        await gateway.route(engine, version=1)
        work = asyncio.create_task(samples(session, 0, [sample(index, 150) for index in range(4)]))
        await gateway.until(lambda progress: any(load.tokens >= 20 for load in progress.engines))
        took = await gateway.order(gateway_messages.Unroute, engine=0, incarnation=1, version=2)
        assert took < 2.0
        if "finish" in arguments:
            await gateway.until(lambda progress: not any(load.in_flight for load in progress.engines))
        await gateway.route(engine, version=2)
        lines = await work
        assert all(right(0, index, lines[index], 150) for index in range(4))
        return [span for line in lines.values() for span in line["spans"]]


@pytest.mark.slow
def test_the_answer_to_an_unroute_comes_after_what_runs_there(model: Path, tmp_path: Path) -> None:
    """A supervisor that waits for the last sample of an engine must not take an older picture for an idle one."""

    async def play() -> None:
        async with box(model, tmp_path, "--on-publish", "finish") as (gateway, session), ScriptedEngine(Script(hang=True)) as engine:
            await gateway.open(0)
            work = asyncio.create_task(samples(session, 0, [sample(0, 60)]))
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].waiting == 1)
            await gateway.route(engine, version=1)
            await gateway.order(gateway_messages.Unroute, engine=0, incarnation=1, version=2)
            assert [load.in_flight for load in gateway.progress.engines] == [1]
            await gateway.close(0)
            await work

    asyncio.run(play())


@pytest.mark.slow
def test_restart_makes_every_sample_under_one_version(model: Path, tmp_path: Path) -> None:
    spans = asyncio.run(published_in_the_middle(model, tmp_path, "--on-publish", "restart"))
    assert [(span["version"], span["start"], span["end"]) for span in spans] == [(2, 0, 150)] * 4


@pytest.mark.slow
def test_finish_lets_every_sample_end_under_the_version_it_began_with(model: Path, tmp_path: Path) -> None:
    spans = asyncio.run(published_in_the_middle(model, tmp_path, "--on-publish", "finish"))
    assert [(span["version"], span["start"], span["end"]) for span in spans] == [(1, 0, 150)] * 4


@pytest.mark.slow
def test_a_lag_of_none_is_a_restart(model: Path, tmp_path: Path) -> None:
    spans = asyncio.run(published_in_the_middle(model, tmp_path, "--max-version-lag", "0"))
    assert {span["version"] for span in spans} == {2}

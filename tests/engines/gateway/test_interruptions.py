"""A real gateway process whose engines are drained, killed, hung, and which is killed itself: nothing is lost, nothing doubled."""

import asyncio
import json
import random
import socket
import sys
from pathlib import Path

import aiohttp
import openai
import pytest

from tests.harness.gateway_box import KEY, ROOT, box, right, sample, samples, text_of
from tests.harness.scripted_engine import Script, ScriptedEngine, expected
from trainers.protocol.seeds import sample_seed


@pytest.mark.parametrize("incremental", [False, True])
def test_drains_under_load_lose_and_double_nothing(model: Path, tmp_path: Path, incremental: bool) -> None:
    async def play() -> None:
        scripts = [Script(delay=0.002, incremental=incremental, key="secret") for _ in range(3)]
        async with (
            box(model, tmp_path) as (gateway, session),
            ScriptedEngine(scripts[0]) as one,
            ScriptedEngine(scripts[1]) as two,
            ScriptedEngine(scripts[2]) as three,
        ):
            engines = [one, two, three]
            for rank, engine in enumerate(engines):
                await gateway.route(engine, rank)
            await gateway.open(1)
            work = asyncio.create_task(samples(session, 1, [sample(index, 40) for index in range(48)]))
            chance = random.Random(incremental)
            slowest = 0.0
            drains = 0
            while not work.done():
                rank = chance.randrange(3)
                slowest = max(slowest, await gateway.drain(rank))
                drains += 1
                assert not engines[rank].running, "drained means: nothing of ours runs there"
                await gateway.route(engines[rank], rank)
                await asyncio.sleep(0.02)
            lines = await work
            assert sorted(lines) == list(range(48))
            assert all(right(1, index, lines[index], 40) for index in range(48))
            assert sum(len(line["spans"]) for line in lines.values()) > 48 + drains, "the drains have interrupted something"
            assert slowest < 1.0
            assert max(engine.most for engine in engines) <= 4
            assert sum(engine.tokens for engine in engines) < 48 * 40 + 12 * drains, "what was made is not made again"

    asyncio.run(play())


def test_kills_of_engines_under_load_lose_and_double_nothing(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session):
            await gateway.open(1)
            engines = [await ScriptedEngine(Script(delay=0.002)).__aenter__() for _ in range(2)]
            lives = [1, 1]
            for rank in range(2):
                await gateway.route(engines[rank], rank)
            work = asyncio.create_task(samples(session, 1, [sample(index, 40) for index in range(32)]))
            for kill in range(8):
                await asyncio.sleep(0.05)
                rank = kill % 2
                await engines[rank].die()
                if kill % 4 < 2:
                    await gateway.lost(rank, lives[rank])
                lives[rank] += 1
                await engines[rank].__aexit__()
                engines[rank] = await ScriptedEngine(Script(delay=0.002)).__aenter__()
                await gateway.route(engines[rank], rank, lives[rank])
            lines = await work
            assert sorted(lines) == list(range(32))
            assert all(right(1, index, lines[index], 40) for index in range(32))
            assert {span["incarnation"] for line in lines.values() for span in line["spans"]} >= {1, 2, 3}
            for engine in engines:
                await engine.__aexit__()

    asyncio.run(play())


def test_a_real_kill_9_of_an_engine_process(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as spare:
            listener = socket.create_server(("127.0.0.1", 0))
            script = json.dumps({"delay": 0.002, "die_after": 60})
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.harness.scripted_engine",
                "--listen-fd",
                str(listener.fileno()),
                script,
                pass_fds=[listener.fileno()],
                cwd=ROOT,
            )
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            listener.close()
            await gateway.open(1)
            await gateway.route(url)
            work = asyncio.create_task(samples(session, 1, [sample(index, 30) for index in range(4)]))
            assert await process.wait() == -9
            await gateway.until(lambda progress: progress.engines and progress.engines[0].failures > 0)
            assert not work.done(), "a dead engine is no failure of the samples"
            await gateway.route(spare, 1)
            lines = await work
            assert all(right(1, index, lines[index], 30) for index in range(4))
            assert any(len(line["spans"]) == 2 for line in lines.values())

    asyncio.run(play())


def test_a_request_that_kills_engines_costs_itself_alone(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session):
            await gateway.open(1)
            asked = [sample(index, 20) for index in range(6)]
            asked[2]["input_ids"] = [40, 5]
            lives = 1
            engine = await ScriptedEngine(Script(delay=0.002, lethal=40)).__aenter__()
            await gateway.route(engine, slots=8)
            work = asyncio.create_task(samples(session, 1, asked))
            while not work.done():
                await asyncio.sleep(0.02)
                if engine.dead:
                    await engine.__aexit__()
                    engine = await ScriptedEngine(Script(delay=0.002, lethal=40)).__aenter__()
                    lives += 1
                    await gateway.route(engine, 0, lives, slots=8)
            lines = await work
            assert lines[2]["error"]["code"] == "request_failed"
            assert all(right(1, index, lines[index], 20) for index in range(6) if index != 2)
            assert lives <= 3, "two lives died of it"
            await engine.__aexit__()

    asyncio.run(play())


@pytest.mark.slow
def test_a_hung_engine_is_cut_off_by_a_drain_after_five_seconds(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(hang=True)) as hung, ScriptedEngine() as other:
            await gateway.open(0)
            await gateway.route(hung)
            work = asyncio.create_task(samples(session, 0, [sample(0)]))
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].in_flight == 1)
            assert 4.5 < await gateway.drain() < 7.0
            await gateway.route(other, 1)
            assert right(0, 0, (await work)[0])

    asyncio.run(play())


def test_close_returns_partials_and_late_askers_get_them(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(delay=0.005)) as engine:
            await gateway.open(0)
            await gateway.route(engine, slots=2)
            asked = [sample(index, 1000) for index in range(3)]
            work = asyncio.create_task(samples(session, 0, asked))
            await asyncio.sleep(0.2)
            await gateway.close(0)
            lines = await work
            assert [lines[index]["finish_reason"]["type"] for index in range(3)] == ["abort"] * 3
            assert lines[0]["output_ids"]
            assert lines[2]["output_ids"] == []
            assert (
                lines[0]["output_ids"]
                == expected([4, 5], {"max_new_tokens": len(lines[0]["output_ids"]), "sampling_seed": sample_seed(7, 0, 0)})[0]
            )
            assert await samples(session, 0, asked) == lines
            async with session.post("/rollouts/0/samples", json={"samples": [sample(9)]}) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "rollout_closed"
            assert not engine.running

    asyncio.run(play())


def test_a_client_that_hangs_up_frees_its_slot(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(delay=0.005)) as engine:
            await gateway.open(0)
            await gateway.route(engine)
            work = asyncio.create_task(samples(session, 0, [sample(index, 10_000) for index in range(4)]))
            plain = asyncio.create_task(session.post("/generate", json={"input_ids": [4], "sampling_params": {"max_new_tokens": 10_000}}))
            await gateway.until(
                lambda progress: progress.rollouts and (progress.rollouts[0].waiting, progress.rollouts[0].in_flight) == (1, 4)
            )
            work.cancel()
            plain.cancel()
            await gateway.until(lambda progress: (progress.rollouts[0].waiting, progress.rollouts[0].in_flight) == (0, 0))
            await gateway.until(lambda progress: progress.engines[0].in_flight == 0)
            assert not engine.running

    asyncio.run(play())


def test_a_restarted_gateway_serves_the_repeated_samples_on_the_same_url(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(delay=0.005)) as engine:
            await gateway.open(0)
            await gateway.route(engine)
            asked = [sample(index, 20) for index in range(8)]
            work = asyncio.create_task(samples(session, 0, asked))
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].in_flight == 4)
            gateway.process.kill()
            with pytest.raises(aiohttp.ClientError):
                await work
            await gateway.process.wait()
            repeated = asyncio.create_task(samples(session, 0, asked))  # its connection waits in the inherited socket
            await gateway.start()
            await gateway.route(engine)
            await gateway.open(0)
            lines = await repeated
            assert all(right(0, index, lines[index], 20) for index in range(8))

    asyncio.run(play())


def test_a_stream_survives_a_drain_without_a_gap(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), ScriptedEngine(Script(delay=0.005)) as one, ScriptedEngine() as two:
            await gateway.route(one)
            client = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)
            stream = await client.completions.create(model="p1", prompt="01", max_tokens=40, seed=3, stream=True, logprobs=0)
            text, tokens = "", []
            async for event in stream:
                text += event.choices[0].text
                tokens += (event.choices[0].logprobs.token_logprobs or []) if event.choices[0].logprobs else []
                if len(text) == 5:
                    await gateway.route(two, 1)
                    await gateway.drain(0)
            ids, logprobs = expected([4, 5], {"max_new_tokens": 40, "sampling_seed": 3})
            assert (text, tokens) == (text_of(ids), logprobs)
            assert two.bodies
            await client.close()

    asyncio.run(play())

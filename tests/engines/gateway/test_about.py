"""What clients of SGLang, of its router and of vLLM ask before, between and after their requests; and what is refused."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from engines.gateway.routes.about.engine_routes import REFUSED
from tests.harness.gateway_box import box, sample, samples
from tests.harness.scripted_engine import Script, ScriptedEngine


async def get(session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(path) as response:
        assert response.status == 200, (path, await response.text())
        return await response.json()


def test_the_model_says_its_name_and_its_sizes(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path, "--context", "77") as (_, session):
            for path in ("/model_info", "/get_model_info"):
                info = await get(session, path)
                assert (info["model_path"], info["is_generation"], info["weight_version"]) == (str(model), True, "0")
            (card,) = (await get(session, "/v1/models"))["data"]
            assert (card["id"], card["max_model_len"], card["root"]) == ("p1", 77, str(model))
            assert await get(session, "/v1/models/p1") == card
            assert await get(session, f"/v1/models/{model}") == card
            async with session.get("/v1/models/other") as response:
                assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")

    asyncio.run(play())


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokens_can_be_asked_without_an_engine(model: Path, tmp_path: Path, prefix: str) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (_, session):
            for prompt, tokens, count in (("01", [4, 5], 2), (["0", "12"], [[4], [5, 6]], [1, 2])):
                async with session.post(f"{prefix}/tokenize", json={"prompt": prompt, "return_token_strs": True}) as response:
                    made = await response.json()
                assert (made["tokens"], made["count"]) == (tokens, count)
                assert made.get("token_strs", ["0", "1"]) == ["0", "1"]
                async with session.post(f"{prefix}/detokenize", json={"tokens": tokens}) as response:
                    assert await response.json() == {"text": prompt, "prompt": prompt}
            async with session.post(f"{prefix}/tokenize", json={"messages": [{"role": "user", "content": "01"}]}) as response:
                assert (await response.json())["tokens"] == [4, 5, 3]
            async with session.post(f"{prefix}/detokenize", json={"tokens": [1, [2]]}) as response:
                assert response.status == 400

    asyncio.run(play())


def test_the_engines_are_one_server(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(hang=True)) as slow, ScriptedEngine() as fast:
            waiting = asyncio.create_task(session.get("/health_generate"))
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].waiting == 1)
            assert (await get(session, "/v1/loads"))["aggregate"]["total_waiting_reqs"] == 1
            await gateway.route(fast, 0)
            async with await waiting as response:
                assert response.status == 200
            await gateway.drain(0)
            await gateway.route(slow, 1, slots=2)
            work = [asyncio.create_task(session.post("/generate", json={"input_ids": [4], "rid": f"r{index}"})) for index in range(3)]
            await gateway.until(
                lambda progress: progress.rollouts and progress.rollouts[0].in_flight == 2 and progress.rollouts[0].waiting == 1
            )
            loads = await get(session, "/v1/loads")
            assert [(load["dp_rank"], load["num_running_reqs"]) for load in loads["loads"]] == [(1, 2)]
            assert loads["aggregate"] == {"total_running_reqs": 2, "total_waiting_reqs": 1, "total_reqs": 3}
            info = await get(session, "/server_info")
            assert [state["num_running_reqs"] for state in info["internal_states"]] == [2]
            assert "key" not in str(info)
            workers = await get(session, "/workers")
            assert [worker["url"] for worker in workers["workers"]] == workers["urls"] == [gateway.url]
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    asyncio.run(play())


@pytest.mark.parametrize("everything", [False, True])
def test_who_aborts_gets_what_there_is(model: Path, tmp_path: Path, everything: bool) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(delay=0.02)) as engine:
            await gateway.route(engine, slots=2)
            await gateway.open(0)
            body = {"input_ids": [4], "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
            work = [asyncio.create_task(session.post("/generate", json={**body, "rid": f"r{index}"})) for index in range(3)]
            short = asyncio.create_task(samples(session, 0, [sample(1, 60)]))
            await gateway.busy(0)
            await asyncio.sleep(0.3)
            if everything:
                async with session.post("/abort_request", json={"abort_all": True}) as response:
                    assert response.status == 200
            else:
                async with session.post("/abort_request", json={"rid": "r"}) as response:
                    assert response.status == 200
            lengths = []
            for task in work:
                async with await task as response:
                    made = await response.json()
                assert made["meta_info"]["finish_reason"]["type"] == "abort"
                lengths.append(len(made["output_ids"]))
            assert sorted(lengths)[0] == 0
            assert 0 < sorted(lengths)[-1] < 400, lengths
            (line,) = (await short).values()
            assert (line["finish_reason"]["type"], len(line["output_ids"])) in (
                [("abort", count) for count in range(60)] if everything else [("length", 60)]
            )
            async with session.post("/abort_request", json={}) as response:
                assert response.status == 400

    asyncio.run(play())


def test_what_only_the_supervisor_may_do_is_refused_with_a_sentence(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (_, session):
            for why, names in REFUSED.items():
                for name in names:
                    async with session.post(f"/{name}", json={}) as response:
                        error = (await response.json())["error"]
                        assert (response.status, error["code"]) == (403, "not_yours"), name
                        assert error["message"] == f"{name} is refused: {why}"
            for method in ("GET", "POST"):
                async with session.request(method, "/flush_cache", json={}) as response:
                    assert response.status == 200

    asyncio.run(play())

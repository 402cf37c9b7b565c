"""A real gateway process over real sockets, engines that are scripted: what each route says."""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.routes.server import Serving, application
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell
from engines.gateway.upstream.engine_client import EngineClient
from tests.harness.gateway_box import KEY, ROOT, Box, box, byte_level, right, sample, samples, text_of
from tests.harness.scripted_engine import Script, ScriptedEngine, expected
from trainers.protocol import gateway_messages
from trainers.protocol.seeds import sample_seed


def test_samples_arrive_as_they_finish_and_all_askers_get_all(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(key="secret", delay=0.001)) as engine:
            await gateway.open(3)
            asked = [sample(index, 2 + index) for index in range(10)]
            first = asyncio.create_task(samples(session, 3, asked))
            second = asyncio.create_task(samples(session, 3, asked))
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].waiting == 10)
            await gateway.route(engine, slots=4, version=2)
            lines = await first
            assert await second == lines
            assert all(right(3, index, lines[index], 2 + index) for index in range(10))
            assert lines[9]["spans"] == [{"engine": 0, "incarnation": 1, "version": 2, "start": 0, "end": 11}]
            assert lines[9]["finish_reason"] == {"type": "length", "length": 11}
            assert engine.most <= 4
            assert len(engine.bodies) == 10, "each sample is generated once"
            assert await samples(session, 3, asked) == lines, "stored answers"
            assert len(engine.bodies) == 10
            await gateway.until(lambda progress: progress.rollouts[0] == gateway_messages.RolloutProgress(3, 0, 0, 10))

    asyncio.run(play())


def test_samples_are_named_cancelled_and_come_with_what_the_engine_said(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(key="secret", delay=0.01)) as engine:
            await gateway.open(3)
            named = {**sample(0, 4), "sample": "kf9", "options": {"top_logprobs_num": 2}}
            long = {**sample(1, 4000), "sample": 7}
            asked = asyncio.create_task(samples(session, 3, [named, long]))
            await gateway.route(engine, slots=4, version=2)
            assert (await samples(session, 3, [named]))["kf9"]["finish_reason"]["type"] == "length"
            async with session.post("/rollouts/3/cancel", json={"samples": [7]}) as response:
                assert response.status == 200
            lines = await asked
            assert lines[7]["finish_reason"]["type"] == "abort"
            assert 0 < len(lines[7]["output_ids"]) < 4000, "what there was of it is kept"
            meta = lines["kf9"]["meta_info"]
            assert len(meta["output_top_logprobs"]) == 4
            assert meta["prompt_tokens"] == 2
            assert "cached_tokens" in meta
            assert "output_token_logprobs" not in meta, "that is in the line already"
            for bad in ({"sample": "5"}, {"sample": "k\n"}, {"options": {"stream": 1, "unheard_of": 2}}):
                async with session.post("/rollouts/3/samples", json={"samples": [{**named, **bad}]}) as response:
                    assert response.status == 400
            async with session.post("/rollouts/3/cancel", json={"samples": [True]}) as response:
                assert response.status == 400

    asyncio.run(play())


def test_generate_speaks_sglang(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine, version=5)
            params = {"max_new_tokens": 6, "sampling_seed": 3}
            body = {"input_ids": [4, 5], "sampling_params": params, "return_logprob": True, "rid": "mine"}
            ids, logprobs = expected([4, 5], params)
            async with session.post("/generate", json=body) as response:
                one = await response.json()
            meta = one["meta_info"]
            assert (one["output_ids"], one["text"]) == (ids, text_of(ids))
            assert (meta["id"], meta["prompt_tokens"], meta["completion_tokens"]) == ("mine", 2, 6)
            assert meta["output_token_logprobs"] == [[logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)]
            assert meta["weight_versions"] == [{"version": "5", "start": 0, "end": 6}]
            assert meta["spans"] == [{"engine": 0, "incarnation": 1, "version": 5, "start": 0, "end": 6}]
            async with session.post("/generate", json={**body, "stream": True}) as response:
                lines = [line[6:] async for line in response.content if line.startswith(b"data: ")]
            assert lines[-1] == b"[DONE]\n"
            events = [json.loads(line) for line in lines[:-1]]
            assert events[-1] == one
            assert all(event["output_ids"] == ids[: len(event["output_ids"])] for event in events)
            assert all(event["meta_info"]["finish_reason"] is None for event in events[:-1])
            async with session.post("/generate", json={"text": ["01", "2"], "sampling_params": {**params, "n": 2}}) as response:
                four = await response.json()
            seeds = [{"max_new_tokens": 6, "sampling_seed": seed} for seed in (3, 4, 3, 4)]
            prompts = [[4, 5], [4, 5], [6], [6]]
            assert [made["output_ids"] for made in four] == [expected(p, s)[0] for p, s in zip(prompts, seeds, strict=True)]
            async with session.post("/generate", json={**body, "top_logprobs_num": 2}) as response:
                assert len((await response.json())["meta_info"]["output_top_logprobs"]) == 6
            async with session.get("/model_info") as response:
                assert (await response.json())["weight_version"] == "5"
            async with session.get("/health") as response:
                assert response.status == 200

    asyncio.run(play())


def test_openai_clients_are_served(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), ScriptedEngine(Script(eos=[4 + 7])) as engine:
            await gateway.route(engine)
            client = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0)
            assert [model.id async for model in client.models.list()] == ["p1"]
            ids, logprobs = expected([4, 5, 3], {"max_new_tokens": 9, "sampling_seed": 3})
            ids = ids[: ids.index(11) + 1] if 11 in ids else ids
            chat = await client.chat.completions.create(
                model="p1", messages=[{"role": "user", "content": "01"}], max_tokens=9, seed=3, logprobs=True, top_logprobs=2
            )
            assert chat.choices[0].message.content == text_of(ids)
            assert chat.choices[0].finish_reason == ("stop" if ids[-1] == 11 else "length")
            assert [entry.logprob for entry in chat.choices[0].logprobs.content] == logprobs[: len(ids)]
            assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
            assert chat.usage.completion_tokens == len(ids)
            stream = await client.chat.completions.create(
                model="p1",
                messages=[{"role": "user", "content": "01"}],
                max_tokens=9,
                seed=3,
                stream=True,
                stream_options={"include_usage": True},
            )
            events = [event async for event in stream]
            assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == text_of(ids)
            assert events[-1].usage.completion_tokens == len(ids)
            two = await client.completions.create(
                model="p1", prompt=["01", "2"], max_tokens=3, n=2, extra_headers={"X-Trainshed-Sample": "a"}
            )
            assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="p1", prompt="", max_tokens=3)
            await client.close()

    asyncio.run(play())


JSON = {"Content-Type": "application/json"}
BAD = [
    ("/generate", b"{", 400, "bad_request"),
    ("/generate", b"[" * 20_000, 400, "bad_request"),
    ("/generate", b"[" * 100_000, 413, "too_large"),
    ("/generate", b"\xff\xfe", 400, "bad_request"),
    ("/generate", b"{}", 400, "bad_request"),
    ("/generate", b'{"input_ids": []}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [-1]}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [99999999999]}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [[1], 2]}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [1], "text": "a"}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [1], "image_data": "x"}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [1], "sampling_params": {"n": 100000}}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [1], "sampling_params": {"max_new_tokens": -1}}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [1], "sampling_params": [{}, {}]}', 400, "bad_request"),
    ("/rollouts/x/samples", b"{}", 400, "bad_request"),
    ("/rollouts/-1/samples", b"{}", 400, "bad_request"),
    ("/rollouts/0/samples", b'{"samples": []}', 400, "bad_request"),
    ("/rollouts/0/samples", b'{"samples": [{"sample": 0, "input_ids": [1], "what": 1}]}', 400, "bad_request"),
    ("/rollouts/0/samples", b'{"samples": [{"sample": 0, "input_ids": [1]}, {"sample": 0, "input_ids": [1]}]}', 400, "bad_request"),
    ("/v1/completions", b'{"prompt": 1}', 400, "bad_request"),
    ("/v1/completions", b'{"prompt": "a", "suffix": "b"}', 400, "bad_request"),
    ("/v1/chat/completions", b'{"messages": []}', 400, "bad_request"),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4, 66]}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [[4], [5, 66]]}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "sampling_params": {"stop_token_ids": [66]}}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "sampling_params": {"stop_token_ids": [-1]}}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "sampling_params": {"logit_bias": {"66": 1}}}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "sampling_params": {"top_k": 2147483648}}', 400, "bad_request"),
    ("/v1/completions", b'{"prompt": [4], "top_k": 2147483648}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "top_logprobs_num": 67}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "top_logprobs_num": -1}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "token_ids_logprob": [66]}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "logprob_start_len": -7}', 400, "bad_request"),
    ("/generate", b'{"input_ids": [4], "logprob_start_len": 2}', 400, "bad_request"),
    ("/rollouts/0/samples", b'{"samples": [{"sample": 0, "input_ids": [4]}, {"sample": 1, "input_ids": [66]}]}', 400, "bad_request"),
    ("/v1/completions", b'{"prompt": [4, 66]}', 400, "bad_request"),
    ("/v1/completions", b'{"prompt": [4], "logprobs": 70}', 400, "bad_request"),
    ("/v1/completions", b'{"prompt": [4], "stop_token_ids": [66]}', 400, "bad_request"),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "0"}], "logit_bias": {"66": 1}}', 400, "bad_request"),
    ("/nothing", b"{}", 404, "not_found"),
    ("/health", b"{}", 405, "method_not_allowed"),
]


def test_bad_requests_get_typed_errors_and_do_no_harm(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(status=400, error="too long")) as engine:
            for path, body, status, code in BAD:
                async with session.post(path, data=body, headers=JSON) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (status, code), (path, body[:60])
            async with session.post("/generate", data=b'"' + b"x" * (65 << 20), headers=JSON) as response:
                assert response.status == 413
            async with session.post("/generate", json={"input_ids": [1]}, headers={"X-Trainshed-Rollout": "a"}) as response:
                assert response.status == 400
            await gateway.order(gateway_messages.Hopeless, reason="every engine is retired")
            async with session.post("/generate", json={"input_ids": [1]}) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (503, "no_engine")
            await gateway.order(gateway_messages.Hopeless, reason="")
            await gateway.route(engine)
            async with session.post("/generate", json={"input_ids": [1]}) as response:
                assert (response.status, await response.json()) == (
                    400,
                    {"error": {"code": "bad_request", "message": "too long", "type": "invalid_request_error", "param": None}},
                )
            await gateway.open(0)
            assert (await samples(session, 0, [sample(1)]))[1]["error"] == {"code": "bad_request", "message": "too long"}

    asyncio.run(play())


def test_a_model_without_a_tokenizer_serves_tokens_only(tmp_path: Path) -> None:
    async def play() -> None:
        async with box(tmp_path, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            async with session.post("/generate", json={"input_ids": [4], "sampling_params": {"max_new_tokens": 2}}) as response:
                assert (await response.json())["text"] == ""
            async with session.post("/v1/completions", json={"prompt": "a"}) as response:
                assert (await response.json())["error"]["code"] == "no_tokenizer"

    asyncio.run(play())


@pytest.mark.slow
def test_implicit_rollouts_are_reported_and_close(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            work = asyncio.create_task(session.post("/generate", json={"input_ids": [4], "sampling_params": {"max_new_tokens": 2}}))
            await gateway.until(lambda progress: progress.rollouts == (gateway_messages.RolloutProgress(-1, 1, 0, 0, True),))
            await gateway.route(engine)
            assert (await work).status == 200
            await gateway.until(lambda progress: progress.rollouts == (gateway_messages.RolloutProgress(-1, 0, 0, 1, True),))
            await gateway.until(lambda progress: progress.rollouts == ())

    asyncio.run(play())


def test_garbage_on_the_channel_and_a_term_end_it(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(hang=True)) as engine:
            await gateway.route(engine)
            work = asyncio.create_task(session.post("/generate", json={"input_ids": [4]}))
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].in_flight)
            gateway.process.terminate()
            async with asyncio.timeout(3.0):
                assert await gateway.process.wait() == 0
            with pytest.raises(aiohttp.ClientError):
                await work
            await gateway.start()
            gateway.writer.write(b"\xff\xff\xff\xff nonsense")
            async with asyncio.timeout(3.0):
                assert await gateway.process.wait() == 1
            await gateway.start()

    asyncio.run(play())


def test_progress_is_sent_at_most_twenty_times_a_second(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine, slots=8)
            await gateway.open(0)
            loop = asyncio.get_running_loop()
            before, begun = gateway.reports, loop.time()
            await samples(session, 0, [sample(index, 3) for index in range(200)])
            assert gateway.reports - before <= 20 * (loop.time() - begun) + 2
            await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].done == 200)

    asyncio.run(play())


def test_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, engines.gateway.__main__; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert (found.stdout, found.returncode) == ("[]\n", 0), found.stderr


def test_seeds_are_the_clients() -> None:
    client = pytest.importorskip("trainshed")
    assert all(sample_seed(*key) == client.sample_seed(*key) for key in [(0, 0, 0), (7, 3, 12), (2**40, 10**6, 255)])


def test_a_large_text_stops_nobody(tmp_path: Path) -> None:
    byte_level(tmp_path)  # without a limit in its config: all of it is encoded

    async def play() -> None:
        async with box(tmp_path, tmp_path) as (gateway, session), ScriptedEngine(Script(status=400, error="too long")) as engine:
            await gateway.route(engine)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            large = asyncio.create_task(session.post("/v1/completions", json={"prompt": "abcdefgh" * 131072, "max_tokens": 2}))
            slowest, asked = 0.0, 0
            while not large.done():
                before = loop.time()
                async with session.get("/health") as response:
                    assert response.status == 200
                slowest, asked = max(slowest, loop.time() - before), asked + 1
                await asyncio.sleep(0.01)
            assert (await large).status == 400
            assert slowest < 0.5 * (loop.time() - begun), "health has waited for the text"
            assert asked > 10

    asyncio.run(play())


@pytest.mark.parametrize("route", ["/generate", "/v1/completions", "/v1/chat/completions", "/rollouts/0/samples"])
def test_an_error_after_the_headers_ends_the_stream_as_its_protocol_says(
    model: Path, tmp_path: Path, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        text = Text(model)
        monkeypatch.setattr(text, "answer", lambda *_: 1 / 0)
        shell = Shell(Dispatch(), EngineClient(), lambda *_, **__: None)
        listener = socket.create_server(("127.0.0.1", 0))
        quiet = lambda *_, **__: None  # noqa: E731
        serving = await Serving(application(shell, text, pipeline="p1", model="m", access=None, log=quiet), listener, quiet).start()
        bodies: dict[str, Any] = {
            "/generate": {"input_ids": [4], "stream": True},
            "/v1/completions": {"prompt": [4], "stream": True},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "0"}], "stream": True},
            "/rollouts/0/samples": {"samples": [{"sample": 3, "input_ids": [4]}, {"sample": 4, "input_ids": [4]}]},
        }
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with ScriptedEngine(Script(delay=0.01)) as engine, aiohttp.ClientSession(base_url=url) as session:
            shell.order(gateway_messages.OpenRollout(order=1, rollout=0, target=2))
            shell.order(gateway_messages.Route(order=2, engine=0, incarnation=1, url=engine.url, key="", slots=4, version=0))
            async with session.post(route, json=bodies[route]) as response:
                assert response.status == 200
                lines = [line.strip() for line in (await response.read()).splitlines() if line.strip()]
        if route == "/rollouts/0/samples":
            made = [json.loads(line) for line in lines]
            assert [(line["sample"], line["error"]["code"]) for line in made] == [(3, "internal"), (4, "internal")]
        else:
            assert json.loads(lines[-2][6:])["error"]["code"] == "internal"
            assert lines[-1] == b"data: [DONE]"
        await shell.close()
        await serving.end()
        listener.close()

    asyncio.run(play())


def test_an_empty_stop_string_is_none(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            for stop in ("", ["", "Q"], [""]):
                async with session.post("/v1/completions", json={"prompt": [4], "max_tokens": 3, "stop": stop}) as response:
                    assert response.status == 200, stop
                assert "" not in (engine.bodies[-1]["sampling_params"].get("stop") or [])

    asyncio.run(play())


def test_a_full_disk_costs_log_lines_and_nothing_else(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    log.symlink_to("/dev/full")

    async def play() -> None:
        gateway = Box(model, log)
        await gateway.start()
        try:
            headers = {"Authorization": f"Bearer {KEY}"}
            async with ScriptedEngine() as engine, aiohttp.ClientSession(base_url=gateway.url, headers=headers) as session:
                await gateway.route(engine)
                await gateway.open(0)
                body = {"input_ids": [4], "sampling_params": {"max_new_tokens": 1}}
                async with session.post("/generate", json=body) as response:
                    assert response.status == 200
            assert await gateway.stop() == 0
        finally:
            gateway.listener.close()
            if gateway.process.returncode is None:
                gateway.process.kill()
                await gateway.process.wait()

    asyncio.run(play())


def test_a_gateway_that_has_read_a_tokenizer_has_no_torch(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            async with session.post("/v1/completions", json={"prompt": "01", "max_tokens": 1}) as response:
                assert response.status == 200
            mapped = await asyncio.to_thread(Path(f"/proc/{gateway.process.pid}/maps").read_text)
            assert "/tokenizers/" in mapped
            assert "torch" not in mapped

    asyncio.run(play())

"""A real gateway process over real sockets, engines that are scripted."""

import asyncio
import json
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engines.gateway import messages
from engines.gateway.seeds import sample_seed
from tests.engines.gateway.box import ROOT, box, samples
from tests.scripted_engine import Script, ScriptedEngine, expected

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a character, and a chat template."""
    directory = tmp_path_factory.mktemp("model")
    names = ["<pad>", "<eos>", "<unk>", ":", *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    return directory


def text_of(ids: list[int]) -> str:
    return "".join(CHARACTERS[token - 4] for token in ids)


def sample(index: int, limit: int = 12, **params: Any) -> dict[str, Any]:
    return {"sample": index, "input_ids": [4 + index % 60, 5], "sampling_params": {"max_new_tokens": limit, **params}}


def right(rollout: int, index: int, line: dict[str, Any], limit: int = 12) -> bool:
    """Whether it is the sample that an uninterrupted engine makes, with spans that cover it."""
    ids, logprobs = expected([4 + index % 60, 5], {"max_new_tokens": limit, "sampling_seed": sample_seed(7, rollout, index)})
    covered = [token for span in line["spans"] for token in range(span["start"], span["end"])]
    return bool(
        line["output_ids"] == ids and line["logprobs"] == logprobs and covered == list(range(limit)) and line["text"] == text_of(ids)
    )


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
            await gateway.until(lambda progress: progress.rollouts[0] == messages.RolloutProgress(3, 0, 0, 10))

    asyncio.run(play())


@pytest.mark.parametrize("incremental", [False, True])
def test_drains_under_load_lose_and_double_nothing(model: Path, tmp_path: Path, incremental: bool) -> None:
    async def play() -> None:
        scripts = [Script(delay=0.002, incremental=incremental, key="secret") for _ in range(3)]
        async with box(model, tmp_path) as (gateway, session):
            async with ScriptedEngine(scripts[0]) as one, ScriptedEngine(scripts[1]) as two, ScriptedEngine(scripts[2]) as three:
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
                "tests.scripted_engine",
                "--listen-fd",
                str(listener.fileno()),
                script,
                pass_fds=[listener.fileno()],
                cwd=ROOT,
            )
            url = "http://127.0.0.1:%d" % listener.getsockname()[1]
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
            with pytest.raises(aiohttp.ClientError):
                work = asyncio.create_task(samples(session, 0, asked))
                await gateway.until(lambda progress: progress.rollouts and progress.rollouts[0].in_flight == 4)
                gateway.process.kill()
                await work
            await gateway.process.wait()
            repeated = asyncio.create_task(samples(session, 0, asked))  # its connection waits in the inherited socket
            await gateway.start()
            await gateway.route(engine)
            await gateway.open(0)
            lines = await repeated
            assert all(right(0, index, lines[index], 20) for index in range(8))

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


def test_a_stream_survives_a_drain_without_a_gap(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(delay=0.005)) as one, ScriptedEngine() as two:
            await gateway.route(one)
            client = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0)
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


def test_openai_clients_are_served(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(eos=[4 + 7])) as engine:
            await gateway.route(engine)
            client = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="none", max_retries=0)
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


BAD = [
    ("/generate", b"{", 400, "bad_request"),
    ("/generate", b"[" * 100_000, 400, "bad_request"),
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
    ("/nothing", b"{}", 404, "not_found"),
    ("/health", b"{}", 405, "method_not_allowed"),
]


def test_bad_requests_get_typed_errors_and_do_no_harm(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(status=400, error="too long")) as engine:
            for path, body, status, code in BAD:
                async with session.post(path, data=body) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (status, code), (path, body[:60])
            async with session.post("/generate", data=b'"' + b"x" * (65 << 20)) as response:
                assert response.status == 413
            async with session.post("/generate", json={"input_ids": [1]}, headers={"X-Trainshed-Rollout": "a"}) as response:
                assert response.status == 400
            await gateway.order(messages.Hopeless, reason="every engine is retired")
            async with session.post("/generate", json={"input_ids": [1]}) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (503, "no_engine")
            await gateway.order(messages.Hopeless, reason="")
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


def test_implicit_rollouts_are_reported_and_close(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            work = asyncio.create_task(session.post("/generate", json={"input_ids": [4], "sampling_params": {"max_new_tokens": 2}}))
            await gateway.until(lambda progress: progress.rollouts == (messages.RolloutProgress(-1, 1, 0, 0, True),))
            await gateway.route(engine)
            assert (await work).status == 200
            await gateway.until(lambda progress: progress.rollouts == (messages.RolloutProgress(-1, 0, 0, 1, True),))
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
            await gateway.until(lambda progress: progress.rollouts[0].done == 200)

    asyncio.run(play())


def test_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, engines.gateway.__main__; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30
    )
    assert (found.stdout, found.returncode) == ("[]\n", 0), found.stderr


def test_seeds_are_the_clients() -> None:
    client = pytest.importorskip("trainers.client")
    assert all(sample_seed(*key) == client.sample_seed(*key) for key in [(0, 0, 0), (7, 3, 12), (2**40, 10**6, 255)])

"""The gateway before real embedded engines: what is interrupted equals what is not, bit for bit, log-probs too."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.harness.gateway_box import box, samples
from trainers.protocol import gateway_messages
from trainers.protocol.child_env import OUR_PATH

pytest.importorskip("torch")
KEY = "secret"
START_S = 60.0


def asked(count: int) -> list[dict[str, Any]]:
    params = {"max_new_tokens": 40, "temperature": 1.0, "ignore_eos": True}
    return [{"sample": index, "input_ids": [3 + index % 10, 13, 39], "sampling_params": params} for index in range(count)]


async def engine(model: Path, log: Path) -> tuple[asyncio.subprocess.Process, str]:
    """A ready one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        "-P",
        "-m",
        "engines.embedded",
        "--model",
        str(model),
        "--slots",
        "4",
        "--context",
        "64",
        "--port",
        str(port),
        "--gpu",
        "virtual:0",
    ]
    environment = {"PYTHONPATH": OUR_PATH, "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "TRAINSHED_API_KEY": KEY}
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
        while True:
            assert process.returncode is None, f"the engine has ended, see {log}"
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return process, url
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


@pytest.mark.slow
def test_interrupted_samples_equal_uninterrupted_ones(tmp_path: Path) -> None:
    from tests.harness.tiny_model import make_tiny_model

    model = make_tiny_model(tmp_path / "model")

    async def play() -> None:
        started = await asyncio.gather(*(engine(model, tmp_path / f"engine-{rank}.log") for rank in range(2)))
        try:
            async with box(model, tmp_path) as (gateway, session):
                for rank, (_, url) in enumerate(started):
                    await gateway.route(url, rank)
                await gateway.open(5)
                calm = await samples(session, 5, asked(16))
                await gateway.order(gateway_messages.Forget)
                await gateway.open(5)
                work = asyncio.create_task(samples(session, 5, asked(16)))
                for turn in range(6):
                    await gateway.busy(turn % 2)
                    await gateway.drain(turn % 2)
                    await gateway.route(started[turn % 2][1], turn % 2)
                wild = await work
            assert [len(line["output_ids"]) for line in calm.values()] == [40] * 16
            assert any(len(line["spans"]) > 1 for line in wild.values()), "nothing was interrupted"
            for index in range(16):
                assert {**wild[index], "spans": [], "meta_info": {}} == {**calm[index], "spans": [], "meta_info": {}}
                one, whole = wild[index]["meta_info"], calm[index]["meta_info"]
                if len(wild[index]["spans"]) == 1:
                    assert one == whole
                else:  # of an answer put together from several attempts no engine has said more than what it said of the prompt
                    assert set(one) == {"prompt_tokens", "cached_tokens"}
                    assert one.items() <= whole.items()
                assert {span["version"] for span in wild[index]["spans"]} == {0}
        finally:
            for process, _ in started:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    asyncio.run(play())

"""What a token costs in the gateway's process: microseconds of processor a token, tokens a second, memory.

    bin/bench finding gateway_tokens

One rollout of N samples over our clients' own route, from an engine of prepared bytes (`tests/harness/fast_engine.py`) that makes a token
each `pace` seconds for every sample and sends them one, 8 or 32 at a time (`interval`); pace 0: all at once.
"""

import asyncio
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import psutil
import uvloop

from bench.gateway import answers, engine, model
from tests.harness.gateway_box import KEY, box

PACES = ((0.0, 1), (0.02, 1), (0.02, 8), (0.02, 32))
PACED, FLAT_OUT = ((64, 512), (256, 512), (1024, 512)), ((64, 1024), (256, 1024))
"""Samples, and tokens of each."""


async def rollout(url: str, pid: int, number: int, count: int, tokens: int) -> tuple[int, float, float, float]:
    """Return tokens received, seconds, processor seconds of the process `pid`, and its resident MiB."""
    process = psutil.Process(pid)
    before, began, received = sum(process.cpu_times()[:2]), time.monotonic(), 0
    params = {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True}
    samples = [{"sample": index, "input_ids": list(range(4, 34)) * 2, "sampling_params": params} for index in range(count)]
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600), read_bufsize=2**24) as session,
        session.post(f"{url}/rollouts/{number}/samples", json={"samples": samples}, headers={"Authorization": f"Bearer {KEY}"}) as response,
    ):
        async for line in response.content:
            if line.strip():
                received += len(json.loads(line)["output_ids"])
    return received, time.monotonic() - began, sum(process.cpu_times()[:2]) - before, process.memory_info().rss / 2**20


async def play() -> None:
    """Print a line for each pace, interval and number of samples."""
    number = 0
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        made = model(folder / "model")
        for pace, interval in PACES:
            ours = folder / f"ours-{pace}-{interval}"
            await asyncio.to_thread(ours.mkdir)
            url = engine(stack, pace, folder, interval)
            await answers(url, folder)
            async with box(made, ours) as (gateway, _):
                await gateway.route(url, slots=4096)
                for count, tokens in PACED if pace else FLAT_OUT:
                    await gateway.open(number)
                    got, wall_s, cpu_s, rss = await rollout(gateway.url, gateway.process.pid, number, count, tokens)
                    number += 1
                    ideal = f" (ideal {count / pace:.0f})" if pace else ""
                    print(
                        f"pace {pace} interval {interval}, {count} samples of {tokens}: {got / wall_s:.0f} tokens/s{ideal}, {wall_s:.2f} s, "
                        f"{1e6 * cpu_s / got:.1f} us a token, {rss:.0f} MiB",
                        flush=True,
                    )


if __name__ == "__main__":
    uvloop.run(play())

"""What a token costs in the gateway's process: microseconds of processor a token, tokens a second, bytes of memory a token that is held.

    bin/bench tokens [ROUNDS]         the median of so many rounds (3)
    bin/bench tokens memory           20,000 samples of 4,096 tokens in flight at once, and what their tokens take; some minutes

One rollout of N samples over our clients' own route, from an engine of prepared bytes (`tests/harness/fast_engine.py`) that makes a token each
`pace` seconds for every sample; how many of them come in one event is the gateway's own choice (`stream_interval`), as with SGLang.
"""

import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvloop

from bench.gateway import answers, engine, model
from tests.harness.gateway_box import KEY, box

PACED = ((0.02, 64, 1024), (0.02, 256, 1024), (0.02, 1024, 2048))
"""Seconds a token, samples, tokens of each."""
HELD = (0.05, 20_000, 4096)
LOOK_S = 2.0


@dataclass(frozen=True)
class Cost:
    """What one rollout took: `cpu_s` is of the gateway's process; memory in bytes, `peak` the highest that was seen and `base` before it."""

    tokens: int
    wall_s: float
    cpu_s: float
    base: int
    peak: int
    after: int

    @property
    def us(self) -> float:
        """Microseconds of processor a token."""
        return 1e6 * self.cpu_s / self.tokens


async def rollout(url: str, pid: int, number: int, count: int, tokens: int, **params: Any) -> Cost:
    """Ask for `count` samples of so many tokens as one rollout of the gateway at `url`, whose process is `pid`."""
    process = psutil.Process(pid)
    base, received = process.memory_info().rss, 0
    highest = [base]
    params = {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True, **params}
    samples = [{"sample": index, "input_ids": list(range(4, 34)) * 2, "sampling_params": params} for index in range(count)]
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    watching = asyncio.create_task(_watch(lambda: process.memory_info().rss, highest))
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3600), read_bufsize=2**24) as session,
        session.post(f"{url}/rollouts/{number}/samples", json={"samples": samples}, headers={"Authorization": f"Bearer {KEY}"}) as response,
    ):
        async for line in response.content:
            if line.strip():
                received += len(json.loads(line)["output_ids"])
    watching.cancel()
    cpu_s = sum(process.cpu_times()[:2]) - before
    after = process.memory_info().rss
    return Cost(received, time.monotonic() - began, cpu_s, base, max(after, *highest), after)


async def _watch(memory: Callable[[], int], seen: list[int]) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        seen.append(memory())


async def play(paced: tuple[tuple[float, int, int], ...], rounds: int) -> None:
    """Print a line for each pace, number of samples and length."""
    number = 0
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        made = model(folder / "model")
        for pace, count, tokens in paced:
            ours = folder / f"ours-{count}"
            await asyncio.to_thread(ours.mkdir)
            url = engine(stack, pace, ours)
            await answers(url, ours)
            costs = []
            async with box(made, ours) as (gateway, _):
                await gateway.route(url, slots=32768)
                for _round in range(rounds):
                    await gateway.open(number, target=count)
                    costs.append(await rollout(gateway.url, gateway.process.pid, number, count, tokens))
                    await gateway.close(number)
                    number += 1
            cost = sorted(costs, key=lambda one: one.us)[len(costs) // 2]
            print(
                f"{count} samples of {tokens} tokens, a token each {1000 * pace:.0f} ms: {cost.us:.2f} us a token, {1 / cost.us:.3f}e6 tokens "
                f"a second of processor, {cost.tokens / cost.wall_s:.0f} tokens/s of {count / pace:.0f} ({cost.wall_s:.1f} s), "
                f"{statistics.median((one.peak - one.base) / one.tokens for one in costs[:1]):.1f} bytes a token "
                f"(from {costs[0].base / 2**20:.0f} to {costs[0].peak / 2**20:.0f} MiB)",
                flush=True,
            )


def main(words: list[str]) -> None:
    """Measure what the words ask for."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if "memory" in words:
        uvloop.run(play((HELD,), 1))
    else:
        uvloop.run(play(PACED, next((int(word) for word in words if word.isdigit()), 3)))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Tokens a second of real SGLang on a CPU: asked directly, streamed as the gateway asks, through the gateway, and with seeds that hold.

    TRAINSHED_SGLANG=DIR bin/bench engine_rate [ROUNDS]       DIR: made by `bin/sglang-cpu`; ROUNDS: 7

Two engines of one small random model, the second `deterministic`; as many clients as slots, each asking for one sample a round. The ways are taken
in turn, so that all see the same load of the machine; what is printed are medians and their ratios to the first way.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop

from bench.gateway import model
from engines.gateway.core.attempts import tokens_at_once
from tests.harness.gateway_box import KEY as GATEWAY_KEY
from tests.harness.gateway_box import box
from tests.harness.sglang.served import KEY, REAL, SLOTS, serving

TOKENS = 160
SAMPLES = 2 * SLOTS


AS_THE_GATEWAY: Final = {"stream": True, "return_logprob": True, "logprob_start_len": -1}


async def rate(url: str, key: str, **more: object) -> float:
    """Return tokens a second of `SAMPLES` requests, `SLOTS` at once; `more` is in the body of each."""
    gate = asyncio.Semaphore(SLOTS)

    async def one(session: aiohttp.ClientSession, seed: int) -> int:
        params: dict[str, Any] = {"max_new_tokens": TOKENS, "temperature": 1.0, "ignore_eos": True, "sampling_seed": seed}
        params |= {"stream_interval": tokens_at_once(SLOTS, False)} if more else {}
        body = {"input_ids": [5, 9, 13, 21], "sampling_params": params, **more}
        async with gate, session.post(f"{url}/generate", json=body) as response:
            text = await response.text()
        events = [line.removeprefix("data: ") for line in text.splitlines() if line and not line.endswith("[DONE]")]
        return int(json.loads(events[-1])["meta_info"]["completion_tokens"])

    began = time.monotonic()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        made = await asyncio.gather(*(one(session, seed) for seed in range(SAMPLES)))
    assert made == [TOKENS] * SAMPLES
    return sum(made) / (time.monotonic() - began)


async def play(plain: str, seeded: str, folder: Path, rounds: int) -> None:
    """Measure the ways in turn, after one round that does not count."""
    made = await asyncio.to_thread(model, folder / "tokenizer")
    async with box(made, folder) as (gateway, _):
        await gateway.route(plain, key=KEY, slots=SLOTS)
        ways: dict[str, tuple[str, str, dict[str, object]]] = {
            "direct": (plain, KEY, {}),
            "direct, streamed": (plain, KEY, AS_THE_GATEWAY),
            "gateway": (gateway.url, GATEWAY_KEY, {}),
            "deterministic": (seeded, KEY, {}),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way in [*ways][number % len(ways) :] + [*ways][: number % len(ways)]:
                url, key, more = ways[way]
                got = await rate(url, key, **more)
                rates[way] += [got] if number else []
    first = statistics.median(rates["direct"])
    for way, got in rates.items():
        print(
            f"{way}: {statistics.median(got):.0f} tokens/s ({min(got):.0f} to {max(got):.0f}), {statistics.median(got) / first:.3f} of direct"
        )


def main(words: list[str]) -> int:
    """Start the engines and measure. Return 2 where there is no SGLang."""
    if not REAL:
        print("TRAINSHED_SGLANG names no environment; bin/sglang-cpu makes one")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("plain", "seeded", "gateway")]
        for folder in folders:
            folder.mkdir()
        with serving("sglang", folders[0]) as plain, serving("sglang", folders[1], deterministic=True) as seeded:
            uvloop.run(play(plain.url, seeded.url, folders[2], int(words[0]) if words else 7))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

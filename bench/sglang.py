"""Partial rollouts on real SGLang: greedy float32 generation, interrupted at a random token and continued on another engine.

    bin/bench sglang ENV [COUNT] [moe]       ENV is made by bin/sglang-cpu; COUNT samples (default 1000); two engines, dense or mixture of experts

Each sample is generated whole on one engine; then again, aborted after a random number of tokens, and continued from `prompt + so far` on
the other. Counted: equal token for token; else, whether the two best log-probs where they first differ were less than 1e-4 apart.
Ends with 1 when any difference is larger.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))
os.environ["TRAINSHED_SGLANG"] = sys.argv[1] if len(sys.argv) > 1 else ""

from tests.sglang.served import Served, serving  # noqa: E402
from tests.sglang.test_conformance import Asked  # noqa: E402

LENGTH = 192
AT_ONCE = 8
CLOSE = 1e-4


@dataclass
class Count:
    equal: int = 0
    close: int = 0
    different: int = 0
    interrupted: int = 0
    logprob_off: float = 0.0


async def sample(engines: list[Served], chance: random.Random, count: Count, free: asyncio.Semaphore) -> None:
    prompt = [chance.randrange(4, 60) for _ in range(chance.randrange(2, 12))]
    first, second = chance.sample(engines, 2)
    after = chance.randrange(1, LENGTH * 2 // 3)  # what is decoded until the abort arrives comes on top
    async with free:
        whole = await Asked(first, prompt, LENGTH).run()
        part = Asked(first, prompt, LENGTH)
        running = asyncio.ensure_future(part.run())
        await part.has(after)
        await asyncio.to_thread(first.post, "/abort_request", {"rid": part.rid})
        await running
        ids, logprobs = part.ids, part.logprobs
        if len(ids) < LENGTH:
            count.interrupted += 1
            rest = await Asked(second, prompt + ids, LENGTH - len(ids)).run()
            ids, logprobs = ids + rest.ids, logprobs + rest.logprobs
        if ids == whole.ids:
            count.equal += 1
            count.logprob_off = max(count.logprob_off, *(abs(one - other) for one, other in zip(logprobs, whole.logprobs, strict=True)))
            return
        where = next(index for index, (one, other) in enumerate(zip(ids, whole.ids, strict=True)) if one != other)
        body = {"input_ids": prompt + whole.ids[:where], "sampling_params": {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True}}
        answer = await asyncio.to_thread(first.post, "/generate", {**body, "return_logprob": True, "top_logprobs_num": 2})
        best, next_best = (entry[0] for entry in answer["meta_info"]["output_top_logprobs"][0])
        count.close += best - next_best < CLOSE
        count.different += best - next_best >= CLOSE


async def main() -> int:
    wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    kind = "sglang-moe" if "moe" in sys.argv else "sglang"
    chance, count, free = random.Random(7), Count(), asyncio.Semaphore(AT_ONCE)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folders = [Path(scratch) / name for name in ("a", "b")]
        engines = []
        for folder in folders:
            folder.mkdir()
            engines.append(stack.enter_context(serving(kind, folder)))
        began = time.monotonic()
        await asyncio.gather(*(sample(engines, chance, count, free) for _ in range(wanted)))
        seconds = time.monotonic() - began
    print(json.dumps({"kind": kind, "samples": wanted, **vars(count), "seconds": round(seconds, 1), "tokens_each": LENGTH}))
    return int(count.different > 0)


sys.exit(asyncio.run(main()))

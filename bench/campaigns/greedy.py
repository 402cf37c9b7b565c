"""Partial rollouts on real engines: each sample is interrupted at a random token and continued on another engine, and equals itself undisturbed.

    bin/check --long greedy [embedded|sglang|sglang-moe] [SAMPLES]      default: embedded and 1,000; SGLang wants TRAINSHED_SGLANG=ENV

Each sample is generated whole on one engine; then again, aborted after a random number of tokens, and continued from `prompt + so far` on
the other; one that ended before the abort arrived is taken again with an earlier one, so that every sample of the count was interrupted.
The embedded engine must agree bit for bit, log-probs too, greedy and sampled. SGLang (float32, greedy) must agree token for token, or
differ first where the two best log-probs are less than 1e-4 apart.
"""

import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.campaigns.harness.campaign import run
from tests.harness.sglang.asking import Asked
from tests.harness.sglang.served import KINDS, Served, available, serving

LENGTH = 192
AT_ONCE = 24
CLOSE = 1e-4
A_CASE = 50


@dataclass
class Count:
    """`equal`, `close` and `different` add up to the samples; each was interrupted. `too_late`: aborts that came after the end."""

    equal: int = 0
    close: int = 0
    different: int = 0
    too_late: int = 0
    earliest: int = LENGTH
    latest: int = 0
    logprob_off: float = 0.0


class Pair:
    """Two engines of a kind."""

    def __init__(self, kind: str, engines: Sequence[Served]) -> None:
        self.exact = kind == "embedded"
        self.engines = engines

    async def batch(self, name: str, samples: int) -> Count:
        chance, count, free = random.Random(name), Count(), asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._sample(random.Random(chance.random()), count, free) for _ in range(samples)))
        return count

    async def _sample(self, chance: random.Random, count: Count, free: asyncio.Semaphore) -> None:
        prompt = [chance.randrange(4, 60) for _ in range(chance.randrange(2, 12))]
        first, second = chance.sample(self.engines, 2)
        sampling = {"temperature": chance.choice([0.0, 1.0]), "sampling_seed": chance.randrange(1 << 62)} if self.exact else {}
        after = chance.randrange(1, LENGTH - 1)
        async with free:
            whole = await Asked(first, prompt, LENGTH, **sampling).run()
            assert whole.reason == "length", whole.end
            part = await interrupted(first, prompt, after, sampling)
            while len(part.ids) == LENGTH:
                count.too_late += 1
                after = chance.randrange(1, max(2, after))
                part = await interrupted(first, prompt, after, sampling)
            rest = await Asked(second, prompt + part.ids, LENGTH - len(part.ids), **sampling).run()
            assert rest.reason == "length", rest.end
            count.earliest, count.latest = min(count.earliest, len(part.ids)), max(count.latest, len(part.ids))
            await self._compare(first, prompt, whole, (part.ids + rest.ids, part.logprobs + rest.logprobs), count)

    async def _compare(self, first: Served, prompt: list[int], whole: Asked, made: tuple[list[int], list[float]], count: Count) -> None:
        ids, logprobs = made
        if ids == whole.ids:
            off = max(abs(one - other) for one, other in zip(logprobs, whole.logprobs, strict=True))
            count.logprob_off = max(count.logprob_off, off)
            count.equal += off == 0.0 or not self.exact
            count.different += off != 0.0 and self.exact
            return
        where = next(index for index, (one, other) in enumerate(zip(ids, whole.ids, strict=True)) if one != other)
        near = not self.exact and await asyncio.to_thread(margin, first, prompt + whole.ids[:where]) < CLOSE
        count.close += near
        count.different += not near


async def interrupted(engine: Served, prompt: list[int], after: int, sampling: dict[str, float]) -> Asked:
    """Aborted once it has `after` tokens; what is made until the abort arrives comes on top."""
    part = Asked(engine, prompt, LENGTH, **sampling)
    running = asyncio.ensure_future(part.run())
    await part.has(after)
    await asyncio.to_thread(engine.post, "/abort_request", {"rid": part.rid})
    return await running


def margin(engine: Served, prompt: list[int]) -> float:
    """How far the two best next tokens are apart, as log-probs."""
    body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True}}
    answer = engine.post("/generate", {**body, "return_logprob": True, "top_logprobs_num": 2})
    best, next_best = (entry[0] for entry in answer["meta_info"]["output_top_logprobs"][0])
    return float(best - next_best)


def main(arguments: Sequence[str]) -> int:
    kind = next((word for word in arguments if word in KINDS), "embedded")
    samples = next((int(word.replace(",", "")) for word in arguments if word not in KINDS), 1000)
    if not available(kind):
        sys.exit("greedy: TRAINSHED_SGLANG names no environment; bin/sglang-cpu makes one")
    with tempfile.TemporaryDirectory(prefix="greedy-") as scratch, ExitStack() as stack:
        folders = [Path(scratch) / name for name in ("a", "b")]
        pair: list[Pair] = []

        def case(name: str) -> dict[str, object]:
            if not pair:  # not before there is something to do
                for folder in folders:
                    folder.mkdir()
                pair.append(Pair(kind, [stack.enter_context(serving(kind, folder)) for folder in folders]))
            count = asyncio.run(pair[0].batch(name, A_CASE))
            return {"samples": A_CASE, "tokens_each": LENGTH, **asdict(count)}

        results = run(f"greedy-{kind}", [f"batch-{number}" for number in range(-(-samples // A_CASE))], case)
    total = {name: sum(int(str(result[name])) for result in results) for name in ("samples", "equal", "close", "different", "too_late")}
    off = max(float(str(result["logprob_off"])) for result in results)
    print(
        f"{kind}: of {total['samples']} interrupted and continued {total['equal']} are equal, {total['close']} first differ where the two"
    )
    print(
        f"best are less than {CLOSE} apart, {total['different']} differ; log-probs differ by {off:.2g} at most; {total['too_late']} aborts too late"
    )
    return int(total["different"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

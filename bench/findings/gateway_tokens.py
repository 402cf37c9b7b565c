"""What a token costs in the gateway's process, by how many of them come at a time: microseconds of processor, tokens a second, memory.

    bin/bench finding gateway_tokens

`bin/bench tokens` measures with the number that the gateway itself asks for; here requests say it (`stream_interval`): 1, 8 and 32.
One rollout of N samples, from an engine of prepared bytes that makes a token each `pace` seconds for every sample; pace 0: all at once.
"""

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

import uvloop

from bench.gateway import answers, engine, model
from bench.tokens import rollout
from tests.harness.gateway_box import box

PACES = ((0.0, 1), (0.02, 1), (0.02, 8), (0.02, 32))
PACED, FLAT_OUT = ((64, 512), (256, 512), (1024, 512)), ((64, 1024), (256, 1024))
"""Samples, and tokens of each."""


async def play() -> None:
    """Print a line for each pace, interval and number of samples."""
    number = 0
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        made = model(folder / "model")
        for pace, interval in PACES:
            ours = folder / f"ours-{pace}-{interval}"
            await asyncio.to_thread(ours.mkdir)
            url = engine(stack, pace, folder)
            await answers(url, folder)
            async with box(made, ours) as (gateway, _):
                await gateway.route(url, slots=4096)
                for count, tokens in PACED if pace else FLAT_OUT:
                    await gateway.open(number, target=count)
                    cost = await rollout(gateway.url, gateway.process.pid, number, count, tokens, stream_interval=interval)
                    number += 1
                    ideal = f" (ideal {count / pace:.0f})" if pace else ""
                    print(
                        f"pace {pace} interval {interval}, {count} samples of {tokens}: {cost.tokens / cost.wall_s:.0f} tokens/s{ideal}, "
                        f"{cost.wall_s:.2f} s, {cost.us:.1f} us a token, {cost.after / 2**20:.0f} MiB",
                        flush=True,
                    )


if __name__ == "__main__":
    uvloop.run(play())

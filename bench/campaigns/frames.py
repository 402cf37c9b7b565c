"""Hostile texts on every channel on which we read what somebody else has written: none of them raises what its caller does not expect.

    bin/check --long frames [TEXTS]        default: 1,000,000; a tenth as many go over real sockets

A text is a right message that is spoilt in up to three ways (tests/harness/hostile_frames.py), by a seed that is its case's name. Over sockets go
those of trainers (a channel each, in one loop), of operators (the control socket) and of HTTP clients (a gateway process, which must live on).
"""

import asyncio
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.campaigns.harness.campaign import run
from tests.harness import hostile_frames, hostile_sockets

A_CASE = 1000
SHARES = {"trainer": 10, "gateway": 10, "operator": 10, "http": 3}
"""So many texts for each of a channel whose texts are files."""
OVER_SOCKETS = 10
"""One text in so many."""


def case(name: str) -> dict[str, object]:
    how, channel, number = name.split(":")
    with tempfile.TemporaryDirectory(prefix="frames-", dir="/dev/shm") as folder:
        if how == "decode":
            read, understood = hostile_frames.play(channel, number, A_CASE, Path(folder))
        else:
            read, understood = asyncio.run(hostile_sockets.CHANNELS[channel](number, A_CASE, Path(folder)))
    return {"read": read, "understood": understood}


def main(texts: int) -> int:
    shares = {channel: SHARES.get(channel, 1) for channel in hostile_frames.CHANNELS}
    each = texts / A_CASE / sum(shares.values())
    names = [f"decode:{channel}:{number}" for channel, share in shares.items() for number in range(math.ceil(each * share))]
    sent = -(-texts // (OVER_SOCKETS * A_CASE * len(hostile_sockets.CHANNELS)))
    names += [f"send:{channel}:{number}" for number in range(sent) for channel in hostile_sockets.CHANNELS]
    results = run("frames", names, case)
    read, understood = Counter[str](), Counter[str]()
    for result in results:
        kind = str(result["case"]).rpartition(":")[0]
        read[kind] += int(str(result["read"]))
        understood[kind] += int(str(result["understood"]))
    for kind in read:
        print(f"{kind:20} {read[kind]:9,} read, {understood[kind]:9,} understood")
    print(f"{sum(read.values()):,} in all, 0 that raised what nobody expects")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1].replace(",", "")) if len(sys.argv) > 1 else 1_000_000))

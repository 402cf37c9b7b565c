"""Guardian and supervisor are killed, alone, together and one after the other, above daemons that have left everything behind: nothing is left.

    bin/check --long leftovers [TRIES] [jobs=N]         until so many of each kind (default 200) at any commit; goes on where it was
    bin/check --long leftovers --seed KIND:SEED         one of them again

What was counted stands in runs/campaigns/leftovers.jsonl, one line a try, with the commit. TERM ends it in order.
"""

import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.campaigns.harness.campaign import RESULTS, commit
from bench.campaigns.harness.leftover_tries import KINDS, play

RECORD = RESULTS / "leftovers.jsonl"


def one(kind: str, seed: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="leftovers-") as folder:
        return play(Path(folder), kind, seed)


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--seed"]:
        kind, _, seed = arguments[1].rpartition(":")
        print(json.dumps(one(kind, int(seed))))
        return 0
    numbers = [int(word) for word in arguments if word.isdigit()]
    jobs = next((int(word.removeprefix("jobs=")) for word in arguments if word.startswith("jobs=")), 2)
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []
    done = {(line["kind"], line["seed"]) for line in lines}
    todo = [(kind, seed) for seed in range(numbers[0] if numbers else 200) for kind in KINDS if (kind, seed) not in done]
    enough, lock, here = threading.Event(), threading.Lock(), commit()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())

    def work(case: tuple[str, int]) -> None:
        if enough.is_set():
            return
        began = time.monotonic()
        try:
            line = one(*case)
        except AssertionError as error:
            line = {"kind": case[0], "seed": case[1], "failed": str(error)}
        line |= {"commit": here, "seconds": round(time.monotonic() - began, 1)}
        with lock:
            lines.append(line)
            with RECORD.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, todo))
    failed = [line for line in lines if "failed" in line]
    counts = Counter(line["kind"] for line in lines if "failed" not in line)
    print(f"{dict(counts)} tries, nothing left; {len(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

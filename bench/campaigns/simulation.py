"""Seeds of the whole-system simulation with faults: the production scheduler against fakes that answer late, twice, never, or die.

    bin/check --long simulation [EVENTS] [--processes 2]     until this commit has so many events (default 5,000,000)
    bin/check --long simulation --seed BOX:SEED [--clean]    one of them again

It goes on where it was interrupted, with nice 10 and one process unless two are asked for. Every hundred worlds are written down
(runs/campaigns/simulation.jsonl), counted for this commit and for all of them together. A seed that fails is printed and kept in
tests/supervisor/simulate/seeds.txt.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator

from bench.campaigns.harness.campaign import CHECKOUT, RESULTS, commit
from supervisor.simulate.faults.simulation import Simulation
from tests.harness.boxes import BOXES, FAULTS
from tests.harness.wild import Wild

BATCH = 20
"""Seeds of one batch; each is played on every box, and as children that say anything."""
WILD = 500
FILE = RESULTS / "simulation.jsonl"


def play(box: str, seed: int, faulty: bool = True) -> int:
    """Raises when a promise is broken. Returns the number of events."""
    if box == "wild":
        Wild(seed).play(WILD)
        return WILD
    world = Simulation(BOXES[box](), seed, steps=3, faults=FAULTS if faulty else None)
    world.run()
    if left := world.incomplete():
        raise AssertionError("; ".join(left))
    return world.events


def batch(number: int) -> dict[str, object]:
    """One batch of seeds."""
    events = worlds = 0
    failed = []
    for seed in range(number * BATCH, (number + 1) * BATCH):
        for box in (*BOXES, "wild"):
            worlds += 1
            try:
                events += play(box, seed)
            except Exception as error:  # whatever the scheduler raises is a finding
                failed.append(f"{box}:{seed} {type(error).__name__}: {error}"[:500])
    return {"batch": number, "seeds": BATCH, "worlds": worlds, "events": events, "failed": failed}


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--seed"]:
        box, _, seed = arguments[1].partition(":")
        print(f"{play(box, int(seed), '--clean' not in arguments)} events, no violation")
        return 0
    processes = 1
    if "--processes" in arguments:
        place = arguments.index("--processes")
        processes = min(2, int(arguments[place + 1]))
        del arguments[place : place + 2]
    return campaign(int(arguments[0].replace(",", "")) if arguments else 5_000_000, processes)


def campaign(wanted: int, processes: int) -> int:
    os.nice(10)
    here = commit()
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    mine = [record for record in done if record["commit"] == here]
    began = time.monotonic()
    fresh = 0
    if sum(record["events"] for record in mine) < wanted:
        for record in played(next_batches({record["batch"] for record in done}), processes):
            record["commit"] = here
            with open(FILE, "a") as out:
                out.write(json.dumps(record) + "\n")
            keep(record["failed"])
            done.append(record)
            mine.append(record)
            fresh += record["events"]
            print(f"{told('this commit', mine)}; {fresh / (time.monotonic() - began):.0f} events/s", flush=True)
            if sum(record["events"] for record in mine) >= wanted:
                break
    print(f"simulation at {here}: {told('this commit', mine)}; {told('all commits', done)}")
    return 1 if any(record["failed"] for record in mine) else 0


def next_batches(done: set[int]) -> Iterator[int]:
    """Seeds that no commit has played yet, so that each campaign finds something new."""
    number = 0
    while True:
        if number not in done:
            yield number
        number += 1


def played(numbers: Iterator[int], processes: int) -> Iterator[dict[str, object]]:
    if processes == 1:
        yield from map(batch, numbers)
        return
    with multiprocessing.Pool(processes) as pool:  # not imap: it would draw from an endless iterator
        waiting = [pool.apply_async(batch, (next(numbers),)) for _ in range(processes)]
        while True:
            yield waiting.pop(0).get()
            waiting.append(pool.apply_async(batch, (next(numbers),)))


def keep(failed: list[str]) -> None:
    with open(CHECKOUT / "tests" / "supervisor" / "simulate" / "seeds.txt", "a") as file:
        for text in failed:
            print(f"  {text}", flush=True)
            file.write(text.split()[0] + "\n")


def told(what: str, records: list[dict[str, object]]) -> str:
    events, worlds, seeds = (sum(int(str(record[name])) for record in records) for name in ("events", "worlds", "seeds"))
    failed = sum(len(record["failed"]) for record in records)  # type: ignore[arg-type]
    return f"{what}: {events:,} events, {worlds:,} worlds of {seeds:,} seeds, {failed} failed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

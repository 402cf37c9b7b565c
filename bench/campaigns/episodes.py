"""Randomised faults in real processes: scripted engine groups under a real supervisor, hurt at random moments, several at a time.

    bin/check --long episodes [EPISODES] [slow] [jobs=N]    until so many in all (default 10,000); goes on where it was
    bin/check --long episodes --seed SHAPE:SEED [slow]      one run of them again

A run is one supervisor that lives through some 40 to 200 episodes; what its trainer gets is checked token by token. Each episode needs a
witness that the fault fired (that life failed, and the log gives a cause that this fault can have) and that recovery ran (the next life
serving or asleep). `slow` episodes hurt nobody: engines that are slow for less than the probes' budget must not be restarted.
What was counted stands in runs/campaigns, one line a run; `jobs` runs (default 2) go on beside each other. TERM ends it in order.
"""

import json
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.campaigns.harness.campaign import RESULTS
from bench.campaigns.harness.fault_episodes import ENOUGH, SHAPES, FaultEpisodes, Tally
from bench.campaigns.harness.slow_episodes import EPISODES, SlowEpisodes

RECORD = RESULTS / "episodes.jsonl"


def play(shape: str, seed: int, episodes: int | None = None, *, slow: bool = False) -> Tally:
    """One run in a folder of its own. Raises Broken (or AssertionError)."""
    with tempfile.TemporaryDirectory(prefix="episodes-") as folder:
        run = SlowEpisodes(Path(folder), shape, seed) if slow else FaultEpisodes(Path(folder), shape, seed)
        return run.play(episodes or (EPISODES[shape] if slow else SHAPES[shape].episodes))


class Campaign:
    """Runs until `wanted` episodes are on record."""

    def __init__(self, wanted: int, *, slow: bool) -> None:
        self.wanted, self.slow = wanted, slow
        self.record = RECORD.with_name("slow.jsonl") if slow else RECORD
        lines = [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.exists() else []
        self.done = sum(line["done"] for line in lines)
        self.seed = len(lines)
        self.failed = 0
        self._lock = threading.Lock()

    def work(self) -> None:
        while (seed := self._next()) is not None:
            shape = list(SHAPES)[seed % len(SHAPES)]
            try:
                tally = play(shape, seed, slow=self.slow)
            except AssertionError as error:
                tally = Tally(shape, seed)
                self._keep(tally, f"FAILED {shape}:{seed}: {error}")
            else:
                self._keep(tally, "")

    def _next(self) -> int | None:
        with self._lock:
            if self.done >= self.wanted or ENOUGH.is_set():
                return None
            self.seed += 1
            return self.seed - 1

    def _keep(self, tally: Tally, failure: str) -> None:
        with self._lock:
            self.done += tally.done
            self.failed += bool(failure)
            with self.record.open("a") as file:
                file.write(tally.line() + "\n")
            worst = max(tally.seconds, default=0.0)
            said = f"{tally.shape}:{tally.seed}: {tally.done} in {tally.wall:.0f} s, worst {worst:.1f} s, {tally.others} other failures"
            print(failure or f"{self.done:7,} episodes, {self.failed} runs failed; {said}", flush=True)


def main(arguments: Sequence[str]) -> int:
    slow = "slow" in arguments
    if arguments[:1] == ["--seed"]:
        shape, _, seed = arguments[1].partition(":")
        print(play(shape, int(seed), slow=slow).line())
        return 0
    numbers = [int(word.replace(",", "")) for word in arguments if word[0].isdigit()]
    jobs = next((int(word.removeprefix("jobs=")) for word in arguments if word.startswith("jobs=")), 2)
    RESULTS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: ENOUGH.set())
    campaign = Campaign(numbers[0] if numbers else 10_000, slow=slow)
    with ThreadPoolExecutor(jobs) as pool:
        for worker in [pool.submit(campaign.work) for _ in range(jobs)]:
            worker.result()
    return 1 if campaign.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

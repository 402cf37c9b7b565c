"""How near is near? What no policy can beat when samples start in index order, and what the luckiest of many orders of service reached.

    bin/bench hindsight [TRIES] [SCENARIO ...]

*In order*: the longest chain of one pipeline, alone on the box, samples in index order, engines on the GPUs it trains on woken before every
step: valid for every policy that starts samples in index order. *Hindsight*: our scheduler with the ages of rollouts shifted at random,
the best of TRIES runs: somebody who saw the end could have chosen it, nobody can choose it beforehand.
"""

import heapq
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean

import supervisor.scheduler.scheduler as scheduler
from supervisor.scheduler.planning.planner import Plan, View, plan
from supervisor.simulate.workloads.compare import run
from supervisor.simulate.workloads.scenario import PipelineLoad, Scenario, read

SCENARIOS = Path(__file__).resolve().parents[1] / "tests" / "data" / "scenarios.json"
SPREADS = (20.0, 60.0, 150.0)
"""Seconds by which ages are shifted (standard deviation)."""


def in_order(scenario: Scenario) -> float:
    """Seconds, beside `Scenario.lower_bound`."""
    return max(scenario.lower_bound, *(_chain(scenario, load) for load in scenario.pipelines))


def _chain(scenario: Scenario, load: PipelineLoad) -> float:
    home = set(load.train_gpus)
    now = load.arrival_s
    for step, samples in enumerate(load.trajectories):
        free = [scenario.wake_s if step == 0 or home & set(load.bundle(rank)) else 0.0 for rank in range(load.ranks)]
        places = sorted(at for at in free for _ in range(load.slots_per_rank))
        for seconds in samples:
            heapq.heapreplace(places, places[0] + seconds)
        now += max(places) + load.train_s
    return now


def hindsight(scenario: Scenario, tries: int) -> float:
    """The best makespan of so many orders of service."""
    best = float("inf")
    for number in range(tries):
        random = Random(f"{scenario.name}/{number}")
        spread = SPREADS[number % len(SPREADS)]
        shifts: dict[tuple[str, float], float] = {}

        def shifted(view: View, random: Random = random, spread: float = spread, shifts: dict[tuple[str, float], float] = shifts) -> Plan:
            shares = []
            for share in view.shares:
                shift = shifts.setdefault((share.pipeline, share.opened), random.gauss(0.0, spread))
                shares.append(replace(share, opened=share.opened + shift))
            return plan(View(view.gpus, tuple(shares), view.targets, view.soon))

        scheduler.plan = shifted  # type: ignore[attr-defined]
        try:
            best = min(best, run(scenario, "oldest-first", False).makespan)
        finally:
            scheduler.plan = plan  # type: ignore[attr-defined]
    return best


def main(tries: int, names: list[str]) -> int:
    print(f"{'scenario':18} {'in order':>9} {'hindsight':>10} {'ours':>7}   (over the reference's bound)")
    rows = []
    for scenario in read(SCENARIOS.read_bytes()):
        if names and scenario.name not in names:
            continue
        bound = scenario.lower_bound
        row = (in_order(scenario) / bound, hindsight(scenario, tries) / bound, run(scenario, "oldest-first", False).makespan / bound)
        rows.append(row)
        print(f"{scenario.name:18} {row[0]:9.3f} {row[1]:10.3f} {row[2]:7.3f}", flush=True)
    print(f"{'mean':18} {fmean(r[0] for r in rows):9.3f} {fmean(r[1] for r in rows):10.3f} {fmean(r[2] for r in rows):7.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 12, sys.argv[2:]))

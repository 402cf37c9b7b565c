"""Other workloads of the make of data/scenarios.json, by seed: how we do on what nobody has looked at, beside the incumbent.

    bin/bench workloads                     seeds 1000 to 1004, without and with hints
    bin/bench workloads 1000 1020 --worst   and name what missed its mark

Lengths are log-normal (median 20 s, sigma 0.8, cut off at 120 s), hints are off by a log-normal factor of sigma 0.5.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from random import Random
from statistics import fmean

from supervisor.simulate.workloads.compare import Figures, figures
from supervisor.simulate.workloads.scenario import PipelineLoad, Scenario

CUT_S = 120.0
HINT_SIGMA = 0.5
LOW, HIGH = (0, 1, 2, 3), (4, 5, 6, 7)


@dataclass(frozen=True)
class Make:
    """One pipeline of a workload, but for the lengths of its samples."""

    train: tuple[int, ...]
    infer: int | tuple[int, ...] = 8
    tp: int = 1
    samples: int = 128
    train_s: float = 30.0
    steps: int = 5
    arrival_s: float = 0.0
    median_s: float = 20.0
    sigma: float = 0.8


def _halves(count: int, **more: float) -> tuple[Make, ...]:
    return tuple(Make((LOW, HIGH)[number % 2], **more) for number in range(count))  # type: ignore[arg-type]


def _quarter(number: int, tp: int) -> Make:
    first = number * 4 % 16
    return Make(tuple(range(first, first + 4)), 16, tp, steps=4)


MAKES: dict[str, tuple[int, float, float, tuple[Make, ...]]] = {
    "solo": (8, 0.5, 2.0, _halves(1)),
    "two-halves": (8, 0.5, 2.0, _halves(2)),
    "two-slow-wake": (8, 1.0, 10.0, _halves(2)),
    "three": (8, 0.5, 2.0, _halves(3)),
    "four": (8, 0.5, 2.0, _halves(4)),
    "six-slow-wake": (8, 1.0, 10.0, _halves(6)),
    "eight": (8, 0.5, 2.0, _halves(8)),
    "two-full-train": (8, 0.5, 2.0, (Make(LOW + HIGH), Make(LOW + HIGH))),
    "two-tp2": (8, 0.5, 2.0, _halves(2, tp=2, samples=64)),
    "mixed-tp": (8, 0.5, 2.0, (Make(LOW), Make(HIGH, tp=2, samples=64), Make(LOW, tp=4, samples=32, train_s=40.0, steps=4))),
    "seed-4gpu-2ppl": (
        4, 0.5, 2.0, tuple(Make(train, 4, samples=64, train_s=20.0, median_s=15.0) for train in ((0, 1), (2, 3))),
    ),
    "early-finisher": (8, 0.5, 2.0, (Make(LOW, steps=1), Make(HIGH, steps=6))),
    "long-tail": (8, 0.5, 2.0, _halves(3, sigma=1.2)),
    "arrivals": (8, 0.5, 2.0, tuple(Make((LOW, HIGH)[n % 2], arrival_s=60.0 * n) for n in range(4))),
    "partial-overlap": (
        8, 0.5, 2.0, (Make((0, 1), tuple(range(6)), samples=96, train_s=25.0), Make((6, 7), tuple(range(2, 8)), samples=96, train_s=25.0)),
    ),
    "sixteen-gpus-six": (16, 0.5, 2.0, tuple(_quarter(n, tp) for n, tp in enumerate((1, 1, 2, 1, 1, 2)))),
}  # fmt: skip


def workloads(seed: int) -> Iterator[Scenario]:
    for name, (gpus, sleep_s, wake_s, makes) in MAKES.items():
        random = Random(f"{seed}/{name}")
        yield Scenario(name, gpus, sleep_s, wake_s, tuple(_load(random, f"p{n}", make) for n, make in enumerate(makes)))


def _load(random: Random, id: str, make: Make) -> PipelineLoad:
    def length() -> float:
        return round(min(CUT_S, exp(random.gauss(log(make.median_s), make.sigma))), 2)

    work = tuple(tuple(length() for _ in range(make.samples)) for _ in range(make.steps))
    hints = tuple(tuple(round(seconds * exp(random.gauss(0.0, HINT_SIGMA)), 2) for seconds in step) for step in work)
    infer = tuple(range(make.infer)) if isinstance(make.infer, int) else make.infer
    return PipelineLoad(id, make.train, infer, make.tp, 8, make.train_s, work, make.arrival_s, hints)


@dataclass(frozen=True)
class Pair:
    seed: int
    ours: Figures
    theirs: Figures

    @property
    def faults(self) -> list[str]:
        """What the issue says must not be."""
        slower = self.ours.outcome.makespan / self.theirs.outcome.makespan
        found = [f"{slower - 1:.1%} slower than the incumbent"] if slower > 1.03 else []
        return found + ([f"Jain {self.ours.jain:.4f}"] if self.ours.jain < 0.99 else [])


def measure(seeds: range, hints: bool, policy: str) -> list[Pair]:
    return [
        Pair(seed, figures(scenario, policy, hints), figures(scenario, "incumbent", False))
        for seed in seeds
        for scenario in workloads(seed)
    ]


def show(found: list[Pair], hints: bool, worst: bool) -> None:
    write = sys.stdout.write
    seeds = sorted({pair.seed for pair in found})
    write(f"{'with' if hints else 'without'} hints, seeds {seeds[0]} to {seeds[-1]}: ratio to the bound, mean (worst), resizes\n")
    write(f"{'workload':18} {'ours':>22} {'incumbent, index order':>24} {'ours / incumbent':>18}\n")
    for name in MAKES:
        pairs = [pair for pair in found if pair.ours.name == name]
        cells = []
        for side in ([p.ours for p in pairs], [p.theirs for p in pairs]):
            ratios = [f.ratio for f in side]
            cells.append(f"{fmean(ratios):.3f} ({max(ratios):.3f}) {fmean(f.outcome.resizes for f in side):5.0f}")
        ratio = [p.ours.outcome.makespan / p.theirs.outcome.makespan for p in pairs]
        write(f"{name:18} {cells[0]:>22} {cells[1]:>24} {fmean(ratio):9.3f} ({max(ratio):.3f})\n")
    for seed in seeds:
        mine = [pair.ours for pair in found if pair.seed == seed]
        theirs = [pair.theirs.ratio for pair in found if pair.seed == seed]
        ratios = [f.ratio for f in mine]
        write(
            f"seed {seed}: mean {fmean(ratios):.3f} worst {max(ratios):.3f} resizes {fmean(f.outcome.resizes for f in mine):.0f}"
            f" | incumbent {fmean(theirs):.3f} {max(theirs):.3f}\n"
        )
    faults = [(pair, fault) for pair in found for fault in pair.faults]
    write(f"mean {fmean(p.ours.ratio for p in found):.4f}, resizes {fmean(p.ours.outcome.resizes for p in found):.0f}, ")
    write(f"{len(faults)} of {len(found)} runs miss a mark\n")
    for pair, fault in faults if worst else ():
        write(f"  {pair.seed} {pair.ours.name}: {fault} {[round(s, 2) for s in pair.ours.slowdowns]}\n")
    sys.stdout.flush()


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("first", type=int, nargs="?", default=1000)
    parser.add_argument("end", type=int, nargs="?", default=1005)
    parser.add_argument("--policy", default="oldest-first")
    parser.add_argument("--worst", action="store_true", help="name each run that missed a mark")
    parser.add_argument("--hints", choices=("no", "yes", "both"), default="both")
    asked = parser.parse_args()
    for hints in {"no": (False,), "yes": (True,), "both": (False, True)}[asked.hints]:
        show(measure(range(asked.first, asked.end), hints, asked.policy), hints, asked.worst)
    return 0


if __name__ == "__main__":
    sys.exit(main())

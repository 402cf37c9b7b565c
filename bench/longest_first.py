"""What the order of dispatch is worth, and what it costs: `bin/bench longest_first [--seeds 5]`.

The gateway's own dispatch core in virtual time: every engine makes one token a second for each sample that runs there. A rollout is
64 prompts of 8 samples each on 4 engines of 16 slots; lengths are log-normal between prompts (0.7) and within a group (0.4). Printed is
the time of a rollout over its lower bound (all tokens over all slots, or the longest sample), for the order by index, for what the
gateway learns by itself (first rollout: from finished mates only; later ones: the same prompts again), for a client's guesses
(error 0.5), and for a client that knows. Then: the time of one dispatch with 200 and with 10,000 samples waiting.
"""

import argparse
import heapq
import statistics
import time
from array import array
from math import exp
from random import Random

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.events import Ask, Ended, Event, Finished, Start, Tokens
from engines.gateway.core.ordering.forecast import COST_S, Forecast
from engines.gateway.core.records import Estimate
from engines.gateway.core.samples import TOKENS, Request
from trainers.protocol import gateway_messages

ENGINES, SLOTS, PROMPTS, GROUP, LIMIT, ROLLOUTS = 4, 16, 64, 8, 8192, 4
BETWEEN, WITHIN, GUESSES = 0.7, 0.4, 0.5
ORDERS = ("index", "learned", "hints", "known")


class ByIndex(Forecast):
    """Expects nothing of anybody."""

    def estimate(self, sample: object) -> Estimate:
        return Estimate(0.0, own=True)


class Box:
    """One gateway whose engines make one token a second. `lengths` of the samples of a rollout, in the order of their indexes."""

    def __init__(self, order: str) -> None:
        self.core = Dispatch()
        if order == "index":
            self.core._forecast = ByIndex()
            self.core._waiting._forecast = self.core._forecast
            self.core._waiting._queue._estimate = self.core._forecast.estimate
        self.now, self.orders, self.askers = 0.0, 0, 0
        self.left: dict[int, int] = {}
        self.running: list[tuple[float, int, int]] = []
        self.asked: dict[tuple[int, ...], list[int]] = {}
        for rank in range(ENGINES):
            self.order(gateway_messages.Route, engine=rank, incarnation=1, url="u", key="k", slots=SLOTS, version=0)

    def order(self, kind: type, **fields: object) -> None:
        self.orders += 1
        self.tell(kind(order=self.orders, **fields))

    def tell(self, event: Event) -> None:
        for effect in self.core.handle(event, self.now):
            if isinstance(effect, Start):
                length = self.left[effect.body["sampling_params"]["sampling_seed"]]
                heapq.heappush(self.running, (self.now + length, effect.attempt, length))

    def rollout(self, number: int, lengths: list[int], hints: list[int | None]) -> float:
        """Seconds from its first request to its last answer."""
        begun = self.now
        self.order(gateway_messages.OpenRollout, rollout=number, target=len(lengths))
        for rank in range(ENGINES):
            self.order(gateway_messages.Drain, engine=rank, incarnation=1)
        for index, (length, hint) in enumerate(zip(lengths, hints, strict=True)):
            self.left[index] = length
            request = Request(array(TOKENS, [index // GROUP]), {"sampling_seed": index}, LIMIT, expected_tokens=hint, fingerprint=index)
            self.askers += 1
            self.tell(Ask(asker=self.askers, rollout=number, token=str(index), request=request))
        for rank in range(ENGINES):
            self.order(gateway_messages.Route, engine=rank, incarnation=1, url="u", key="k", slots=SLOTS, version=0)
        while self.running:
            self.now, attempt, length = heapq.heappop(self.running)
            self.tell(Tokens(attempt, [5] * length, [-0.5] * length))
            self.tell(Ended(attempt, Finished({"type": "stop"})))
        self.order(gateway_messages.CloseRollout, rollout=number)
        return self.now - begun


def ratios(order: str, seed: int) -> list[float]:
    """Time over the lower bound, rollout by rollout."""
    random = Random(seed)
    medians = [400 * exp(random.gauss(0.0, BETWEEN)) for _ in range(PROMPTS)]
    box, found = Box(order), []
    for number in range(ROLLOUTS):
        lengths = [min(LIMIT, max(1, int(m * exp(random.gauss(0.0, WITHIN))))) for m in medians for _ in range(GROUP)]
        guesses = [max(1, int(length * exp(random.gauss(0.0, GUESSES)))) for length in lengths]
        hints: list[int | None] = {"hints": guesses, "known": lengths}.get(order, [None] * len(lengths))  # type: ignore[assignment]
        bound = max(*lengths, sum(lengths) / (ENGINES * SLOTS))
        found.append(box.rollout(number, lengths, hints) / bound)
    return found


def cost(waiting: int) -> tuple[float, float, float]:
    """Microseconds of CPU with so many waiting: to take in one sample, to end one and start the next, to sum up the work for a report."""
    box, random = Box("learned"), Random(1)
    box.order(gateway_messages.OpenRollout, rollout=0, target=waiting)
    begun = time.process_time()
    for index in range(waiting):
        box.left[index] = 1 + int(random.expovariate(1 / 40))
        request = Request(array(TOKENS, [index // GROUP]), {"sampling_seed": index}, LIMIT, fingerprint=index)
        box.tell(Ask(asker=index, rollout=0, token=str(index), request=request))
    asked = time.process_time()
    for _ in range(min(2000, waiting)):
        box.now, attempt, length = heapq.heappop(box.running)
        box.tell(Tokens(attempt, [5] * length, [-0.5] * length))
        box.tell(Ended(attempt, Finished({"type": "stop"})))
    ended = time.process_time()
    box.core.progress()
    summed = time.process_time()
    return (asked - begun) / waiting * 1e6, (ended - asked) / min(2000, waiting) * 1e6, (summed - ended) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    print(f"time of a rollout over its lower bound, mean of {len(seeds)} seeds")
    print(f"{'order':10}{'first':>8}{'later':>8}{'worst':>8}")
    for order in ORDERS:
        runs = [ratios(order, seed) for seed in seeds]
        later = [ratio for run in runs for ratio in run[1:]]
        worst = max(max(run) for run in runs)
        print(f"{order:10}{statistics.mean(run[0] for run in runs):8.3f}{statistics.mean(later):8.3f}{worst:8.3f}")
    for waiting in (200, 10_000):
        taken, turned, summed = cost(waiting)
        print(f"{waiting:6} waiting: {taken:4.0f} us to take one in, {turned:4.0f} us from one's end to the next one's start, ", end="")
        print(f"{summed:6.0f} us for a sum of the work (at most every {waiting * COST_S * 1e3:.0f} ms)")


if __name__ == "__main__":
    main()

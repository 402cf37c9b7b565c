"""This module forecasts how many tokens the samples of this gateway need yet: one by one, and all of a rollout together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from engines.gateway.core.ordering.lengths import Lengths
from engines.gateway.core.records import Estimate, Rollout, Sample, Work
from engines.gateway.core.samples import Answer, Outcome, State

COST_S: Final = 1e-4
"""The sum over a rollout's samples is made again after so many seconds for each of them: it takes less than 1 % of the time then."""
LARGEST_GROUP: Final = 256
"""A larger group is no group but a rollout of one prompt: to move all of it changes nothing."""
KNOWN_SHARE: Final = 0.5
"""So many of a rollout's unfinished samples must have a guess of their own before its work is reported. With less, counts say more."""


@dataclass(slots=True)
class _Group:
    """The samples of one prompt in one rollout that have not ended; `ended` counts those that have."""

    mates: dict[Sample, None] = field(default_factory=dict)
    ended: int = 0


class Forecast:
    """Samples join when they are asked for and end once. Everything else follows from what came of them."""

    def __init__(self) -> None:
        self.lengths = Lengths()
        self._groups: dict[tuple[int, int], _Group] = {}

    def estimate(self, sample: Sample) -> Estimate:
        """Return how many tokens it is expected to need yet, beyond those that it has."""
        guess = self.lengths.guess(sample.prompt, sample.request)
        return Estimate(guess.remaining(len(sample.ids), sample.request.limit), guess.own)

    def joined(self, sample: Sample) -> None:
        """Record that the sample has been asked for."""
        self._groups.setdefault((sample.rollout.serial, sample.prompt), _Group()).mates[sample] = None

    def ended(self, sample: Sample, outcome: Outcome | None) -> Iterable[Sample]:
        """Record the sample's end (None: nobody wants it). Returns the samples of which something else is expected now.

        That is worked out when 1, 2, 4, 8 … mates have ended: a group of any size costs little.
        """
        key = (sample.rollout.serial, sample.prompt)
        group = self._groups.get(key)
        if group is None or sample not in group.mates:
            return ()
        del group.mates[sample]
        if not group.mates:
            del self._groups[key]
        if not isinstance(outcome, Answer) or not self._learn(sample, outcome):
            return ()
        group.ended += 1
        return tuple(group.mates) if group.ended.bit_count() == 1 and len(group.mates) <= LARGEST_GROUP else ()

    def _learn(self, sample: Sample, answer: Answer) -> bool:
        """Note its length. One that was cut short counts with the length that it was expected to reach, else only short ones would count."""
        made = len(answer.ids)
        if answer.finish_reason.get("type") in ("stop", "length"):
            self.lengths.note(sample.prompt, made)
        elif made:
            self.lengths.note(sample.prompt, made + self.estimate(sample).tokens)
        else:
            return False
        return True

    def work(self, rollout: Rollout, now: float) -> Work:
        """Return what its unfinished samples are expected to need yet, no older than `COST_S` a sample."""
        if rollout.idle:
            return Work()
        if rollout.work is None or now >= rollout.work_at + COST_S * len(rollout.samples):
            rollout.work, rollout.work_at = self._work(rollout), now
        return rollout.work

    def _work(self, rollout: Rollout) -> Work:
        expected = longest = 0.0
        known = count = 0
        for sample in rollout.samples.values():
            if sample.state is State.DONE:
                continue
            queued = sample.place is not None and sample.estimate is not None
            estimate = sample.estimate if queued and sample.estimate is not None else self.estimate(sample)
            expected += estimate.tokens
            longest = max(longest, estimate.tokens)
            known += estimate.own
            count += 1
        return Work(round(expected, 1), round(longest, 1)) if known >= KNOWN_SHARE * count else Work()

"""What is expected of the samples of this gateway: of each how much is to come yet, and of a rollout in all. PURE."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from engines.gateway.core.ordering.lengths import Lengths
from engines.gateway.core.records import Rollout, Sample
from engines.gateway.core.samples import Answer, Outcome, State

COST_S: Final = 1e-4
"""The sum over a rollout's samples is made again after so many seconds for each of them: it takes less than 1 % of the time then."""
MOVED: Final = 256
"""A larger group is no group but a rollout of one prompt: to move all of it changes nothing."""
KNOWN: Final = 0.5
"""Of a rollout's unfinished samples so many must have a guess of their own before the rollout's work is reported. With less, counts say more."""


@dataclass(slots=True)
class _Group:
    """Samples of one prompt in one rollout that have not ended; `ended` counts those that have."""

    mates: dict[Sample, None] = field(default_factory=dict)
    ended: int = 0


class Outlook:
    """Samples join when they are asked for and end once. Everything else follows from what came of them."""

    def __init__(self) -> None:
        self.lengths = Lengths()
        self._groups: dict[tuple[int, int], _Group] = {}

    def left(self, sample: Sample) -> float:
        """Tokens that it is expected to need yet."""
        guess = self.lengths.guess(sample.prompt, sample.request)
        sample.known = guess.own
        return guess.left(len(sample.ids), sample.request.limit)

    def joined(self, sample: Sample) -> None:
        self._groups.setdefault((sample.rollout.serial, sample.prompt), _Group()).mates[sample] = None

    def ended(self, sample: Sample, outcome: Outcome | None) -> Iterable[Sample]:
        """It has come to its end (None: it never was). Returns the samples of which something else is expected now.

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
        return tuple(group.mates) if group.ended.bit_count() == 1 and len(group.mates) <= MOVED else ()

    def _learn(self, sample: Sample, answer: Answer) -> bool:
        """Note its length; of one that was cut short the length that it was expected to reach, else only short ones would count."""
        made = len(answer.ids)
        if answer.finish_reason.get("type") in ("stop", "length"):
            self.lengths.note(sample.prompt, made)
        elif made:
            self.lengths.note(sample.prompt, made + self.left(sample))
        else:
            return False
        return True

    def work(self, rollout: Rollout, now: float) -> tuple[float, float]:
        """Tokens that its unfinished samples are expected to need yet: of all together, and of the longest; (0, 0) when too little is known."""
        if rollout.idle:
            return (0.0, 0.0)
        if rollout.work is None or now >= rollout.work_at + COST_S * len(rollout.samples):
            rollout.work, rollout.work_at = self._work(rollout), now
        return rollout.work

    def _work(self, rollout: Rollout) -> tuple[float, float]:
        expected = longest = 0.0
        known = count = 0
        for sample in rollout.samples.values():
            if sample.state is State.DONE:
                continue
            left = self.left(sample) if sample.place is None else -sample.place[2]  # in the queue: it stands there by what is expected
            expected += left
            longest = max(longest, left)
            known += sample.known
            count += 1
        return (round(expected, 1), round(longest, 1)) if known >= KNOWN * count else (0.0, 0.0)

"""How long samples turn out to be, by prompt and in all: what a guess about the next one is made of. PURE.

Lengths are taken as log-normal: what is kept are means of logarithms. A prompt's own mean leans towards recent samples (the policy
changes under training) and, while there are few of them, towards the mean of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

from engines.gateway.core.ordering.expectations import SPREAD, expected_left
from engines.gateway.core.samples import Request

MAX_PROMPTS: Final = 1 << 16
"""Prompts that are remembered (some 250 bytes each); the one that was seen longest ago goes first."""
_PROMPT_MEMORY: Final = 8
_OVERALL_MEMORY: Final = 256
_SHRINK: Final = 0.5
"""The mean of all counts as much as so many samples of the prompt itself."""
_WIDEST: Final = 1.5
_EARLY: Final = (1, 8, 64)
"""Samples ever seen after which the prior is taken anew, beside each opening of a rollout: early ones move it most."""
UNHEARD: Final = 1024.0
"""Tokens where nothing is known and the request names no limit."""


@dataclass(slots=True)
class _Seen:
    """Mean and variance of log(length) over the last samples, older ones fading. `guess`: what follows, as of prior `epoch`."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    guess: "Guess | None" = None
    epoch: int = -1

    def add(self, value: float, memory: int) -> None:
        self.guess = None
        self.count += 1
        weight = 1.0 / min(self.count, memory)
        off = value - self.mean
        self.mean += weight * off
        self.variance = (1.0 - weight) * (self.variance + weight * off * off)


@dataclass(frozen=True, slots=True)
class Guess:
    """Median and spread of a sample's whole length in tokens. `own`: something is known of this very sample or its prompt."""

    tokens: float
    spread: float = SPREAD
    own: bool = True

    def left(self, age: int, limit: int | None) -> float:
        """Tokens that a sample is expected to need yet after `age` of them; never more than its limit allows."""
        left = max(0.0, self.tokens - age) if self.spread == 0.0 else expected_left(self.tokens, age, self.spread)
        return left if limit is None else min(left, float(max(0, limit - age)))


class Lengths:
    """`epoch` changes when guesses about samples of unknown prompts have changed: rarely, so that what is ordered by them stays so."""

    def __init__(self, room: int = MAX_PROMPTS) -> None:
        self._room = room
        self._prompts: dict[int, _Seen] = {}
        self._all = _Seen()
        self._prior: Guess | None = None
        self.epoch = 0

    def note(self, prompt: int, tokens: float) -> None:
        """A sample of this prompt has come out so long."""
        value = log(max(tokens, 1.0))
        seen = self._prompts.pop(prompt, None) or _Seen()
        seen.add(value, _PROMPT_MEMORY)
        self._prompts[prompt] = seen  # now the newest
        if len(self._prompts) > self._room:
            del self._prompts[next(iter(self._prompts))]
        self._all.add(value, _OVERALL_MEMORY)
        if self._all.count in _EARLY:
            self.settle()

    def settle(self) -> None:
        """Take the mean of all that has been seen as the prior from now on."""
        if self._all.count:
            spread = min(max(sqrt(self._all.variance), SPREAD), _WIDEST)
            prior = Guess(exp(self._all.mean), spread, own=False)
            if prior != self._prior:
                self._prior = prior
                self.epoch += 1

    def guess(self, prompt: int, request: Request) -> Guess:
        """What the client says, else what must be, else what samples of this prompt were like, else what all were like, else the limit."""
        if request.expected_tokens is not None:
            return Guess(float(request.expected_tokens))
        if request.limit is not None and request.params.get("ignore_eos") and not request.stops and not request.stop_ids:
            return Guess(float(request.limit), 0.0)
        if (seen := self._prompts.get(prompt)) is not None:
            if seen.guess is None or seen.epoch != self.epoch:
                seen.guess, seen.epoch = self._of_prompt(seen), self.epoch
            return seen.guess
        if self._prior is not None:
            return self._prior
        return Guess(UNHEARD if request.limit is None else request.limit / 2, own=False)

    def _of_prompt(self, seen: _Seen) -> Guess:
        assert self._prior is not None, "the first sample that is noted makes a prior"
        return Guess(exp((_SHRINK * log(self._prior.tokens) + seen.count * seen.mean) / (_SHRINK + seen.count)))

    def __iter__(self) -> Iterator[int]:
        """The prompts that are remembered, oldest first."""
        return iter(self._prompts)

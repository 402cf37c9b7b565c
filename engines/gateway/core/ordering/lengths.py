"""This module guesses how long samples turn out to be, from what the client says, the limit, and samples that have ended before.

Lengths (tokens, or seconds where a simulation counts seconds) of samples of one task are close to log-normal: a guess is the median of
that distribution, and its spread says how good guesses have been. A sample that has outlived its guess is expected to be long:
expectations are conditioned on what has been generated already. What is kept are means of logarithms. A prompt's own mean leans
towards recent samples (the policy changes under training) and, while there are few of them, towards the mean of all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import erfc, exp, log, sqrt
from typing import Final

from engines.gateway.core.samples import Request

SPREAD: Final = 0.5
"""Standard deviation of log(length / guess), when nothing better is known."""
MAX_PROMPTS: Final = 1 << 16
"""This many prompts are remembered (some 250 bytes each); the one that was seen longest ago is dropped first."""
_PROMPT_MEMORY: Final = 8
_OVERALL_MEMORY: Final = 256
_SHRINK: Final = 0.5
"""The mean of all counts as much as so many samples of the prompt itself."""
_WIDEST: Final = 1.5
_EARLY: Final = (1, 8, 64)
"""Samples ever seen after which the prior is taken anew, beside each opening of a rollout: early ones move it most."""
UNKNOWN_LENGTH: Final = 1024.0
"""Tokens where nothing is known and the request names no limit."""


def expected_remaining(guess: float, age: float, spread: float = SPREAD) -> float:
    """Return the mean of what remains of a sample guessed at `guess` that has run for `age` (same unit) and has not ended yet."""
    if guess <= 0.0:
        return 0.0
    mean = guess * exp(spread * spread / 2)
    if age <= 0.0:
        return mean
    z = log(age / guess) / spread
    survival = _above(z)
    if survival < 1e-9:  # far beyond its guess: the tail of a log-normal, E[X - a | X > a] ~ a * spread / z
        return age * spread / z
    return mean * _above(z - spread) / survival - age


def _above(z: float) -> float:
    """Return P(Z > z) of a standard normal."""
    return 0.5 * erfc(z / sqrt(2.0))


@dataclass(slots=True)
class _Seen:
    """The mean and variance of log(length) over the last samples, older ones fading. `guess` follows from them and from prior `epoch`."""

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
    """The median and the spread of a sample's full length in tokens. `own`: something is known of this very sample or its prompt."""

    tokens: float
    spread: float = SPREAD
    own: bool = True

    def remaining(self, age: int, limit: int | None) -> float:
        """Return the tokens that a sample is expected to need yet after `age` of them; never more than its limit allows."""
        tokens = max(0.0, self.tokens - age) if self.spread == 0.0 else expected_remaining(self.tokens, age, self.spread)
        return tokens if limit is None else min(tokens, float(max(0, limit - age)))


class Lengths:
    """A bounded memory of the lengths of samples by prompt.

    `epoch` changes when guesses about samples of unknown prompts have changed: rarely, so that what is ordered by them stays so.
    """

    def __init__(self, room: int = MAX_PROMPTS) -> None:
        self._room = room
        self._prompts: dict[int, _Seen] = {}
        self._all = _Seen()
        self._prior: Guess | None = None
        self.epoch = 0

    def note(self, prompt: int, tokens: float) -> None:
        """Record that a sample of this prompt has come out so long."""
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
        """Return what the client says, else what must be, else what samples of this prompt were like, else what all were like, else the limit."""
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
        return Guess(UNKNOWN_LENGTH if request.limit is None else request.limit / 2, own=False)

    def _of_prompt(self, seen: _Seen) -> Guess:
        assert self._prior is not None, "the first sample that is noted makes a prior"
        return Guess(exp((_SHRINK * log(self._prior.tokens) + seen.count * seen.mean) / (_SHRINK + seen.count)))

    def __iter__(self) -> Iterator[int]:
        """Yield the prompts that are remembered, oldest first."""
        return iter(self._prompts)

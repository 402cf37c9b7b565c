"""How long a sample is expected to run yet, from what is free to know. PURE.

Lengths (tokens, or seconds where a simulation counts seconds) of samples of one task are close to log-normal: a guess is the
median of that distribution, and its spread says how good guesses have been. A sample that has outlived its guess is expected
to be long: expectations are conditioned on what has been generated already.
"""

from math import erfc, exp, log, sqrt

SPREAD = 0.5
"""Standard deviation of log(length / guess), when nothing better is known."""


def expected_left(guess: float, age: float, spread: float = SPREAD) -> float:
    """Mean of what is left of a sample guessed at `guess` that has run for `age` (same unit), given that it has not ended yet."""
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
    """P(Z > z) of a standard normal."""
    return 0.5 * erfc(z / sqrt(2.0))

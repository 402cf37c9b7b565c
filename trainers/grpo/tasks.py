"""These are small tasks whose reward a program verifies. No torch here: verifiers import this module.

- `parity`: "e:" / "o:" ask for eight characters; the reward is the share that are even / odd digits.
- `class`: "d:" / "a:" ask for eight characters; the reward is the share that are digits / letters.
"""

import random
from collections.abc import Mapping
from typing import Final

LENGTH: Final = 8
"""An answer has so many characters (one token each)."""
TASKS: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "parity": {"e:": frozenset("02468"), "o:": frozenset("13579")},
    "class": {"d:": frozenset("0123456789"), "a:": frozenset("abcdefghijklmnopqrstuvwxyz")},
}
"""task -> prompt -> characters that count."""


def prompts(task: str, seed: int, rollout: int, count: int) -> list[str]:
    """Returns `count` prompts of one rollout, each kind equally often (as far as it divides), in an order that (seed, rollout) alone decides."""
    kinds = list(TASKS[task])
    chosen = [kinds[index % len(kinds)] for index in range(count)]
    random.Random(f"{task}:{seed}:{rollout}").shuffle(chosen)  # a string is hashed the same way on every machine
    return chosen


def reward(task: str, prompt: str, text: str) -> float:
    """Returns the reward of an answer, 0 to 1 in steps of 1/8. Raises KeyError for a task or prompt that does not exist."""
    good = TASKS[task][prompt]
    return sum(character in good for character in text[:LENGTH]) / LENGTH

"""A slice of the campaign in bench/long/episodes.py: random faults in random phases, several at a time."""

import sys

import pytest
from supervised import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "bench" / "long"))
import episodes


@pytest.mark.parametrize("shape", ["single", "pairs"])
def test_a_slice_of_random_faults(shape: str) -> None:
    tally = episodes.play(shape, seed=1_000_000, episodes=5)
    assert tally.done == 5
    assert tally.skipped <= 4


def test_a_slice_of_slow_but_alive() -> None:
    assert episodes.play("pairs", seed=1_000_000, episodes=5, slow=True).done == 5

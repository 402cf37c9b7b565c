"""No child, however it behaves, makes the scheduler break one of its invariants, or raise at all."""

import pytest

from tests.harness.wild import Wild


@pytest.mark.parametrize("seed", range(40))
def test_whatever_children_say(seed: int) -> None:
    Wild(seed).play(500)

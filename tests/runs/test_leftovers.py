"""A slice of the campaign `leftovers`: whoever of guardian and supervisor is killed, in whatever order, nothing of the run is left."""

from pathlib import Path

import pytest

from bench.campaigns.harness.leftover_tries import KINDS, play


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(1000, 1002))
def test_nothing_is_left(tmp_path: Path, kind: str, seed: int) -> None:
    figures = play(tmp_path, kind, seed)
    assert isinstance(figures["of_run"], int)
    assert figures["of_run"] >= 7, "guards nothing without daemons"
    if kind == "both":
        assert figures["left_for_the_next_start"], "the sweep had something to do"

"""Every kind of fault, once, on groups of both shapes with 1, 2, 4 and 8 members or GPUs; a slice of the campaign in bench/long/episodes.py.

Each run checks what the campaign checks: witnesses, weights, samples, memory where it was granted, and that nothing is left behind.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import Stage, beside, stage_of
from supervised import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "bench" / "long"))
import episodes
from _player import FAULTS, SHAPES, WIDE, Hurt


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    def play(case: Callable[..., None], parameters: dict[str, Any], folder: Path) -> None:
        case(folder, **parameters)

    with stage_of(request, play, tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.mark.parametrize("shape", [*SHAPES, *WIDE])
@beside
def test_every_fault_in_every_shape(folder: Path, shape: str) -> None:
    tally = Hurt(folder, shape, seed=1_000_000, deck=list(FAULTS)).play(len(FAULTS))
    assert {name.partition(" while ")[0] for name in tally.matrix} == set(FAULTS)


@beside
def test_a_slice_of_slow_but_alive(folder: Path) -> None:
    assert episodes.play("pairs", seed=1_000_000, episodes=10, slow=True).done == 10

"""Every kind of fault, once, on groups of both shapes with 1, 2, 4 and 8 members or GPUs; a slice of the campaign in bench/campaigns/episodes.py.

Each run checks what the campaign checks: witnesses, weights, samples, memory where it was granted, and that nothing is left behind.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.campaigns import episodes
from bench.campaigns.harness.fault_episodes import FAULTS, SHAPES, WIDE, FaultEpisodes
from tests.harness.concurrent_cases import Stage, beside, stage_of


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    def play(case: Callable[..., None], parameters: dict[str, Any], folder: Path) -> None:
        case(folder, **parameters)

    with stage_of(request, play, tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.mark.parametrize("shape", [*SHAPES, *WIDE])
@beside
def test_every_fault_in_every_shape(folder: Path, shape: str) -> None:
    tally = FaultEpisodes(folder, shape, seed=1_000_000, deck=list(FAULTS)).play(len(FAULTS))
    assert {name.partition(" while ")[0] for name in tally.matrix} == set(FAULTS)


@beside
def test_a_slice_of_slow_but_alive(folder: Path) -> None:
    assert episodes.play("pairs", seed=1_000_000, episodes=10, slow=True).done == 10

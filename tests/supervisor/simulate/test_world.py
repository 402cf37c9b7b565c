"""The scheduler against fakes in virtual time: without faults, and with."""

from pathlib import Path

import pytest

from supervisor.simulate.faults.simulation import Simulation
from tests.harness.boxes import BOXES, FAULTS


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("seed", range(8))
def test_every_rollout_completes(name: str, seed: int) -> None:
    world = Simulation(BOXES[name](), seed, steps=3)
    world.run()
    for trainer in world.trainers.values():
        assert trainer.completed == {0: 24, 1: 24, 2: 24}
    for pipeline_ in world.scheduler.pipelines.values():
        assert pipeline_.published == 3
        assert not pipeline_.failed


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 60))])
def test_faults_break_no_promise(name: str, seed: int) -> None:
    world = Simulation(BOXES[name](), seed, steps=3, faults=FAULTS)
    world.run()
    assert not world.incomplete()


@pytest.mark.parametrize("kept", (Path(__file__).parent / "seeds.txt").read_text().split())
def test_seeds_that_once_failed(kept: str) -> None:
    """One command plays one again: `bin/check --long simulation --seed BOX:SEED`."""
    name, _, seed = kept.partition(":")
    Simulation(BOXES[name](), int(seed), steps=3, faults=FAULTS).run()

"""The scheduler against fakes in virtual time: without faults, and with."""

import pytest
from boxes import box, pipeline, seed_topology

from supervisor.simulate.world import Faults, World

BOXES = {
    "seed": seed_topology,
    "three": lambda: box(
        4, pipeline("a", [0], [0, 1, 2, 3]), pipeline("b", [1, 2], [0, 1, 2, 3], tp=2), pipeline("c", [3], [2, 3], ranks=1)
    ),
    "crowded": lambda: box(2, *(pipeline(f"p{i}", [i % 2], [0, 1], ranks=1) for i in range(4))),
    "wide": lambda: box(8, pipeline("a", list(range(8)), list(range(8)), tp=4, ranks=8), pipeline("b", [0, 1], list(range(8)), tp=2)),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("seed", range(8))
def test_every_rollout_completes(name: str, seed: int) -> None:
    world = World(BOXES[name](), seed, steps=3)
    world.run()
    for trainer in world.trainers.values():
        assert trainer.completed == {0: 24, 1: 24, 2: 24}
    for pipeline_ in world.scheduler.desk.fleet.pipelines.values():
        assert pipeline_.published == 3
        assert not pipeline_.failed


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("seed", range(60))
def test_faults_break_no_promise(name: str, seed: int) -> None:
    world = World(BOXES[name](), seed, steps=3, faults=Faults(never=0.02, twice=0.05, late=0.03, dies=0.03, fails=0.02))
    world.run()
    for trainer in world.trainers.values():
        pipeline_ = world.scheduler.desk.fleet.pipelines[trainer.pipeline]
        assert pipeline_.failed or trainer.completed == {0: 24, 1: 24, 2: 24}

"""Boxes that the simulations run on."""

from supervisor.scheduler.spec import BoxSpec, EngineSpec, Limits, PipelineSpec, Rules, TrainerSpec
from supervisor.simulate.faults.world import Faults
from tests.harness.defaults import default_limits, default_rules
from trainers.protocol.ids import GpuId, PipelineId

BRISK = default_limits(start=60.0, drain=20.0, pause=30.0, wake=30.0, load=30.0, release=30.0)


def pipeline(
    name: str,
    train: list[int],
    infer: list[int],
    *,
    tp: int = 1,
    slots: int = 8,
    ranks: int = 2,
    lease_limit: float = 600.0,
    critic: list[int] | None = None,
    eager: bool = False,
) -> PipelineSpec:
    gpus = tuple(GpuId(gpu) for gpu in train)
    roles = {"init": gpus, "train": gpus}
    if critic is not None:
        roles |= {"init": tuple(GpuId(gpu) for gpu in sorted({*train, *critic})), "critic": tuple(GpuId(gpu) for gpu in critic)}
    return PipelineSpec(
        PipelineId(name), EngineSpec(tuple(GpuId(g) for g in infer), tp, slots, eager), TrainerSpec(roles, ranks, lease_limit)
    )


def box(count: int, *pipelines: PipelineSpec, limits: Limits | None = None, rules: Rules | None = None) -> BoxSpec:
    return BoxSpec(tuple(GpuId(g) for g in range(count)), pipelines, limits or BRISK, rules or default_rules())


def seed_topology() -> BoxSpec:
    """The quickstart: the case on which the incumbent hung."""
    return box(4, pipeline("p1", [0, 1], [0, 1, 2, 3]), pipeline("p2", [2, 3], [0, 1, 2, 3]))


BOXES = {
    "seed": seed_topology,
    "three": lambda: box(
        4, pipeline("a", [0], [0, 1, 2, 3]), pipeline("b", [1, 2], [0, 1, 2, 3], tp=2), pipeline("c", [3], [2, 3], ranks=1, eager=True)
    ),
    "crowded": lambda: box(2, *(pipeline(f"p{i}", [i % 2], [0, 1], ranks=1) for i in range(4))),
    "critics": lambda: box(
        4,
        pipeline("a", [0, 1], [0, 1, 2, 3], critic=[1, 2]),
        pipeline("b", [2, 3], [0, 1, 2, 3], critic=[3], ranks=1),
        pipeline("c", [0], [3]),
    ),
    "wide": lambda: box(8, pipeline("a", list(range(8)), list(range(8)), tp=4, ranks=8), pipeline("b", [0, 1], list(range(8)), tp=2)),
}
FAULTS = Faults(
    never=0.02,
    twice=0.05,
    late=0.03,
    dies=0.02,
    fails=0.02,
    stuck=0.1,
    keeps=0.02,
    lies=0.02,
    alone=40.0,
    operator=60.0,
    stop=0.2,
    midway=0.3,
)

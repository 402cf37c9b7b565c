"""Turns the configuration into the scheduler's facts."""

from collections.abc import Mapping

from engines.lifecycle import members
from supervisor.attempt.checkpoints import Remembered
from supervisor.config.limits import limits, rules
from supervisor.config.schema.tables import Config, PipelineTable
from supervisor.scheduler.spec import BoxSpec, EngineSpec, PipelineSpec, TrainerSpec
from trainers.protocol.ids import GpuId, PipelineId


def box_spec(config: Config, gpus: tuple[GpuId, ...], remembered: Mapping[PipelineId, Remembered]) -> BoxSpec:
    """Return the facts of the box. `remembered` is what earlier starts of the attempt have recorded, by pipeline: steps done, the last version."""
    return BoxSpec(
        gpus,
        tuple(_pipeline(pipeline, remembered.get(PipelineId(pipeline.name), Remembered())) for pipeline in config.pipeline),
        limits(config.health),
        rules(config.scheduler),
    )


def _pipeline(pipeline: PipelineTable, remembered: Remembered) -> PipelineSpec:
    engine, trainer = pipeline.engine, pipeline.trainer
    roles = {"train": trainer.gpus, **trainer.roles}
    everything = sorted({gpu for gpus in roles.values() for gpu in gpus})
    return PipelineSpec(
        PipelineId(pipeline.name),
        EngineSpec(
            tuple(GpuId(gpu) for gpu in engine.gpus),
            engine.tp,
            engine.slots,
            eager=engine.start == "eager",
            members=len(members.shape(engine.members, engine.tp)),
        ),
        TrainerSpec(
            {"init": tuple(map(GpuId, everything)), **{role: tuple(map(GpuId, gpus)) for role, gpus in roles.items()}},
            world_size=len(trainer.gpus),
            lease_limit=trainer.lease_limit_s,
            processes=1 if trainer.processes == "one" else 0,
        ),
        share=pipeline.share,
        version=remembered.version,
        steps_done=remembered.steps_done,
        steps=trainer.steps,
        on_publish=pipeline.gateway.on_publish,
    )

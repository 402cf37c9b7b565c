"""A trainer's demand: rollouts opened and closed by rank 0."""

from engines.lifecycle.state import EngineState
from supervisor.scheduler.actions import CloseAtGateway
from supervisor.scheduler.answers import STOPPING, tell
from supervisor.scheduler.context import Desk
from supervisor.scheduler.records import Pipeline
from trainers.protocol.trainer_messages import OpenRollout, Refused, RolloutClosed

from .rollouts import Rollout

NO_ENGINE = ("no_engine", "every engine of this pipeline is retired; see why with `status`, mend it, then `reset` the pipeline")


def open_rollout(desk: Desk, pipeline: Pipeline, message: OpenRollout) -> None:
    refused = _why_no_rollout(desk, pipeline, message.rollout)
    if refused is not None:
        tell(desk, pipeline, Refused("open_rollout", message.rollout, *refused))
        return
    pipeline.rollouts[message.rollout] = Rollout(message.rollout, message.target, desk.now)
    pipeline.step = max(pipeline.step, message.rollout)  # a rollout's number is the trainer's step
    pipeline.figures.waits_since["rollout"] = desk.now


def _why_no_rollout(desk: Desk, pipeline: Pipeline, number: int) -> tuple[str, str] | None:
    trainer = pipeline.trainer
    if desk.stopping:
        return STOPPING
    if number in pipeline.rollouts or number in pipeline.closing:
        return ("out_of_order", f"rollout {number} is open already")
    if not trainer.restored:
        return ("out_of_order", "publish what was restored (pipeline.restore) before the first rollout of this life")
    if hopeless(pipeline):
        return NO_ENGINE
    mine = set(trainer.grant.gpus) if trainer.grant is not None else set()
    if all(mine & set(engine.gpus) for engine in pipeline.engines.values()):
        return ("own_gpus", "every engine of this pipeline needs a GPU that its trainer holds now: end the lease first")
    return None


def hopeless(pipeline: Pipeline) -> bool:
    """No engine of the pipeline can come back without an operator. One that is stuck can: it is looked at again until it is gone."""
    return all(engine.state is EngineState.RETIRED for engine in pipeline.engines.values())


def refuse_rollout(desk: Desk, pipeline: Pipeline, number: int) -> None:
    """It was opened, and by now nobody can serve it: it is not wanted any more."""
    rollout = pipeline.rollouts.pop(number)
    tell(desk, pipeline, Refused("open_rollout", number, *NO_ENGINE))
    if pipeline.gateway.up and rollout.asked:
        desk.do(lambda id: CloseAtGateway(id=id, pipeline=pipeline.id, rollout=number), desk.box.limits.drain + desk.box.limits.order)


def close_rollout(desk: Desk, pipeline: Pipeline, number: int) -> None:
    """Demand ends now; the trainer is told when the gateway has answered every sample of it."""
    rollout = pipeline.rollouts.pop(number, None)
    if rollout is None:
        tell(desk, pipeline, Refused("close_rollout", number, "out_of_order", f"rollout {number} is not open"))
        return
    pipeline.closing[number] = rollout
    if pipeline.gateway.up and rollout.asked:
        limit = desk.box.limits.drain + desk.box.limits.order
        desk.do(lambda id: CloseAtGateway(id=id, pipeline=pipeline.id, rollout=number), limit)
    else:
        closed(desk, pipeline, number)


def closed(desk: Desk, pipeline: Pipeline, number: int) -> None:
    """The gateway (or its death) has ended the rollout."""
    rollout = pipeline.closing.pop(number, None)
    if rollout is not None:
        pipeline.figures.samples += rollout.before + rollout.done
        tell(desk, pipeline, RolloutClosed(number))

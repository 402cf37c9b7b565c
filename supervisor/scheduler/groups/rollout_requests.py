"""Rank 0 of a trainer opens and closes rollouts; these functions accept or refuse its calls."""

from engines.lifecycle.state import EngineState
from supervisor.scheduler.actions import CloseAtGateway
from supervisor.scheduler.context import STOPPING, Context
from supervisor.scheduler.records import Pipeline
from supervisor.scheduler.rollouts import Rollout
from trainers.protocol.trainer_messages import OpenRollout, Refused, RolloutClosed

NO_ENGINE = ("no_engine", "every engine of this pipeline is retired; see why with `status`, mend it, then `reset` the pipeline")


MOST_OPEN = 64
"""Rollouts of one trainer, open or closing: each event looks at all of them, and the other pipelines wait for that."""


def open_rollout(ctx: Context, pipeline: Pipeline, message: OpenRollout) -> None:
    refused = _why_no_rollout(ctx, pipeline, message.rollout)
    if refused is not None:
        ctx.tell(pipeline, Refused("open_rollout", message.rollout, *refused))
        return
    pipeline.rollouts[message.rollout] = Rollout(message.rollout, message.target, ctx.now)
    pipeline.step = max(pipeline.step, message.rollout)  # a rollout's number is the trainer's step
    pipeline.figures.waits_since["rollout"] = ctx.now


def _why_no_rollout(ctx: Context, pipeline: Pipeline, number: int) -> tuple[str, str] | None:
    trainer = pipeline.trainer
    if ctx.stopping:
        return STOPPING
    if number in pipeline.rollouts or number in pipeline.closing:
        return ("out_of_order", f"rollout {number} is open already")
    if len(pipeline.rollouts) + len(pipeline.closing) >= MOST_OPEN:
        return ("out_of_order", f"{MOST_OPEN} rollouts are open or closing already, which is the most: close one and await its end first")
    if not trainer.restored:
        return ("out_of_order", "publish what was restored (pipeline.restore) before the first rollout of this life")
    if hopeless(pipeline):
        return NO_ENGINE
    mine = set(trainer.grant.gpus) if trainer.grant is not None else set()
    if all(mine & set(engine.gpus) for engine in pipeline.engines.values()):
        return ("own_gpus", "every engine of this pipeline needs a GPU that its trainer holds now: end the lease first")
    return None


def hopeless(pipeline: Pipeline) -> bool:
    """Return whether no engine of the pipeline can come back without an operator. A stuck one can: it is looked at again until it has exited."""
    return all(engine.state is EngineState.RETIRED for engine in pipeline.engines.values())


def refuse_rollout(ctx: Context, pipeline: Pipeline, number: int) -> None:
    """Refuse a rollout that was opened and that by now nobody can serve."""
    rollout = pipeline.rollouts.pop(number)
    ctx.tell(pipeline, Refused("open_rollout", number, *NO_ENGINE))
    if pipeline.gateway.up and rollout.ordered:
        ctx.do(lambda id: CloseAtGateway(id=id, pipeline=pipeline.id, rollout=number), ctx.box.limits.drain + ctx.box.limits.order)


def close_rollout(ctx: Context, pipeline: Pipeline, number: int) -> None:
    """End the demand now; the trainer is told when the gateway has answered every sample of it."""
    rollout = pipeline.rollouts.pop(number, None)
    if rollout is None:
        ctx.tell(pipeline, Refused("close_rollout", number, "out_of_order", f"rollout {number} is not open"))
        return
    pipeline.closing[number] = rollout
    if pipeline.gateway.up and rollout.ordered:
        limit = ctx.box.limits.drain + ctx.box.limits.order
        ctx.do(lambda id: CloseAtGateway(id=id, pipeline=pipeline.id, rollout=number), limit)
    else:
        closed(ctx, pipeline, number)


def closed(ctx: Context, pipeline: Pipeline, number: int) -> None:
    """The gateway (or its death) has ended the rollout."""
    rollout = pipeline.closing.pop(number, None)
    if rollout is not None:
        pipeline.figures.samples += rollout.before + rollout.done
        ctx.tell(pipeline, RolloutClosed(number))

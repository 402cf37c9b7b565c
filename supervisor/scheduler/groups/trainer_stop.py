"""A trainer that is told to stop gets an answer at once to whatever it waits for or asks: its grace is for saving its work, not for waiting."""

from supervisor.scheduler.actions import RecordCheckpoint
from supervisor.scheduler.context import STOPPING, Context
from supervisor.scheduler.records import Pipeline
from trainers.protocol.trainer_messages import (
    Asked,
    AskedAlike,
    Checkpoint,
    Choose,
    CloseRollout,
    ExchangeLease,
    LeaseEnded,
    Offloaded,
    OpenRollout,
    Publish,
    Refused,
    Report,
    RequestLease,
    RolloutClosed,
    Stopping,
    TrainerMessage,
)


def begin(ctx: Context, pipeline: Pipeline) -> None:
    """Tell it to stop, and answer everything that it waits for. (On missing samples the client gives up by itself.)"""
    trainer = pipeline.trainer
    ctx.tell(pipeline, Stopping(ctx.box.limits.told))
    if trainer.request is not None:
        ctx.tell(pipeline, Refused("request_lease", trainer.request.call, *STOPPING))
    if trainer.grant is not None and trainer.grant.leaving is not None:
        ctx.tell(pipeline, LeaseEnded(trainer.grant.call))
    if trainer.publishing is not None:
        ctx.tell(pipeline, Refused("publish", trainer.publishing.call, *STOPPING))
    for rollout in pipeline.rollouts.values():
        if not rollout.announced and not rollout.implicit:
            ctx.tell(pipeline, Refused("open_rollout", rollout.number, *STOPPING))
        elif rollout.left:  # some ranks wait for the others to leave it
            ctx.tell(pipeline, RolloutClosed(rollout.number))
    for number in pipeline.closing:
        ctx.tell(pipeline, RolloutClosed(number))
    for number in trainer.asked:
        ctx.tell(pipeline, AskedAlike(number))


def handle_message(ctx: Context, pipeline: Pipeline, rank: int, message: TrainerMessage) -> None:
    """Answer what a rank says between that and its exit. Its GPUs are measured when it has exited, whatever it says of a lease."""
    match message:
        case Asked(rollout=number):
            ctx.tell(pipeline, AskedAlike(number), rank)
        case OpenRollout(rollout=number):
            ctx.tell(pipeline, Refused("open_rollout", number, *STOPPING))
        case CloseRollout(rollout=number):
            ctx.tell(pipeline, RolloutClosed(number))
        case _ if rank != 0:
            pass
        case Checkpoint(step=step, path=path):
            ctx.do(lambda id: RecordCheckpoint(id=id, pipeline=pipeline.id, step=step, path=path), ctx.box.limits.order)
        case Report(step=step, metrics=metrics):
            pipeline.figures.reported(step, metrics)
        case Offloaded(call=call):
            ctx.tell(pipeline, LeaseEnded(call))
        case Choose(call=call):
            ctx.tell(pipeline, Refused("choose", call, *STOPPING))
        case RequestLease(call=call) | ExchangeLease(call=call):
            ctx.tell(pipeline, Refused("request_lease", call, *STOPPING))
        case Publish(call=call):
            ctx.tell(pipeline, Refused("publish", call, *STOPPING))
        case _:
            pass

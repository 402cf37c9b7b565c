"""A trainer publishes weights: a snapshot becomes the next version, and those that nobody needs any more go."""

from supervisor.scheduler.actions import AdoptSnapshot, DropSnapshot, LoadWeights, Wake
from supervisor.scheduler.context import Context
from supervisor.scheduler.records import Pipeline, Publishing
from trainers.protocol.ids import Version
from trainers.protocol.trainer_messages import Publish, Refused

from . import engines


def publish(ctx: Context, pipeline: Pipeline, message: Publish) -> None:
    """Rank 0 has written a snapshot, or could not: the next version begins, or every rank is refused."""
    trainer = pipeline.trainer
    if trainer.publishing is not None:
        ctx.tell(pipeline, Refused("publish", message.call, "out_of_order", "the publish before this one is not recorded yet"))
        return
    if message.code:
        ctx.tell(pipeline, Refused("publish", message.call, message.code, message.reason))
        return
    version = Version(max(pipeline.published, max(pipeline.snapshots, default=Version(0))) + 1)
    trainer.publishing = Publishing(message.call, version)
    ctx.do(lambda id: AdoptSnapshot(id=id, pipeline=pipeline.id, name=message.name, version=version), ctx.box.limits.load)


def adopted(ctx: Context, pipeline: Pipeline, publishing: Publishing) -> None:
    """The snapshot is the version's: engines load it, and those that failed with weights before get another chance."""
    engines.forgive(ctx, pipeline)
    publishing.adopted = True
    pipeline.snapshots.add(publishing.version)
    pipeline.published = publishing.version
    pipeline.trainer.restored = True


def drop_snapshots(ctx: Context, pipeline: Pipeline) -> None:
    """Drop every snapshot that is neither published nor being loaded."""
    if pipeline.snapshots <= {pipeline.published}:
        return
    loading = {
        awaited.action.version
        for awaited in ctx.inflight.awaited
        if isinstance(awaited.action, Wake | LoadWeights) and awaited.action.engine.pipeline == pipeline.id
    }
    for version in sorted(pipeline.snapshots - loading - {pipeline.published}):
        pipeline.snapshots.discard(version)
        ctx.do(
            lambda id, version=version: DropSnapshot(id=id, pipeline=pipeline.id, version=version),  # type: ignore[misc]
            ctx.box.limits.order,
        )

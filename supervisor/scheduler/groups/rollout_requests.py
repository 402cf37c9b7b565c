"""Rank 0 of a trainer opens and closes rollouts; these functions accept or refuse its calls, and see whether the ranks agree.

In a rollout that is `per_rank` every rank asks for samples of its own: the others join what rank 0 opens, before or after, and it ends when all
have left. In any other all ranks ask for the same samples: what each has asked for is compared, because two ranks that ask for equal prompts
get the same answers, and a script that means two would train on half of its samples.
"""

from typing import TypeVar

from engines.lifecycle.state import EngineState
from supervisor.scheduler.actions import CloseAtGateway
from supervisor.scheduler.context import STOPPING, Context
from supervisor.scheduler.records import Pipeline
from supervisor.scheduler.rollouts import Rollout
from trainers.protocol.ids import EVALUATIONS
from trainers.protocol.trainer_messages import (
    Asked,
    AskedAlike,
    Choose,
    Chosen,
    CloseRollout,
    EndTrajectories,
    OpenRollout,
    Refused,
    RolloutClosed,
)

NO_ENGINE = ("no_engine", "every engine of this pipeline is retired; see why with `status`, mend it, then `reset` the pipeline")


ALIKE = (
    "every rank asks for all prompts, in the same order, and takes its share of the answers; or each asks for prompts of its own,"
    " in pipeline.rollout(..., per_rank=True)"
)
RolloutCall = OpenRollout | CloseRollout | Asked | EndTrajectories | Choose
T = TypeVar("T")
MOST_OPEN = 64
"""Rollouts of one trainer, open or closing: each event looks at all of them, and the other pipelines wait for that."""


def handle_message(ctx: Context, pipeline: Pipeline, rank: int, message: RolloutCall) -> bool:
    """Take in what a rank says of a rollout. Returns whether it may say so: of one that is not `per_rank`, only rank 0 may decide."""
    decides = rank == 0
    own = is_per_rank(pipeline, message.rollout)
    match message:
        case Asked():
            compare_asked(ctx, pipeline, rank, message)
        case OpenRollout() if decides:
            open_rollout(ctx, pipeline, message)
        case OpenRollout(per_rank=True):
            join_rollout(pipeline, rank, message)
        case CloseRollout(rollout=number) if own:
            leave_rollout(ctx, pipeline, rank, number)
        case CloseRollout(rollout=number) if decides:
            close_rollout(ctx, pipeline, number)
        case EndTrajectories() if own or decides:
            end_trajectories(pipeline, rank, message)
        case Choose(call=call, samples=samples) if decides:
            ctx.tell(pipeline, Chosen(call, samples))
        case _:
            return False
    return True


def open_rollout(ctx: Context, pipeline: Pipeline, message: OpenRollout) -> None:
    refused = _why_no_rollout(ctx, pipeline, message.rollout)
    if refused is not None:
        ctx.tell(pipeline, Refused("open_rollout", message.rollout, *refused))
        return
    rollout = Rollout(message.rollout, message.target, ctx.now, trajectories=message.trajectories, per_rank=message.per_rank)
    pipeline.rollouts[message.rollout] = rollout
    if message.per_rank:
        joining = pipeline.trainer.joining.pop(message.rollout, {})
        rollout.target += sum(joining.values())
        rollout.joined = {0, *joining}
    if message.rollout < EVALUATIONS:
        pipeline.step = max(pipeline.step, message.rollout)  # a rollout's number is the trainer's step
    pipeline.figures.waits_since["rollout"] = ctx.now


def join_rollout(pipeline: Pipeline, rank: int, message: OpenRollout) -> None:
    """Another rank wants samples of its own in a rollout of rank 0's, which may not be open yet; it hears what rank 0 is told."""
    rollout = pipeline.rollouts.get(message.rollout)
    if rollout is None:
        _recent(pipeline.trainer.joining, message.rollout)[rank] = message.target
    elif rollout.per_rank and rank not in rollout.joined:
        rollout.joined.add(rank)
        rollout.target += message.target


def leave_rollout(ctx: Context, pipeline: Pipeline, rank: int, number: int) -> None:
    """A rank has all samples of its own; when every rank has, the rollout is closed."""
    rollout = pipeline.rollouts[number]
    rollout.left.add(rank)
    if len(rollout.left) == pipeline.trainer.world_size:
        close_rollout(ctx, pipeline, number)


def is_per_rank(pipeline: Pipeline, number: int) -> bool:
    return number in pipeline.rollouts and pipeline.rollouts[number].per_rank


def end_trajectories(pipeline: Pipeline, rank: int, message: EndTrajectories) -> None:
    """So many trajectories of this rank's have ended: they are no demand any more."""
    rollout = pipeline.rollouts.get(message.rollout)
    if rollout is not None:
        rollout.ended[rank] = max(rollout.ended.get(rank, 0), message.ended)


def compare_asked(ctx: Context, pipeline: Pipeline, rank: int, message: Asked) -> None:
    """Every rank says what it has asked for; the others are answered when rank 0's is known. Who has asked for nothing has not asked apart."""
    said = _recent(pipeline.trainer.asked, message.rollout)
    said[rank] = (message.samples, message.digest)
    if 0 in said:
        _answer_asked(ctx, pipeline, message.rollout, [other for other in said if other] if rank == 0 else [rank])


def _answer_asked(ctx: Context, pipeline: Pipeline, number: int, ranks: list[int]) -> None:
    said = pipeline.trainer.asked[number]
    first = said[0]
    for rank in ranks:
        its = said[rank]
        if first is None or its is None or its == first or not its[0] or not first[0]:
            ctx.tell(pipeline, AskedAlike(number), rank)
            continue
        what = f"rank {rank} asked for {its[0]} samples and rank 0 for {first[0]}" if its[0] != first[0] else f"the prompts of rank {rank}"
        differ = what if its[0] != first[0] else f"{what} or their parameters are not those of rank 0"
        ctx.tell(pipeline, Refused("asked", number, "ranks_ask_apart", f"rollout {number}: {differ}; {ALIKE}"))
    if len(said) == pipeline.trainer.world_size:
        del pipeline.trainer.asked[number]


def _recent(kept: dict[int, dict[int, T]], number: int) -> dict[int, T]:
    """Return what is kept of this rollout, of which ranks may never speak: only the newest are kept."""
    found = kept.setdefault(number, {})
    while len(kept) > MOST_OPEN:
        del kept[min(kept)]
    return found


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
    if not rollout.per_rank and pipeline.trainer.world_size > 1 and 0 not in (said := _recent(pipeline.trainer.asked, number)):
        said[0] = None  # its body failed: there is nothing to compare with
        _answer_asked(ctx, pipeline, number, [rank for rank in said if rank])
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

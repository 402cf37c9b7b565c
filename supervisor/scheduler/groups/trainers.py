"""This module runs the life of a trainer: what its ranks say, what they are told, how it fails and comes back.

`handle_message` takes a message of a rank, `answered` the answer to an action, `step` starts what is due, `fail` condemns the whole trainer.
Rank 0's calls decide; every answer goes to all ranks.
"""

from collections.abc import Collection
from typing import assert_never

from supervisor.scheduler.actions import (
    Action,
    AdoptSnapshot,
    Lost,
    Measure,
    RecordCheckpoint,
    StartTrainer,
    StopGroup,
)
from supervisor.scheduler.context import Context
from supervisor.scheduler.events import (
    ActionFailed,
    Answer,
    CheckpointKept,
    GpuFree,
    GpuHeld,
    GroupGone,
    MemberExited,
    RankLeft,
    SnapshotAdopted,
    TrainerStarted,
)
from supervisor.scheduler.records import Pipeline, TrainerState, TrainerTransition
from trainers.protocol.ids import GpuId, Incarnation
from trainers.protocol.trainer_messages import (
    Asked,
    Checkpoint,
    CheckpointRecorded,
    Choose,
    CloseRollout,
    EndTrajectories,
    ExchangeLease,
    Hello,
    LeaseEnded,
    Offloaded,
    OpenRollout,
    Publish,
    Published,
    Refused,
    Report,
    RequestLease,
    RolloutOpened,
    TrainerMessage,
)

from . import publishes, rollout_requests, trainer_stop
from .lease_violations import fence_foreign_memory
from .rollout_requests import hopeless, refuse_rollout
from .trainer_leases import offloaded, request


def handle_message(ctx: Context, pipeline: Pipeline, rank: int, message: TrainerMessage) -> None:
    """Take in a message of a rank of the trainer's present life. One that makes no sense is refused or condemns the trainer, never us."""
    match message:
        case Offloaded(call=call):
            offloaded(ctx, pipeline, rank, call)
        case Hello(world_size=size):
            pipeline.trainer.greeted = True  # the runtime has answered it: a fact, not a decision
            if pipeline.trainer.processes and size:
                pipeline.trainer.world_size = size
        case OpenRollout() | CloseRollout() | Asked() | EndTrajectories() | Choose():
            if not rollout_requests.handle_message(ctx, pipeline, rank, message):
                fail(ctx, pipeline, f"rank {rank} said {type(message).__name__}; only rank 0's calls decide")
        case _ if rank != 0:
            fail(ctx, pipeline, f"rank {rank} said {type(message).__name__}; only rank 0's calls decide")
        case RequestLease():
            request(ctx, pipeline, message.call, message.roles, exchange=False)
        case ExchangeLease():
            request(ctx, pipeline, message.call, message.roles, exchange=True)
        case Publish():
            publishes.publish(ctx, pipeline, message)
        case Checkpoint(step=step, path=path):
            ctx.do(lambda id: RecordCheckpoint(id=id, pipeline=pipeline.id, step=step, path=path), ctx.box.limits.order)
        case Report(step=step, metrics=metrics):
            pipeline.figures.reported(step, metrics)
        case _:
            assert_never(message)


def answered(ctx: Context, pipeline: Pipeline, action: Action, answer: Answer) -> None:
    """Take in the answer to an action for this trainer."""
    trainer = pipeline.trainer
    if trainer.op == action.id:
        trainer.op = None
    match (action, answer):
        case (StartTrainer(), TrainerStarted()):
            _started(ctx, pipeline, answer)
        case (AdoptSnapshot(), SnapshotAdopted()) if trainer.publishing is not None:
            publishes.adopted(ctx, pipeline, trainer.publishing)
        case (AdoptSnapshot(), ActionFailed(code=code, reason=reason)) if trainer.publishing is not None:
            call, trainer.publishing = trainer.publishing.call, None
            ctx.tell(pipeline, Refused("publish", call, code, reason))
        case (RecordCheckpoint(step=step), CheckpointKept()):
            trainer.steps_done = step + 1
            ctx.tell(pipeline, CheckpointRecorded(step))
        case (RecordCheckpoint(step=step), ActionFailed(code=code, reason=reason)):
            ctx.tell(pipeline, Refused("checkpoint", step, code, reason))
        case (StopGroup(), GroupGone(confirmed=True)):
            assert trainer.teardown is not None, f"{trainer.id} is {trainer.state.value}"
            trainer.teardown.exited, trainer.pids = True, ()
        case (StopGroup(), GroupGone(note=note) | ActionFailed(reason=note)):
            _unconfirmed(ctx, pipeline, note)
        case (Measure(gpus=gpus), GpuFree()):
            _measured_empty(ctx, pipeline, gpus)
        case (Measure(gpus=gpus), GpuHeld()) if fence_foreign_memory(ctx, trainer.id, answer):
            _measured_empty(ctx, pipeline, gpus)
        case (Measure(), GpuHeld(note=note) | ActionFailed(reason=note)):
            _still_held(ctx, pipeline, note)
        case (StartTrainer(), ActionFailed(reason=reason)):
            fail(ctx, pipeline, f"did not start: {reason}")
        case _:
            pass  # of a publish or start that the trainer's death has overtaken


def _measured_empty(ctx: Context, pipeline: Pipeline, gpus: tuple[GpuId, ...]) -> None:
    """The GPUs that the trainer has left measure empty."""
    trainer = pipeline.trainer
    ctx.leases.release(trainer.id, gpus)
    if trainer.state is not TrainerState.RUNNING:
        return
    lease = trainer.grant
    assert lease is not None, f"{trainer.id} was measured without a lease"
    lease.measured_empty(gpus)
    if lease.leaving is not None and not lease.gpus and not lease.leaving_gpus:
        trainer.grant, trainer.lease_ended_at = None, ctx.now
        ctx.tell(pipeline, LeaseEnded(lease.call))


def _still_held(ctx: Context, pipeline: Pipeline, note: str) -> None:
    trainer = pipeline.trainer
    if trainer.state is TrainerState.RUNNING:
        fail(ctx, pipeline, f"left its lease, but its GPUs still hold memory after {ctx.box.limits.release:.0f} s: {note}")
        return
    for gpu in ctx.leases.held_by(trainer.id):  # memory stays after every pid is gone: now, and only now, a GPU is fenced
        ctx.leases.fence(gpu, f"memory stays after {trainer.id} is gone: {note}")
        ctx.note("error", trainer.id, f"GPU {gpu} is fenced: {note}")
    ctx.leases.release(trainer.id)


# -- life


def fail(ctx: Context, pipeline: Pipeline, reason: str, *, by_operator: bool = False, error: str = "") -> None:
    """The trainer has failed: its ranks are one group and end together, its rollouts end at once, its GPUs go on when they are empty.

    `by_operator`: an operator wanted it, and has been told. `error`: what its script raised, if that is the reason.
    """
    trainer = pipeline.trainer
    if trainer.state not in (TrainerState.STARTING, TrainerState.RUNNING):
        return
    trainer.transition(TrainerTransition.FAIL)
    trainer.note, trainer.failed_at, trainer.by_operator = reason, ctx.now, by_operator
    trainer.budget.ended(trainer.steps_done, error)
    if not by_operator:
        ctx.note("error", trainer.id, f"trainer failed: {reason}")
    _drop_calls(ctx, pipeline)


def _drop_calls(ctx: Context, pipeline: Pipeline) -> None:
    trainer = pipeline.trainer
    for id in (trainer.op, trainer.grant.measure if trainer.grant is not None else None):
        ctx.inflight.forget(id)
    trainer.op = trainer.request = trainer.publishing = trainer.grant = None
    for number, rollout in (*pipeline.rollouts.items(), *pipeline.closing.items()):
        if not rollout.implicit:  # those are the gateway's own: they end, and are counted, with its last report of them
            pipeline.figures.samples += rollout.before + rollout.done
            pipeline.rollouts.pop(number, None)
    pipeline.closing.clear()
    trainer.asked.clear()
    trainer.joining.clear()
    pipeline.figures.waits_since.clear()
    pipeline.forget = True


def rank_exited(ctx: Context, pipeline: Pipeline, event: MemberExited) -> None:
    """A rank's process has ended."""
    trainer = pipeline.trainer
    trainer.exits[event.member] = event.code
    trainer.first_exit = ctx.now if trainer.first_exit is None else trainer.first_exit
    if trainer.state not in (TrainerState.STARTING, TrainerState.RUNNING):
        return
    if event.code != 0:
        fail(ctx, pipeline, f"{'its launcher' if trainer.processes else f'rank {event.member}'} {event.how}", error=event.error)
    elif len(trainer.exits) == trainer.members:
        ctx.note("info", trainer.id, "trainer finished")
        stop(ctx, pipeline)


def rank_left(ctx: Context, event: RankLeft) -> None:
    """A rank that a launcher has made says nothing any more. Inside a lease that it has not left, that is its death: nothing else will end the lease."""
    pipeline, rank = ctx.fleet.pipelines[event.pipeline], event.rank
    trainer = pipeline.trainer
    if trainer.incarnation != event.incarnation:
        return
    trainer.left.setdefault(rank, ctx.now)
    if trainer.grant is not None and rank not in trainer.grant.offloaded:
        fail(ctx, pipeline, f"rank {rank} has ended inside a lease ({', '.join(trainer.grant.roles)})")


def stop(ctx: Context, pipeline: Pipeline) -> None:
    """Stop the trainer as planned: nothing of the pipeline is restarted."""
    trainer = pipeline.trainer
    if trainer.state in (TrainerState.FINISHED, TrainerState.STOPPING):
        return
    was = trainer.state
    trainer.transition(TrainerTransition.STOP)
    if was in (TrainerState.STARTING, TrainerState.RUNNING):
        if ctx.stopping and not trainer.exits:
            trainer_stop.begin(ctx, pipeline)
        _drop_calls(ctx, pipeline)


def step(ctx: Context, pipeline: Pipeline) -> None:
    """Start what is due for this trainer."""
    trainer = pipeline.trainer
    if trainer.op is not None:
        return
    match trainer.state:
        case TrainerState.COLD:
            _start(ctx, pipeline)
        case TrainerState.RUNNING:
            _watch_lease(ctx, pipeline)
            _watch_stragglers(ctx, pipeline)
            _answer_what_holds(ctx, pipeline)
        case TrainerState.QUARANTINED | TrainerState.STOPPING:
            _tear_down(ctx, pipeline)
        case _:
            pass


def _start(ctx: Context, pipeline: Pipeline) -> None:
    trainer = pipeline.trainer
    if not pipeline.model_ready or not pipeline.gateway.up or pipeline.forget or pipeline.suspended or not ctx.due(trainer.not_before):
        return
    trainer.transition(TrainerTransition.START)
    trainer.exits.clear()
    trainer.first_exit = None
    trainer.left.clear()
    trainer.world_size = pipeline.spec.trainer.world_size
    trainer.greeted = False
    trainer.op = ctx.do(
        lambda id: StartTrainer(
            id=id,
            pipeline=pipeline.id,
            incarnation=trainer.incarnation,
            steps_done=trainer.steps_done,
            restore=not trainer.restored,
        ),
        ctx.box.limits.start,
    )


def _started(ctx: Context, pipeline: Pipeline, answer: TrainerStarted) -> None:
    """Its ranks run. When the newest checkpoint is not there any more, they resume from an older one or from the beginning."""
    trainer, found = pipeline.trainer, answer.steps_done
    trainer.pids = answer.pids
    if trainer.state is TrainerState.STARTING:
        trainer.transition(TrainerTransition.STARTED)
    if found is not None and found < trainer.steps_done:
        ctx.note("error", trainer.id, f"its checkpoint after {trainer.steps_done} steps is not there any more; it resumes after {found}")
        trainer.steps_done = found
        trainer.restored = trainer.restored or (pipeline.published == 0 and found == 0)


def _watch_lease(ctx: Context, pipeline: Pipeline) -> None:
    """See that a lease keeps its limit, and measure the GPUs that were left."""
    lease = pipeline.trainer.grant
    if lease is None:
        return
    gpus = (*lease.leaving_gpus, *(lease.gpus if lease.leaving is not None else ()))
    if gpus and lease.measure is None:
        limit = ctx.box.limits.release
        trainer = pipeline.trainer
        lease.measure = ctx.do(lambda id: Measure(id=id, holder=trainer.id, gpus=gpus, within=limit), limit + ctx.box.limits.order)
    if lease.leaving is not None:
        return
    limit = pipeline.spec.trainer.lease_limit
    if ctx.due(lease.since + limit):
        fail(ctx, pipeline, f"holds its lease ({', '.join(lease.roles)}) longer than lease_limit_s = {limit:g}")
    elif not lease.warned and ctx.due(lease.since + limit / 2):
        lease.warned = True
        ctx.note("warning", pipeline.trainer.id, f"holds its lease ({', '.join(lease.roles)}) for half of lease_limit_s = {limit:g}")


def _watch_stragglers(ctx: Context, pipeline: Pipeline) -> None:
    trainer = pipeline.trainer
    patience = ctx.box.limits.straggler
    ended: Collection[int] = trainer.left if trainer.processes else trainer.exits
    first = min(trainer.left.values(), default=None) if trainer.processes else trainer.first_exit
    alive = [rank for rank in range(trainer.world_size) if rank not in ended]
    if first is not None and alive and ctx.due(first + patience):
        fail(ctx, pipeline, f"rank {alive[0]} still runs {patience:.0f} s after rank {min(ended)} ended")


def _answer_what_holds(ctx: Context, pipeline: Pipeline) -> None:
    """Send the answers that wait for a fact: a rollout for a routable engine, a publish for the last older route to go."""
    for rollout in tuple(pipeline.rollouts.values()):
        if not rollout.announced and not rollout.implicit and rollout.known and pipeline.routable:
            rollout.announced = True
            ctx.count_wait(pipeline, "rollout")
            ctx.tell(pipeline, RolloutOpened(rollout.number))
        elif not rollout.announced and not rollout.implicit and hopeless(pipeline):
            refuse_rollout(ctx, pipeline, rollout.number)
    publishing = pipeline.trainer.publishing
    if publishing is not None and publishing.adopted:
        older = [engine for engine in pipeline.engines.values() if engine.route is not None and engine.route < publishing.version]
        ordered = [engine.life.routing.ordered for engine in pipeline.engines.values() if engine.op is not None]
        if not older and all(route is None or route >= publishing.version for route in ordered) and not _losing(ctx, pipeline):
            pipeline.trainer.publishing = None
            ctx.tell(pipeline, Published(publishing.call, publishing.version))


def _losing(ctx: Context, pipeline: Pipeline) -> bool:
    """Return whether the gateway has yet to confirm that a failed engine is out of its routes: a request may still go there."""
    return any(isinstance(awaited.action, Lost) and awaited.action.engine.pipeline == pipeline.id for awaited in ctx.inflight.awaited)


def _tear_down(ctx: Context, pipeline: Pipeline) -> None:
    trainer = pipeline.trainer
    limits = ctx.box.limits
    if trainer.teardown is None or not trainer.teardown.exited:
        stopping = trainer.state is TrainerState.STOPPING
        hears = trainer.greeted and len(trainer.exits) < trainer.members  # a script without our client learns of it by its TERM
        patient = stopping and ctx.stopping == 1 and hears
        if patient and not ctx.due(ctx.stop_at):
            return
        kill = not stopping or ctx.stopping >= 3
        rest = max(0.0, ctx.stop_at + limits.grace - limits.told - ctx.now) if patient else None  # it was told before
        trainer.op = ctx.do(
            lambda id: StopGroup(id=id, group=trainer.id, incarnation=trainer.incarnation, kill=kill, grace=rest), limits.end
        )
    elif gpus := ctx.leases.held_by(trainer.id):
        trainer.op = ctx.do(lambda id: Measure(id=id, holder=trainer.id, gpus=gpus, within=limits.release), limits.release + limits.order)
    else:
        _finish_teardown(ctx, pipeline)


def _finish_teardown(ctx: Context, pipeline: Pipeline) -> None:
    """Every rank has exited and nothing of them is on a GPU."""
    trainer = pipeline.trainer
    failed = trainer.state is TrainerState.QUARANTINED
    trainer.transition(TrainerTransition.GONE)
    trainer.incarnation = Incarnation(trainer.incarnation + 1)
    if not failed:
        return
    # what the dead trainer held in memory is gone: its next life publishes what it restores, unless nothing was ever published
    trainer.restored = pipeline.published == 0 and trainer.steps_done == 0
    wait = trainer.budget.fail(ctx.now, salt=trainer.incarnation)
    if wait is None or trainer.budget.ended_alike:
        trainer.transition(TrainerTransition.GIVE_UP)
        spent = f"{trainer.budget.limit} restarts within {trainer.budget.window:.0f} s"
        alike = f"two lives that ended alike, after {trainer.steps_done} steps (its script would fail again)"
        pipeline.failed = f"trainer retired after {spent if wait is None else alike}: {trainer.note}"
        ctx.note("error", trainer.id, pipeline.failed)
    else:
        trainer.restarts += 1
        trainer.not_before = ctx.now + wait
        ctx.look_again(trainer.not_before)


def _unconfirmed(ctx: Context, pipeline: Pipeline, note: str) -> None:
    """A rank cannot be ended: its GPUs are withheld, the rest of the box goes on."""
    trainer = pipeline.trainer
    assert trainer.teardown is not None, f"{trainer.id} is {trainer.state.value}"
    trainer.teardown.exited = True  # nothing more of it is waited for
    for gpu in ctx.leases.held_by(trainer.id):
        ctx.leases.fence(gpu, f"a rank of {trainer.id} could not be ended: {note}")
    ctx.leases.release(trainer.id)
    ctx.note("error", trainer.id, f"a rank could not be confirmed gone: {note}")

"""A group that holds memory on a GPU without a lease fails; a GPU with memory of foreign processes is fenced.

The group that was measured there is not blamed.
"""

from collections.abc import Iterable

from engines.lifecycle.state import EngineState
from supervisor.scheduler.context import Context
from supervisor.scheduler.events import GpuHeld, Holder
from supervisor.scheduler.leases import LeaseBook
from supervisor.scheduler.records import Fleet, TrainerState
from trainers.protocol.ids import EngineId, GroupId, TrainerId


def intruders(leases: LeaseBook, held: GpuHeld) -> list[Holder]:
    """Return those who hold memory there without a lease, each once a GPU."""
    found = []
    for holder in held.holders:
        lease = leases.lease(holder.gpu)
        if lease is None or lease.holder != holder.group:
            found.append(holder)
    return found


def is_being_torn_down(fleet: Fleet, holder: Holder) -> bool:
    """Return whether its teardown is under way and has not been given up: what it holds goes with it."""
    pipeline = fleet.pipelines[holder.group.pipeline]
    match holder.group:
        case EngineId(rank=rank):
            engine = pipeline.engines[rank]
            return engine.incarnation == holder.incarnation and engine.state in (EngineState.QUARANTINED, EngineState.STOPPING)
        case TrainerId():
            trainer = pipeline.trainer
            return trainer.incarnation == holder.incarnation and trainer.state in (TrainerState.QUARANTINED, TrainerState.STOPPING)
        case _:
            return pipeline.gateway.incarnation == holder.incarnation and pipeline.gateway.dying


def only_theirs(fleet: Fleet, held: GpuHeld, found: Iterable[Holder]) -> bool:
    """Return whether every GPU that is not empty is held by intruders that are being torn down, and by nobody who may be there: then look again."""
    ending = {holder for holder in found if is_being_torn_down(fleet, holder)}
    return {holder.gpu for holder in ending} == set(held.gpus) and ending == set(held.holders)


def fence_foreign_memory(ctx: Context, measured: GroupId, held: GpuHeld) -> bool:
    """Fence the GPUs and return True if all memory there is certainly of foreign processes: then the group that was measured is well."""
    if not held.gpus or not set(held.gpus) <= set(held.strangers):
        return False
    for gpu in held.gpus:
        ctx.leases.fence(gpu, f"held by something that is not ours: {held.note}")
    ctx.note("warning", measured, f"GPUs {list(held.gpus)} are fenced: {held.note}")
    return True

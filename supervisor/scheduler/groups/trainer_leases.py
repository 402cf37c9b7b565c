"""A trainer's lease is asked for by rank 0, granted all or nothing, and ended when every rank has left. Which request comes next: `planning.reservations`."""

from supervisor.scheduler.context import STOPPING, Context
from supervisor.scheduler.planning.reservations import Request
from supervisor.scheduler.records import Grant, Pipeline
from supervisor.scheduler.spec import ROLE_PRIORITY, Priority
from trainers.protocol.trainer_messages import LeaseGranted, Refused


def request(ctx: Context, pipeline: Pipeline, call: int, roles: tuple[str, ...], *, exchange: bool) -> None:
    trainer = pipeline.trainer
    about = "exchange_lease" if exchange else "request_lease"
    refused = _why_no_lease(ctx, pipeline, roles, exchange=exchange)
    if refused is None and exchange:
        refused = _why_no_exchange(ctx, pipeline, roles)
    if refused is not None:
        ctx.tell(pipeline, Refused(about, call, *refused))
        return
    gpus = pipeline.spec.trainer.gpus(roles)
    priority = min(ROLE_PRIORITY.get(role, Priority.VALUE_COMPUTE) for role in roles)
    keeps = frozenset(trainer.grant.gpus) & frozenset(gpus) if trainer.grant is not None else frozenset()
    trainer.request = Request(pipeline.id, call, roles, gpus, priority, ctx.now, keeps)
    pipeline.figures.waits_since["lease"] = ctx.now
    if exchange and trainer.grant is not None:
        trainer.grant.give_up(gpu for gpu in trainer.grant.gpus if gpu not in keeps)
    if fenced := [gpu for gpu in gpus if ctx.leases.fenced(gpu)]:
        ctx.note("warning", trainer.id, f"waits for GPUs {fenced}, which are fenced: {ctx.leases.fenced(fenced[0])}")


def _why_no_lease(ctx: Context, pipeline: Pipeline, roles: tuple[str, ...], *, exchange: bool) -> tuple[str, str] | None:
    trainer = pipeline.trainer
    known = pipeline.spec.trainer.roles
    if ctx.stopping:
        return STOPPING
    if unknown := [role for role in roles if role not in known]:
        return ("unknown_role", f"no role {unknown[0]!r}; this trainer has {sorted(known)}")
    if trainer.request is not None or (trainer.grant is not None and not exchange):
        held = trainer.grant.roles if trainer.grant is not None else ()
        return ("nested_lease", f"this trainer holds or awaits a lease already ({', '.join(held)}); end it, or use lease.become()")
    if exchange and (trainer.grant is None or trainer.grant.leaving is not None):
        return ("out_of_order", "there is no lease to exchange")
    return None


def _why_no_exchange(ctx: Context, pipeline: Pipeline, roles: tuple[str, ...]) -> tuple[str, str] | None:
    """An exchange keeps common GPUs while it waits for the others; waiting for another trainer's could wait for ever."""
    for gpu in pipeline.spec.trainer.gpus(roles):
        lease = ctx.leases.lease(gpu)
        if lease is not None and lease.priority is not Priority.ROLLOUT and lease.holder != pipeline.trainer.id:
            return ("would_wait", f"GPU {gpu} is held by {lease.holder}; nothing was released")
    return None


def grant(ctx: Context, pipeline: Pipeline, request: Request) -> None:
    """All GPUs of the request are free and measured empty: they are the trainer's, and every rank is told."""
    trainer = pipeline.trainer
    fresh = [gpu for gpu in request.gpus if gpu not in request.keeps]
    ctx.leases.grant(fresh, trainer.id, request.priority, trainer.incarnation)
    ctx.leases.reassign(request.keeps, trainer.id, request.priority)
    before = trainer.grant
    trainer.request = None
    trainer.grant = Grant(request.call, request.roles, request.gpus, request.priority, ctx.now)
    if before is not None:  # an exchange: what it gives up is measured yet
        trainer.grant.leaving_gpus, trainer.grant.measure = before.leaving_gpus, before.measure
    ctx.count_wait(pipeline, "lease")
    ctx.tell(pipeline, LeaseGranted(request.call, request.roles))


def offloaded(ctx: Context, pipeline: Pipeline, rank: int, call: int) -> None:
    trainer = pipeline.trainer
    lease = trainer.grant
    if lease is None or lease.call != call:
        ctx.note("warning", trainer.id, f"rank {rank} leaves lease {call}, which it does not hold; nothing changes")
        return
    lease.offloaded.add(rank)
    if len(lease.offloaded) == trainer.world_size and lease.leaving is None:
        lease.leaving = ctx.now
        if (waiting := trainer.request) is not None:
            trainer.request = None
            reason = f"lease {call}, to be exchanged, was left meanwhile"
            ctx.tell(pipeline, Refused("exchange_lease", waiting.call, "out_of_order", reason))

"""This module says what a trainer waits for, in an operator's words: who has it, when it comes, or what to do."""

from collections.abc import Iterable

from engines.lifecycle.state import EngineState
from supervisor.scheduler.leases import LeaseBook
from supervisor.scheduler.records import Engine, Pipeline
from supervisor.scheduler.spec import ROLE_PRIORITY, Priority
from trainers.protocol.ids import GpuId

_COMING = (EngineState.STARTING, EngineState.WAKING, EngineState.LOADING)
_LOST = (EngineState.RETIRED, EngineState.STUCK)
_SPELT = {Priority.OLD_LOG_PROBS: "old log-probs", Priority.REFERENCE_LOG_PROBS: "reference log-probs"}


def priority_words(priority: Priority) -> str:
    """Return a priority as people call it: `actor training`."""
    return _SPELT.get(priority, priority.name.lower().replace("_", " "))


def role_words(role: str) -> str:
    """Return what a lease's role is called: `train` is actor training."""
    return priority_words(ROLE_PRIORITY[role]) if role in ROLE_PRIORITY else role


def soon(at: float, now: float) -> str:
    """Say when a group is started again; "" when it is due."""
    return f"starts again in {at - now:.0f} s" if at - now >= 0.5 else ""


def trainer_waits_for(pipeline: Pipeline, leases: LeaseBook, now: float) -> str | None:
    """Say what the trainer waits for; None when it waits for nothing but its own work."""
    request = pipeline.trainer.request
    if request is not None:
        withheld = [f"GPU {gpu}: {who}" for gpu in request.gpus if (who := _who_has(pipeline, leases, gpu))]
        what = f"its lease for {', '.join(map(role_words, request.roles))} on {_gpus(request.gpus)}"
        return what + (f" ({', '.join(withheld)})" if withheld else "")
    if "rollout" in pipeline.figures.waits_since:
        return missing_engine(pipeline, leases, now)
    return None


def missing_engine(pipeline: Pipeline, leases: LeaseBook, now: float) -> str:
    """Say why no engine of the pipeline is routable."""
    engines = list(pipeline.engines.values())
    able = [engine for engine in engines if engine.state not in _LOST]
    if not able:
        return f"an engine, and all of them are retired or stuck: `bin/supervise reset {pipeline.id}`"
    if pipeline.suspended or all(engine.held for engine in able):
        how = "drained" if all(engine.drained for engine in able) else "paused"
        which = pipeline.id if pipeline.suspended else str(able[0].id)
        return f"an engine, {how} by the operator: `bin/supervise resume {which}`"
    free = [engine for engine in able if not engine.held]
    for engine in free:
        if engine.state in _COMING:
            return f"an engine: {engine.id} is {engine.state.value}"
    for engine in free:
        if engine.state is EngineState.QUARANTINED:
            return f"an engine: {engine.id} has failed and is being ended"
    backoff = [engine for engine in free if engine.state is EngineState.COLD and soon(engine.not_before, now)]
    if len(backoff) == len(free):
        first = min(backoff, key=lambda engine: engine.not_before)
        return f"an engine: {first.id} has failed, and {soon(first.not_before, now)}"
    return "an engine" + _whose_gpus(pipeline, free, leases)


def _whose_gpus(pipeline: Pipeline, engines: Iterable[Engine], leases: LeaseBook) -> str:
    """Say who has the GPUs of these engines."""
    gpus = sorted({gpu for engine in engines for gpu in engine.gpus})
    whose = [
        f"GPU {gpu}: {lease.holder}" for gpu in gpus if (lease := leases.lease(gpu)) is not None and lease.holder.pipeline != pipeline.id
    ]
    return f" ({', '.join(whose)})" if whose else ""


def _gpus(gpus: Iterable[GpuId]) -> str:
    names = list(map(str, gpus))
    return f"GPU{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _who_has(pipeline: Pipeline, leases: LeaseBook, gpu: GpuId) -> str:
    """Say who else has a GPU that this trainer waits for, or why it is withheld."""
    if (fence := leases.fenced(gpu)) is not None:
        return f"fenced, {fence}"
    lease = leases.lease(gpu)
    return "" if lease is None or lease.holder == pipeline.trainer.id else str(lease.holder)

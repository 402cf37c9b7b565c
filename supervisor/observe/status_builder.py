"""This module fills a status from the scheduler's records and a measurement."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from engines.lifecycle.state import EngineState
from supervisor.host.gpus.emptiness import Usage
from supervisor.host.gpus.meter import Gpu
from supervisor.observe.status import EngineView, FailureView, GatewayView, GpuView, PipelineView, Status, TrainerView
from supervisor.observe.waiting_reasons import missing_engine, role_words, soon, trainer_waits_for
from supervisor.scheduler import Scheduler
from supervisor.scheduler.leases import LeaseBook
from supervisor.scheduler.records import Engine, Gateway, Pipeline, Trainer, TrainerState
from trainers.protocol.ids import GpuId, PipelineId

_UNWELL = (EngineState.COLD, EngineState.QUARANTINED, EngineState.STUCK, EngineState.RETIRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What the status says of a run that does not change while it goes on. `started_at` is in seconds since the epoch.

    `unmeasured` are GPUs of which nobody can say how much is used; `urls` are the gateways'.
    """

    run: str
    started_at: float
    gpus: tuple[Gpu, ...]
    unmeasured: frozenset[GpuId]
    urls: Mapping[PipelineId, str]


def build_status(constants: Constants, scheduler: Scheduler, usage: Usage | None, *, uptime_s: float) -> Status:
    """Return the state of the run at this moment. `usage` is what was measured just now; None where nothing was."""
    leases = scheduler.leases
    now = time.monotonic()  # the clock of the scheduler's events
    gpus = []
    for gpu in constants.gpus:
        lease = leases.lease(gpu.id)
        seen = usage if gpu.id not in constants.unmeasured else None
        gpus.append(
            GpuView(
                id=gpu.id,
                name=gpu.name,
                holder=str(lease.holder) if lease is not None else None,
                priority=lease.priority.name.lower() if lease is not None else None,
                used_bytes=seen.total.get(gpu.id) if seen is not None else None,
                total_bytes=gpu.total_bytes,
                held_bytes=_held(seen, gpu.id),
                fenced=leases.fenced(gpu.id),
            )
        )
    pipelines = tuple(_pipeline(pipeline, constants.urls.get(pipeline.id, ""), leases, now) for pipeline in scheduler.pipelines.values())
    return Status(
        run=constants.run,
        started_at=constants.started_at,
        uptime_s=uptime_s,
        stopping=bool(scheduler.stopping),
        gpus=tuple(gpus),
        pipelines=pipelines,
    )


def _held(usage: Usage | None, gpu: GpuId) -> dict[str, int]:
    """Return the bytes that each group of ours holds there, the largest first."""
    if usage is None:
        return {}
    groups = usage.by_group.get(gpu, {})
    return {str(group): held for group, held in sorted(groups.items(), key=lambda item: (-item[1], str(item[0]))) if held}


def _pipeline(pipeline: Pipeline, url: str, leases: LeaseBook, now: float) -> PipelineView:
    figures, trainer = pipeline.figures, pipeline.trainer
    rollouts = list(pipeline.rollouts.values())
    waits = trainer_waits_for(pipeline, leases, now)
    return PipelineView(
        name=pipeline.id,
        state=_state(pipeline),
        why=pipeline.failed,
        step=trainer.steps_done,
        steps=pipeline.spec.steps,
        samples_done=sum(rollout.finished for rollout in rollouts),
        target=sum(rollout.target for rollout in rollouts),
        reward=figures.rewards[-1] if figures.rewards else None,
        first_reward=figures.rewards[0] if figures.rewards else None,
        weight_version=pipeline.published,
        engines_awake=sum(engine.state is EngineState.SERVING for engine in pipeline.engines.values()),
        restarts=trainer.restarts + sum(engine.restarts for engine in pipeline.engines.values()),
        waits_for=waits or (missing_engine(pipeline, leases, now) if pipeline.rollouts and not pipeline.routable else None),
        engines=tuple(_engine(engine, now) for engine in pipeline.engines.values()),
        trainer=TrainerView(
            state=trainer.state.value,
            incarnation=trainer.incarnation,
            pids=trainer.pids,
            gpus=leases.held_by(trainer.id),
            holds=trainer.grant.roles if trainer.grant is not None else (),
            waits_for=waits,
            restarts=trainer.restarts,
            note=soon(trainer.not_before, now) if trainer.state is TrainerState.COLD and trainer.restarts else "",
            failure=_failure(trainer, trainer.state in (TrainerState.RUNNING, TrainerState.FINISHED), now),
        ),
        gateway=_gateway(pipeline.gateway, url, now),
    )


def _state(pipeline: Pipeline) -> str:
    if pipeline.failed:
        return "failed"
    if pipeline.model_op is not None:
        return "preparing its model"
    if pipeline.trainer.state is not TrainerState.RUNNING:
        return str(pipeline.trainer.state.value)
    if pipeline.trainer.grant is not None:
        roles = pipeline.trainer.grant.roles
        return "training" if "train" in roles else ", ".join(map(role_words, roles))
    if pipeline.suspended:
        return "paused"
    return "rolling out" if pipeline.rollouts else "running"


def _engine(engine: Engine, now: float) -> EngineView:
    well = engine.fault is None and engine.state not in _UNWELL
    held = "drained by the operator" if engine.drained else "paused by the operator" if engine.held else ""
    reset = f"`bin/supervise reset {engine.id}` gives it a new restart budget" if engine.state is EngineState.RETIRED else ""
    stuck = f"its GPUs are withheld: {engine.note}" if engine.state is EngineState.STUCK else ""
    backoff = soon(engine.not_before, now) if engine.state is EngineState.COLD else ""
    return EngineView(
        rank=engine.id.rank,
        state=engine.state.value,
        incarnation=engine.incarnation,
        pids=engine.pids,
        gpus=engine.gpus,
        version=engine.version,
        in_flight=engine.in_flight,
        restarts=engine.restarts,
        note="; ".join(filter(None, (held, reset, stuck, backoff))),
        failure=_failure(engine, well, now),
    )


def _gateway(gateway: Gateway, url: str, now: float) -> GatewayView:
    return GatewayView(
        url=url,
        incarnation=gateway.incarnation,
        pid=gateway.pids[0] if gateway.pids else None,
        state=gateway.state,
        failure=_failure(gateway, gateway.up, now),
    )


def _failure(group: Engine | Trainer | Gateway, well: bool, now: float) -> FailureView | None:
    if group.failed_at is None:
        return None
    return FailureView(reason=group.note, ago_s=round(max(0.0, now - group.failed_at), 3), over=well, asked=group.by_operator)

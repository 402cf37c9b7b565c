"""The scheduler's records as `status` and the summary show them."""

from engines.ids import GpuId
from engines.state import EngineState
from supervisor.runtime import unmeasured
from supervisor.runtime.memory import Memory
from supervisor.runtime.site import Site
from supervisor.runtime.snapshot import EngineView, GatewayView, GpuView, PipelineView, Snapshot, TrainerView
from supervisor.runtime.summary import PipelineSummary
from supervisor.scheduler import Scheduler
from supervisor.scheduler.fleet import Engine, Pipeline, TrainerState
from supervisor.scheduler.leases import LeaseBook


def snapshot(site: Site, scheduler: Scheduler, memory: Memory, *, started_at: float, uptime_s: float) -> Snapshot:
    """The state of the run at this moment. `started_at` in seconds since the epoch."""
    leases = scheduler.desk.leases
    gpus = []
    blind = unmeasured.gpus(site.config)
    for gpu in site.meter.gpus:
        lease = leases.lease(gpu.id)
        gpus.append(
            GpuView(
                id=gpu.id,
                name=gpu.name,
                holder=str(lease.holder) if lease is not None else None,
                priority=lease.priority.name.lower() if lease is not None else None,
                used_bytes=memory.last.total.get(gpu.id) if memory.last is not None and gpu.id not in blind else None,
                fenced=leases.fenced(gpu.id),
            )
        )
    pipelines = tuple(_pipeline(site, pipeline, leases) for pipeline in scheduler.desk.fleet.pipelines.values())
    return Snapshot(
        run=site.directory.run_id,
        started_at=started_at,
        uptime_s=uptime_s,
        stopping=bool(scheduler.desk.stopping),
        gpus=tuple(gpus),
        pipelines=pipelines,
    )


def _pipeline(site: Site, pipeline: Pipeline, leases: LeaseBook) -> PipelineView:
    figures, trainer = pipeline.figures, pipeline.trainer
    rollouts = list(pipeline.rollouts.values())
    return PipelineView(
        name=pipeline.id,
        state=pipeline.failed or _state(pipeline),
        step=trainer.steps_done,
        steps=site.pipeline(pipeline.id).trainer.steps,
        samples_done=sum(rollout.before + rollout.done for rollout in rollouts),
        target=sum(rollout.target for rollout in rollouts),
        reward=figures.rewards[-1] if figures.rewards else None,
        first_reward=figures.rewards[0] if figures.rewards else None,
        weight_version=pipeline.published,
        engines_awake=sum(engine.state is EngineState.SERVING for engine in pipeline.engines.values()),
        restarts=trainer.restarts + sum(engine.restarts for engine in pipeline.engines.values()),
        waits_for=_waits_for(pipeline, leases),
        engines=tuple(_engine(engine) for engine in pipeline.engines.values()),
        trainer=TrainerView(
            state=trainer.state.value,
            incarnation=trainer.incarnation,
            pids=trainer.pids,
            holds=trainer.grant.roles if trainer.grant is not None else (),
            waits_for=_trainer_waits_for(pipeline, leases),
        ),
        gateway=GatewayView(
            url=site.urls.get(pipeline.id, ""),
            incarnation=pipeline.gateway.incarnation,
            pid=pipeline.gateway.pids[0] if pipeline.gateway.pids else None,
        ),
    )


def _state(pipeline: Pipeline) -> str:
    if pipeline.model_op is not None:
        return "preparing its model"
    if pipeline.trainer.state is not TrainerState.RUNNING:
        return str(pipeline.trainer.state.value)
    if pipeline.trainer.grant is not None:
        return "training" if "train" in pipeline.trainer.grant.roles else "/".join(pipeline.trainer.grant.roles)
    return "rolling out" if pipeline.rollouts else "running"


def _waits_for(pipeline: Pipeline, leases: LeaseBook) -> str | None:
    if (waiting := _trainer_waits_for(pipeline, leases)) is not None:
        return waiting
    if pipeline.rollouts and not pipeline.routable:
        return "an engine"
    return None


def _trainer_waits_for(pipeline: Pipeline, leases: LeaseBook) -> str | None:
    trainer = pipeline.trainer
    if trainer.request is not None:
        withheld = [f"{gpu}: {who}" for gpu in trainer.request.gpus if (who := _holder(pipeline, leases, gpu))]
        what = f"lease {', '.join(trainer.request.roles)} on GPUs {', '.join(map(str, trainer.request.gpus))}"
        return what + (f" ({'; '.join(withheld)})" if withheld else "")
    if "rollout" in pipeline.figures.waits_since:
        return "a routable engine"
    return None


def _holder(pipeline: Pipeline, leases: LeaseBook, gpu: GpuId) -> str:
    """Who else has a GPU that this trainer waits for, or why it is withheld."""
    if (fence := leases.fenced(gpu)) is not None:
        return f"fenced, {fence}"
    lease = leases.lease(gpu)
    return "" if lease is None or lease.holder == pipeline.trainer.id else f"held by {lease.holder}"


def _engine(engine: Engine) -> EngineView:
    return EngineView(
        rank=engine.id.rank,
        state=engine.state.value,
        incarnation=engine.incarnation,
        pids=engine.pids,
        gpus=engine.gpus,
        version=engine.version,
        in_flight=engine.in_flight,
        restarts=engine.restarts,
        note=_note(engine),
    )


def _note(engine: Engine) -> str:
    held = "drained by the operator" if engine.drained else "paused by the operator" if engine.held else ""
    return "; ".join(filter(None, (held, engine.note)))


def pipeline_summary(pipeline: Pipeline) -> PipelineSummary:
    """What is left to say of it."""
    figures = pipeline.figures
    return PipelineSummary(
        steps=pipeline.trainer.steps_done,
        samples=figures.samples,
        first_reward=figures.rewards[0] if figures.rewards else None,
        last_reward=figures.rewards[-1] if figures.rewards else None,
        weight_version=pipeline.published,
        pauses=sum(engine.pauses for engine in pipeline.engines.values()),
        resumes=sum(engine.wakes for engine in pipeline.engines.values()),
        restarts=pipeline.trainer.restarts + sum(engine.restarts for engine in pipeline.engines.values()),
        waited_s=round(figures.waited, 3),
    )

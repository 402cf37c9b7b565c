"""An operator asks for something of one pipeline or group (`apply`), or stops the run (`stop`).

`refusal` says in words what cannot be asked, `preview` what a request will do.
"""

from collections.abc import Iterator
from typing import assert_never

from engines.lifecycle.state import EngineState, Transition
from trainers.protocol.ids import EngineId, GroupId, PipelineId

from .actions import StopGroup
from .context import Context
from .events import OperatorAsked
from .faults import BY_OPERATOR, Cause
from .groups import engines, gateways, trainers
from .records import Engine, Gateway, Pipeline, Trainer, TrainerState, TrainerTransition

_LIVES = (TrainerState.STARTING, TrainerState.RUNNING)
_HELD = ("pause", "drain", "resume")
_PARTS = ("restart", "reset")


def refusal(ctx: Context, event: OperatorAsked) -> str:
    """Return why that cannot be asked at all; empty when it can."""
    pipelines = ctx.fleet.pipelines
    if event.pipeline not in pipelines:
        return f"there is no pipeline {event.pipeline}; this run has {', '.join(pipelines)}"
    pipeline = pipelines[event.pipeline]
    if event.rank is not None and event.rank not in pipeline.engines:
        return f"{event.pipeline} has no engine {event.rank}; it has {', '.join(str(engine.id) for engine in pipeline.engines.values())}"
    if event.part and event.verb not in _PARTS:
        more = f"; to end the pipeline: stop {event.pipeline}" if event.verb == "stop" else ""
        return f"{event.verb} is for {'pipelines' if event.verb == 'stop' else 'engines and pipelines'}, not for a {event.part}{more}"
    if event.verb == "stop" and event.rank is not None:
        engine = EngineId(event.pipeline, event.rank)
        return f"stop is for pipelines. To take {engine} off its GPUs: pause {engine}, or drain {engine} to end its processes, too"
    return ""


def preview(ctx: Context, event: OperatorAsked) -> list[tuple[GroupId | PipelineId, str]]:
    """Return what the request will do to whom, in the order in which people read it, also where that is nothing. It must not be refused."""
    pipeline = ctx.fleet.pipelines[event.pipeline]
    if event.verb == "stop":
        return [(pipeline.id, _preview_stop(pipeline))]
    lines: list[tuple[GroupId | PipelineId, str]] = []
    if event.rank is None and event.verb in _HELD:
        lines.append((pipeline.id, _preview_suspend(pipeline, event.verb)))
    if event.part == "trainer" or (event.rank is None and event.verb in _PARTS and not event.part):
        trainer = pipeline.trainer
        lines.append((trainer.id, _preview_trainer_restart(pipeline) if event.verb == "restart" else _preview_trainer_reset(trainer)))
    if event.part == "gateway":
        lines.append((pipeline.gateway.id, _preview_gateway(pipeline, event.verb)))
    for engine in _engines(pipeline, event):
        lines.append((engine.id, _preview_engine(pipeline, engine, event)))
    return lines


def _engines(pipeline: Pipeline, event: OperatorAsked) -> Iterator[Engine]:
    """Yield the engines that are meant."""
    if event.rank is not None:
        yield pipeline.engines[event.rank]
    elif not event.part and event.verb in (*_HELD, "reset"):
        yield from pipeline.engines.values()


def _preview_engine(pipeline: Pipeline, engine: Engine, event: OperatorAsked) -> str:
    is_ = engine.state.value
    match event.verb:
        case "pause":
            return _preview_pause(engine)
        case "drain" if engine.drained:
            return "drained already" if engine.state in (EngineState.COLD, EngineState.RETIRED) else f"{is_}: it is being drained already"
        case "drain":
            return f"{is_}: no process of it will be left until `resume`" if not _dead(engine) else _until(is_, "started")
        case "resume" if not engine.held:
            return f"nothing to resume: it is {is_}"
        case "resume" if event.rank is not None and pipeline.suspended:
            return f"resumed; {pipeline.id} as a whole is paused yet: resume {pipeline.id}"
        case "resume":
            return f"{is_}: may serve again when the plan wants it" + (" (it is retired: reset it)" if _retired(engine) else "")
        case "restart":
            return _preview_restart(engine)
        case _:
            return _preview_reset(engine)


def _dead(engine: Engine) -> bool:
    return engine.state in (EngineState.COLD, EngineState.RETIRED, EngineState.QUARANTINED, EngineState.STUCK, EngineState.STOPPING)


def _retired(engine: Engine) -> bool:
    return engine.state is EngineState.RETIRED


def _until(is_: str, what: str) -> str:
    return f"{is_}: will not be {what} until `resume`"


def _preview_pause(engine: Engine) -> str:
    is_ = engine.state.value
    if engine.held:
        what = "drained" if engine.drained else "paused"
        return f"{what} already" if engine.rests else f"{is_}: it is being {what} already"
    if engine.state is EngineState.PAUSED:
        return _until("asleep", "woken")
    if _dead(engine):
        return _until(is_, "started")
    if engine.state in (EngineState.DRAINING, EngineState.PAUSING):
        return f"{is_}: stays paused until `resume`"
    return f"{is_}: will be paused"


def _preview_restart(engine: Engine) -> str:
    is_ = engine.state.value
    match engine.state:
        case EngineState.COLD:
            return "nothing to restart: it has no process"
        case EngineState.RETIRED:
            return f"nothing to restart: it is retired ({engine.note}); reset {engine.id} gives it a new restart budget"
        case EngineState.QUARANTINED | EngineState.STUCK | EngineState.STOPPING:
            return f"nothing to restart: it is {is_}, its processes are being ended"
        case _:
            if engine.held:
                return f"{is_}: will be ended, and not started again until `resume`"
            asleep = engine.state in (EngineState.PAUSED, EngineState.PAUSING)
            return f"{is_}: will be ended, and started again when it is needed" if asleep else f"{is_}: will be restarted"


def _preview_reset(engine: Engine) -> str:
    if _retired(engine):
        return "retired: may be started again, with a new restart budget"
    spent = len(engine.budget.failures)
    if spent:
        return f"{engine.state.value}: its restart budget is whole again ({spent} of {engine.budget.limit} were spent)"
    return f"nothing to reset: it is {engine.state.value}"


def _preview_trainer_reset(trainer: Trainer) -> str:
    if trainer.state is TrainerState.RETIRED:
        return "retired: will be started again from its last checkpoint, with a new restart budget"
    return f"nothing to reset: it is {trainer.state.value}"


def _preview_trainer_restart(pipeline: Pipeline) -> str:
    trainer = pipeline.trainer
    if trainer.state in _LIVES:
        return f"{trainer.state.value}: will be restarted from step {trainer.steps_done}, its last checkpoint"
    if trainer.state is TrainerState.RETIRED:
        return f"nothing to restart: it is retired; reset {pipeline.id} gives it a new restart budget"
    return f"nothing to restart: it is {trainer.state.value}"


def _preview_gateway(pipeline: Pipeline, verb: str) -> str:
    gateway = pipeline.gateway
    state = "being replaced" if gateway.dying and not gateway.up else gateway.state
    if verb == "reset":
        return f"nothing to reset: it is {state}"
    if gateway.up or (gateway.op is not None and not gateway.dying):
        return f"{state}: will be replaced, at the same URL"
    return f"nothing to restart: it is {state}"


def _preview_suspend(pipeline: Pipeline, verb: str) -> str:
    trainer = pipeline.trainer.state.value
    if pipeline.ended:
        return f"its trainer is {trainer}: no engine will be wanted"
    if verb == "resume":
        return "resumed" if pipeline.suspended else "nothing to resume: it is not paused as a whole"
    if pipeline.suspended:
        return "paused already"
    return (
        f"will be {'drained' if verb == 'drain' else 'paused'}; its trainer ({trainer}) is not stopped, and waits when it wants a rollout"
    )


def _preview_stop(pipeline: Pipeline) -> str:
    state = pipeline.trainer.state
    if state in (TrainerState.FINISHED, TrainerState.STOPPING):
        return f"nothing to stop: its trainer is {state.value}"
    return f"{state.value}: will be stopped; nothing of it is started again in this run"


def apply(ctx: Context, event: OperatorAsked) -> None:
    """Do what the operator asks for. The same request twice changes nothing more, but a `restart` of what is up again restarts it again."""
    if (why := refusal(ctx, event)) != "":
        ctx.note("warning", event.pipeline, f"operator: {event.verb}: refused: {why}")
        return
    for about, what in preview(ctx, event):
        ctx.note("warning", about, f"operator: {event.verb}: {what}")
    pipeline = ctx.fleet.pipelines[event.pipeline]
    chosen = list(_engines(pipeline, event))
    match event.verb:
        case "pause" | "drain" | "resume":
            for engine in chosen:
                engine.held = event.verb != "resume"
                engine.drained = event.verb == "drain" or (engine.drained and event.verb == "pause")
            if event.rank is None:
                pipeline.suspended = event.verb != "resume"
        case "restart" if event.part == "gateway":
            gateways.fail(ctx, pipeline, BY_OPERATOR, by_operator=True)
        case "restart" if event.rank is None:
            trainers.fail(ctx, pipeline, BY_OPERATOR, by_operator=True)
        case "restart":
            engines.fail(ctx, chosen[0], Cause.OPERATOR, BY_OPERATOR)
        case "reset":
            _reset(ctx, pipeline, chosen, event)
        case "stop":
            trainers.stop(ctx, pipeline)
        case _:
            assert_never(event.verb)


def _reset(ctx: Context, pipeline: Pipeline, chosen: list[Engine], event: OperatorAsked) -> None:
    for engine in chosen:
        engine.budget.reset()
        engine.not_before = ctx.now
        if engine.state is EngineState.RETIRED:
            engine.transition(Transition.RESET, ctx.now)
    if event.rank is None and event.part != "gateway" and pipeline.trainer.state is TrainerState.RETIRED:
        pipeline.trainer.budget.reset()
        pipeline.trainer.transition(TrainerTransition.RESET)
        pipeline.failed = ""


def stop(ctx: Context, level: int) -> None:
    """Stop the whole run: level 1 gracefully, 2 without draining, 3 by KILL. A lower level than before changes nothing."""
    if level > ctx.stopping:
        if not ctx.stopping:
            ctx.stop_at = ctx.now + ctx.box.limits.told
        ctx.stopping = level
        for pipeline in ctx.fleet.pipelines.values():
            trainers.stop(ctx, pipeline)
        if level >= 3:
            _hurry(ctx)


def _hurry(ctx: Context) -> None:
    """Teardowns that wait for a graceful exit begin again: the next `step` asks for KILL."""
    patient = {awaited.action.id for awaited in ctx.inflight.awaited if isinstance(awaited.action, StopGroup) and not awaited.action.kill}
    for pipeline in ctx.fleet.pipelines.values():
        groups_of_it: list[Engine | Trainer | Gateway] = [pipeline.trainer, pipeline.gateway, *pipeline.engines.values()]
        for group in groups_of_it:
            if group.op in patient:
                ctx.inflight.forget(group.op)
                group.op = None

"""What an operator asks for: one pipeline or engine (`asked`), or an end of it all (`stop`)."""

from engines.state import EngineState, Turn

from . import gateways, groups, trainers
from .actions import StopGroup
from .desk import Desk
from .events import OperatorAsked
from .faults import Cause
from .fleet import Engine, Gateway, Trainer, TrainerState, TrainerTurn


def asked(desk: Desk, event: OperatorAsked) -> None:
    """Each request may come twice and then changes nothing."""
    pipeline = desk.fleet.pipelines[event.pipeline]
    chosen = [pipeline.engines[event.rank]] if event.rank is not None else list(pipeline.engines.values())
    of = event.pipeline if event.rank is None else chosen[0].id
    desk.note("warning", of, f"operator: {event.verb}{' ' + event.part if event.part else ''}")
    match event.verb:
        case "pause" | "drain" | "resume":
            for engine in chosen:
                engine.held = event.verb != "resume"
                engine.drained = event.verb == "drain" or (engine.drained and event.verb == "pause")
            if event.rank is None:
                pipeline.suspended = event.verb != "resume"
        case "restart" if event.part == "gateway":
            gateways.fail(desk, pipeline, "restarted by the operator")
        case "restart" if event.rank is None:
            trainers.fail(desk, pipeline, "restarted by the operator")
        case "restart":
            groups.fail(desk, chosen[0], Cause.OPERATOR, "restarted by the operator")
        case "reset":
            for engine in chosen:
                engine.budget.reset()
                engine.not_before = desk.now
                if engine.state is EngineState.RETIRED:
                    engine.turn(Turn.RESET, desk.now)
            if event.rank is None and pipeline.trainer.state is TrainerState.RETIRED:
                pipeline.trainer.budget.reset()
                pipeline.trainer.turn(TrainerTurn.RESET)
                pipeline.failed = ""
        case "stop":
            trainers.stop(desk, pipeline)
        case _:
            desk.note("warning", pipeline.id, f"no such operation: {event.verb}")


def stop(desk: Desk, level: int) -> None:
    """The whole run is to end; a higher level is less patient."""
    if level > desk.stopping:
        if not desk.stopping:
            desk.stop_at = desk.now + desk.box.limits.grace
        desk.stopping = level
        for pipeline in desk.fleet.pipelines.values():
            trainers.stop(desk, pipeline)
        if level >= 3:
            _hurry(desk)


def _hurry(desk: Desk) -> None:
    """Ends that are being waited for with patience begin again without: `step` asks for KILL now."""
    patient = {awaited.action.id for awaited in desk.inflight.awaited if isinstance(awaited.action, StopGroup) and not awaited.action.kill}
    for pipeline in desk.fleet.pipelines.values():
        groups_of_it: list[Engine | Trainer | Gateway] = [pipeline.trainer, pipeline.gateway, *pipeline.engines.values()]
        for group in groups_of_it:
            if group.op in patient:
                desk.inflight.forget(group.op)
                group.op = None

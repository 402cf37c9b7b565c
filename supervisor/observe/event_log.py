"""What happened, in the supervisor's log: decisions and their outcomes in an operator's words, one line each.

At level info is what a person acts on: starts, steps, failures, recoveries, ends. Every state, lease and rollout is at debug.

Every record says whom it is about by the same fields: `pipeline`, then `engine` or `group` (trainer, gateway), then `incarnation`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action, StartTrainer, TellTrainer
from supervisor.scheduler.context import About
from supervisor.scheduler.events import ActionFailed, Event, GatewayReady, MemberExited, TrainerSaid
from supervisor.scheduler.faults import Cause, Fault
from trainers.protocol import trainer_messages as say
from trainers.protocol.ids import EngineId, GatewayId, GroupId, Incarnation, PipelineId, TrainerId

if TYPE_CHECKING:
    import structlog

_REMEMBERED: Final = 4096
"""Actions without an answer whose group is known; an order to a gateway that died is never answered."""
_RESERVED = frozenset(["event", "level", "timestamp", "run", "pipeline", "engine", "group", "incarnation", "step"])
"""Names of a log record of ours that a trainer's figures cannot take."""


def log_for(
    log: "structlog.typing.FilteringBoundLogger", group: GroupId, incarnation: Incarnation
) -> "structlog.typing.FilteringBoundLogger":
    """Returns the log of one incarnation of a group, whose records say whom they are about."""
    if isinstance(group, EngineId):
        return log.bind(pipeline=group.pipeline, engine=group.rank, incarnation=incarnation)
    part = "gateway" if isinstance(group, GatewayId) else "trainer"
    return log.bind(pipeline=group.pipeline, group=part, incarnation=incarnation)


class EventLog:
    """Compares the scheduler's records with what they were, and logs what is new."""

    def __init__(self, log: "structlog.typing.FilteringBoundLogger") -> None:
        self._run_log = log
        self._states: dict[EngineId, str] = {}
        self._trainers: dict[PipelineId, str] = {}
        self._asked: dict[int, Action] = {}

    def observe(self, event: Event, actions: Sequence[Action], scheduler: Scheduler, now: float) -> None:
        """Logs one event and what it has led to."""
        match event:
            case TrainerSaid():
                self._trainer_said(event)
            case MemberExited(group=group, incarnation=incarnation, member=member, code=code):
                log_for(self._run_log, group, incarnation).debug("member exited", member=member, code=code)
            case ActionFailed(id=id, reason=reason) if (action := self._asked.get(id)) is not None:
                self._log(scheduler, action.subject, getattr(action, "incarnation", None)).warning(
                    "action failed", action=type(action).__name__, reason=reason
                )
            case ActionFailed(id=id, reason=reason):
                self._run_log.warning("action failed", id=id, reason=reason)
            case GatewayReady(id=id, pids=pids) if (action := self._asked.get(id)) is not None:
                self._log(scheduler, action.subject).debug("gateway is serving", pid=pids[0] if pids else None)
            case _:
                pass
        self._asked.pop(getattr(event, "id", 0), None)
        for level, about, what in scheduler.notes:
            getattr(self._log(scheduler, about), level)(what)
        for action in actions:
            self._begun(action)
        self._compare(scheduler)
        for word, fault in scheduler.fault_changes:
            self._fault_changed(scheduler, word, fault)

    def _log(
        self, scheduler: Scheduler, about: About | None, incarnation: Incarnation | None = None
    ) -> "structlog.typing.FilteringBoundLogger":
        """The log of a group's life (the present one), of a pipeline, of a GPU; of the run for nobody."""
        if about is None:
            return self._run_log
        if isinstance(about, str):
            return self._run_log.bind(pipeline=about)
        if isinstance(about, int):
            return self._run_log.bind(gpu=about)
        return log_for(self._run_log, about, incarnation if incarnation is not None else scheduler.group(about).incarnation)

    def _trainer_said(self, event: TrainerSaid) -> None:
        log = log_for(self._run_log, TrainerId(event.pipeline), event.incarnation)
        match event.message:
            case say.Report(step=step, metrics=metrics):
                log.info("step done", step=step, **{name: value for name, value in metrics.items() if name not in _RESERVED})
            case say.OpenRollout(rollout=rollout, target=target):
                log.debug("rollout wanted", rollout=rollout, target=target)
            case say.RequestLease(roles=roles) | say.ExchangeLease(roles=roles):
                log.debug("lease wanted", roles=list(roles))
            case say.Checkpoint(step=step, path=path):
                log.debug("checkpoint", step=step, path=path)
            case _:
                pass

    def _begun(self, action: Action) -> None:
        self._asked[action.id] = action
        if len(self._asked) > _REMEMBERED:
            del self._asked[min(self._asked)]
        match action:
            case TellTrainer(pipeline=pipeline, incarnation=incarnation, message=message):
                log = log_for(self._run_log, TrainerId(pipeline), incarnation)
                match message:
                    case say.RolloutOpened(rollout=rollout):
                        log.debug("rollout open", rollout=rollout)
                    case say.RolloutClosed(rollout=rollout):
                        log.debug("rollout closed", rollout=rollout)
                    case say.LeaseGranted(roles=roles):
                        log.debug("lease granted", roles=list(roles))
                    case say.LeaseEnded():
                        log.debug("lease ended")
                    case say.Published(version=version):
                        log.debug("weights published", version=version)
                    case say.Refused(about=about, code=code, reason=reason):
                        log.warning("refused", about=about, code=code, reason=reason)
                    case _:
                        pass
            case StartTrainer(pipeline=pipeline, incarnation=incarnation, steps_done=steps_done):
                log_for(self._run_log, TrainerId(pipeline), incarnation).info("trainer starts", steps_done=steps_done)
            case _:
                pass

    def _compare(self, scheduler: Scheduler) -> None:
        for pipeline in scheduler.pipelines.values():
            state = pipeline.trainer.state.value
            if self._trainers.get(pipeline.id, "cold") != state:
                log = log_for(self._run_log, pipeline.trainer.id, pipeline.trainer.incarnation)
                log.debug("trainer is " + state, was=self._trainers.get(pipeline.id, "cold"))
            self._trainers[pipeline.id] = state
            for engine in pipeline.engines.values():
                before = self._states.get(engine.id, "cold")
                if before != engine.state.value:
                    log = log_for(self._run_log, engine.id, engine.incarnation)
                    log.debug("engine is " + engine.state.value, was=before, gpus=list(engine.gpus), version=engine.version)
                self._states[engine.id] = engine.state.value

    def _fault_changed(self, scheduler: Scheduler, word: str, fault: Fault) -> None:
        """A failure is logged twice: when it happens, and when it is over, with the time of each step."""
        log = log_for(self._run_log, fault.engine, fault.incarnation)
        if word != "failed":
            steps = {f"{step}_s": seconds for step, seconds in fault.seconds.items()}
            log.info(f"engine group: {word}", cause=fault.cause.value, attempt=fault.attempt, **steps)
            return
        write = log.warning if fault.cause is Cause.OPERATOR else log.error
        write(
            "engine group failed",
            cause=fault.cause.value,
            why=fault.reason,
            member=fault.member,
            collateral=list(fault.collateral),
            attempt=fault.attempt,
            silent_s=round(fault.silent, 3),
            gpus=list(scheduler.engine(fault.engine).gpus),
        )

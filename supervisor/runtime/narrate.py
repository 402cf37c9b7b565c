"""What happened, in the supervisor's log: decisions and their outcomes in an operator's words, one line each."""

from engines.ids import EngineId, PipelineId
from supervisor.runtime.site import Site
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action, StartTrainer, TellTrainer
from supervisor.scheduler.events import ActionFailed, Event, MemberExited, TrainerSaid
from supervisor.scheduler.faults import Cause, Fault
from supervisor.scheduler.fleet import Engine
from trainers import messages as say

_RESERVED = frozenset(["event", "level", "timestamp", "run", "pipeline", "engine", "group", "incarnation", "step"])
"""Names of a log record of ours that a trainer's figures cannot take."""


class Narrator:
    """Compares what is with what was, and says what is new."""

    def __init__(self, site: Site, scheduler: Scheduler) -> None:
        self._site = site
        self._scheduler = scheduler
        self._states: dict[EngineId, str] = {}
        self._trainers: dict[PipelineId, str] = {}
        self._faults: dict[EngineId, Fault] = {}

    def tell(self, event: Event, actions: list[Action], now: float) -> None:
        """After every event."""
        match event:
            case TrainerSaid():
                self._trainer_said(event)
            case MemberExited(group=group, incarnation=incarnation, member=member, code=code):
                self._site.group_log(group, incarnation).debug("member exited", member=member, code=code)
            case ActionFailed(id=id, reason=reason):
                self._site.log.warning("action failed", id=id, reason=reason)
            case _:
                pass
        for level, about, what in self._scheduler.desk.notes:
            getattr(self._site.log, level)(what, about=about)
        for action in actions:
            self._told(action)
        self._moved(now)

    def _trainer_said(self, event: TrainerSaid) -> None:
        log = self._site.log.bind(pipeline=event.pipeline, group="trainer", incarnation=event.incarnation)
        match event.message:
            case say.Report(step=step, metrics=metrics):
                log.info("step done", step=step, **{name: value for name, value in metrics.items() if name not in _RESERVED})
            case say.OpenRollout(rollout=rollout, target=target):
                log.info("rollout wanted", rollout=rollout, target=target)
            case say.RequestLease(roles=roles) | say.ExchangeLease(roles=roles):
                log.info("lease wanted", roles=list(roles))
            case say.Checkpoint(step=step, path=path):
                log.info("checkpoint", step=step, path=path)
            case _:
                pass

    def _told(self, action: Action) -> None:
        match action:
            case TellTrainer(pipeline=pipeline, incarnation=incarnation, message=message):
                log = self._site.log.bind(pipeline=pipeline, group="trainer", incarnation=incarnation)
                match message:
                    case say.RolloutOpened(rollout=rollout):
                        log.info("rollout open", rollout=rollout)
                    case say.RolloutClosed(rollout=rollout):
                        log.info("rollout closed", rollout=rollout)
                    case say.LeaseGranted(roles=roles):
                        log.info("lease granted", roles=list(roles))
                    case say.LeaseEnded():
                        log.info("lease ended")
                    case say.Published(version=version):
                        log.info("weights published", version=version)
                    case say.Refused(about=about, code=code, reason=reason):
                        log.warning("refused", about=about, code=code, reason=reason)
                    case _:
                        pass
            case StartTrainer(pipeline=pipeline, incarnation=incarnation, steps_done=steps_done):
                self._site.log.info("trainer starts", pipeline=pipeline, group="trainer", incarnation=incarnation, steps_done=steps_done)
            case _:
                pass

    def _moved(self, now: float) -> None:
        for pipeline in self._scheduler.desk.fleet.pipelines.values():
            state = pipeline.trainer.state.value
            if self._trainers.get(pipeline.id, "cold") != state:
                log = self._site.log.bind(pipeline=pipeline.id, group="trainer", incarnation=pipeline.trainer.incarnation)
                log.info("trainer is " + state, was=self._trainers.get(pipeline.id, "cold"))
            self._trainers[pipeline.id] = state
            for engine in pipeline.engines.values():
                before = self._states.get(engine.id, "cold")
                if before != engine.state.value:
                    log = self._site.group_log(engine.id, engine.incarnation)
                    log.info("engine is " + engine.state.value, was=before, gpus=list(engine.gpus), version=engine.version)
                self._states[engine.id] = engine.state.value
                self._faulty(engine)

    def _faulty(self, engine: Engine) -> None:
        """A failure is told twice: when it happens, and when it is over, with the time of each step."""
        known = self._faults.pop(engine.id, None)
        if known is not None and known is not engine.fault:
            log = self._site.group_log(engine.id, known.incarnation)
            steps = {f"{step}_s": seconds for step, seconds in known.seconds.items()}
            log.info("engine group: " + (known.outcome or "over"), cause=known.cause.value, attempt=known.attempt, **steps)
        if engine.fault is None:
            return
        self._faults[engine.id] = fault = engine.fault
        if fault is not known:
            log = self._site.group_log(engine.id, fault.incarnation)
            tell = log.warning if fault.cause is Cause.OPERATOR else log.error
            tell(
                "engine group failed",
                cause=fault.cause.value,
                why=fault.reason,
                member=fault.member,
                collateral=list(fault.collateral),
                attempt=fault.attempt,
                silent_s=round(fault.silent, 3),
                gpus=list(engine.gpus),
            )

"""What happened, in the supervisor's log: decisions and their outcomes in an operator's words, one line each."""

from engines.ids import EngineId, PipelineId
from supervisor.runtime.site import Site
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action, StartTrainer, TellTrainer
from supervisor.scheduler.events import ActionFailed, Event, MemberExited, TrainerSaid
from trainers import messages as say


class Narrator:
    """Compares what is with what was, and says what is new."""

    def __init__(self, site: Site, scheduler: Scheduler) -> None:
        self._site = site
        self._scheduler = scheduler
        self._states: dict[EngineId, str] = {}
        self._trainers: dict[PipelineId, str] = {}

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
                log.info("report", step=step, **{f"metric_{name}": value for name, value in metrics.items()})
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

"""This policy is the production scheduler: it gets the box's events, and its actions are carried out with the box's times.

Draining, pausing and measuring an engine take `sleep_s` together; waking it takes `wake_s`; everything else takes no time.
Engines have been started once before the first second, as `start = "eager"` does it.
"""

from collections import deque
from dataclasses import replace

from engines.lifecycle.state import EngineState
from supervisor.config.limits import limits
from supervisor.config.schema.tables import HealthTable
from supervisor.scheduler import Scheduler
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.spec import BoxSpec, EngineSpec, PipelineSpec, Rules, TrainerSpec
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import EngineLoad, Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GpuId, Incarnation, PipelineId, TrainerId, Version

from .box import Box, Job, Phase, Unit, UnitState
from .scenario import PipelineLoad

FIRST = Incarnation(1)


class Production:
    """Runs the production scheduler on the box. `rules` are `[scheduler]` of the configuration."""

    def __init__(self, box: Box, rules: Rules) -> None:
        self._box = box
        spec = _spec(box, rules)
        self.scheduler = Scheduler(spec, 0.0)
        self._jobs = {PipelineId(job.load.id): job for job in box.jobs}
        self._events: deque[ev.Event] = deque()
        self._pausing: dict[tuple[str, int], int] = {}  # engine -> id of the Pause that its falling asleep answers
        self._waking: dict[tuple[str, int], do.Wake] = {}
        self._calls = {job.load.id: 0 for job in box.jobs}
        self._pending: dict[str, int] = {}  # pipeline -> call of the lease it trains under
        self._warm = False
        self._alarm: float | None = None
        self._feed(ev.Tick())
        assert all(engine.state is EngineState.PAUSED for engine in self.scheduler.engines), "an engine did not start"
        self._warm = True

    # -- what the box tells

    def arrived(self, job: Job) -> None:
        number = job.step
        self._feed(self._said(job, say.OpenRollout(rollout=number, target=len(job.remaining))))
        self.progressed(job)

    def progressed(self, job: Job) -> None:
        if job.phase is not Phase.ROLLING:
            return
        running = job.in_flight
        work, longest = self._box.expected(job)
        report = RolloutProgress(job.step, job.unfinished - running, running, job.done, expected=work, longest=longest)
        loads = tuple(EngineLoad(unit.rank, FIRST, len(unit.running), 0, 0) for unit in job.units if unit.state is UnitState.AWAKE)
        self._feed(ev.GatewaySaid(pipeline=PipelineId(job.load.id), incarnation=FIRST, progress=Progress((report,), loads)))

    def rolled(self, job: Job) -> None:
        call = self._calls[job.load.id]
        self._calls[job.load.id] += 1
        self._events.append(self._said(job, say.CloseRollout(rollout=job.step)))
        self._feed(self._said(job, say.RequestLease(call=call, roles=("train",))))

    def trained(self, job: Job) -> None:
        self._feed(self._said(job, say.Offloaded(call=self._pending.pop(job.load.id))))
        if job.phase is Phase.ROLLING:
            self.arrived(job)
        else:
            group = TrainerId(PipelineId(job.load.id))
            self._feed(ev.MemberExited(group=group, incarnation=FIRST, member=0, code=0))

    def woken(self, unit: Unit) -> None:
        action = self._waking.pop((unit.job.load.id, unit.rank))
        self._feed(ev.Woken(id=action.id, version=action.version))
        self.progressed(unit.job)

    def slept(self, unit: Unit) -> None:
        self._feed(ev.Paused(id=self._pausing.pop((unit.job.load.id, unit.rank))))

    def _said(self, job: Job, message: say.TrainerMessage) -> ev.Event:
        return ev.TrainerSaid(pipeline=PipelineId(job.load.id), incarnation=FIRST, rank=0, message=message)

    # -- what the scheduler wants

    def _feed(self, event: ev.Event) -> None:
        self._events.append(event)
        while self._events:
            for action in self.scheduler.handle(self._events.popleft(), self._box.now):
                if (answer := self._perform(action)) is not None:
                    self._events.append(answer)
        self._set_alarm()

    def _set_alarm(self) -> None:
        deadline = self.scheduler.deadline
        if deadline is None or not self._warm or deadline == self._alarm:
            return
        self._alarm = deadline
        self._box.after(max(0.0, deadline - self._box.now), lambda: self._tick(deadline))

    def _tick(self, deadline: float) -> None:
        if self.scheduler.deadline == deadline and deadline == self._alarm:
            self._alarm = None
            self._feed(ev.Tick())
        else:
            self._set_alarm()

    def _perform(self, action: do.Action) -> ev.Event | None:
        """Carry out an action. Return the answer at once, or None when the box will give it."""
        match action:
            case do.PrepareModel():
                return ev.ModelReady(id=action.id)
            case do.StartGateway():
                return ev.GatewayReady(id=action.id)
            case do.StartTrainer():
                return ev.TrainerStarted(id=action.id)
            case do.StartGroup():
                assert not self._warm, f"{action.engine} is started a second time"
                return ev.GroupReady(id=action.id, version=Version(0))
            case do.StopGroup():
                return self._stop(action)
            case do.Measure():
                return ev.GpuFree(id=action.id)
            case do.Drain() | do.Pause() if self._warm:
                return self._sleep(action)
            case do.Pause():
                return ev.Paused(id=action.id)
            case do.Wake(engine=engine):
                self._waking[engine.pipeline, engine.rank] = action
                self._box.wake(self._unit(engine))
                return None
            case do.TellTrainer(pipeline=pipeline, message=say.LeaseGranted(call=call)):
                self._pending[pipeline] = call
                self._box.train(self._jobs[pipeline])
                return ev.Told(id=action.id)
            case do.TellTrainer():
                assert not isinstance(action.message, say.Refused), f"{action.pipeline} is refused: {action.message}"
                return ev.Told(id=action.id)
            case do.DropSnapshot() | do.AdoptSnapshot() | do.RecordCheckpoint() | do.LoadWeights():
                raise AssertionError(f"no trainer here publishes or saves: {action}")
            case _:
                return ev.Ordered(id=action.id)

    def _sleep(self, action: do.Drain | do.Pause) -> ev.Event | None:
        """Let an engine fall asleep: the first half of a pause that reaches it starts its time."""
        unit = self._unit(action.engine)
        if unit.state is UnitState.AWAKE:
            self._box.sleep(unit)
        if isinstance(action, do.Drain):
            return ev.Ordered(id=action.id)
        assert unit.state is UnitState.SLEEPING, f"{action.engine} is paused while {unit.state.value}"
        self._pausing[action.engine.pipeline, action.engine.rank] = action.id
        return None

    def _stop(self, action: do.StopGroup) -> ev.Event:
        """End a pipeline's group: its processes end at once, and their memory is free."""
        if isinstance(action.group, EngineId):
            self._box.end(self._unit(action.group))
        return ev.GroupGone(id=action.id, confirmed=True)

    def _unit(self, id: EngineId) -> Unit:
        return self._jobs[id.pipeline].units[id.rank]


def _spec(box: Box, rules: Rules) -> BoxSpec:
    gpus = tuple(GpuId(gpu) for gpu in range(box.scenario.gpus))
    rules = replace(rules, max_starting=1_000_000)
    return BoxSpec(gpus, tuple(_pipeline(job.load) for job in box.jobs), limits(HealthTable()), rules)


def _pipeline(load: PipelineLoad) -> PipelineSpec:
    infer = tuple(GpuId(gpu) for gpu in load.infer_gpus)
    train = tuple(GpuId(gpu) for gpu in load.train_gpus)
    engine = EngineSpec(infer, load.tp, load.slots_per_rank, eager=True)
    trainer = TrainerSpec({"init": train, "train": train}, 1, lease_limit=1e9)
    return PipelineSpec(PipelineId(load.id), engine, trainer, load.share, steps=len(load.trajectories))

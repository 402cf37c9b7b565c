"""Memory on a GPU without a lease: the one who holds it fails, the one who was measured does not."""

from engines.lifecycle.state import EngineState
from supervisor.scheduler import Scheduler
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.records import Engine, TrainerState
from tests.harness.boxes import box, pipeline
from tests.harness.checked_scheduler import well
from tests.harness.defaults import default_limits
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId, TrainerId

P1, P2 = PipelineId("p1"), PipelineId("p2")
GPU, LIFE = GpuId(0), Incarnation(1)
SECOND = TrainerId(P2)


class Box:
    """Two pipelines with one engine each on one GPU; `memory` is who holds some of it although nobody lent it to them."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(
            box(1, pipeline("p1", [0], [0], ranks=1), pipeline("p2", [0], [0], ranks=1), limits=default_limits()), 0.0
        )
        self.memory: list[ev.Holder] = []
        self.done: list[do.Action] = []
        self.feed(ev.Tick())
        self.say(P1, say.Hello(0), say.RequestLease(0, ("init",)), say.Offloaded(0), say.OpenRollout(0, 4))
        self.feed(ev.GatewaySaid(pipeline=P1, incarnation=LIFE, progress=Progress((RolloutProgress(0, 4, 0, 0),))))
        assert self.engine.state is EngineState.SERVING

    def say(self, of: PipelineId, *messages: say.TrainerMessage) -> None:
        for message in messages:
            self.feed(ev.TrainerSaid(pipeline=of, incarnation=LIFE, rank=0, message=message))

    def feed(self, event: ev.Event) -> None:
        todo = [event]
        while todo:
            for action in self.scheduler.handle(todo.pop(0), 0.0):
                self.done.append(action)
                todo.append(self._answer(action))

    def _answer(self, action: do.Action) -> ev.Event:
        if isinstance(action, do.StopGroup):
            self.memory = [holder for holder in self.memory if (holder.group, holder.incarnation) != (action.group, action.incarnation)]
        if isinstance(action, do.Measure) and self.memory:
            return ev.GpuHeld(id=action.id, gpus=(GPU,), note="4 MiB", holders=tuple(self.memory))
        return well(action)

    @property
    def engine(self) -> Engine:
        return self.scheduler.pipelines[P1].engines[0]

    def stopped(self) -> list[GroupId]:
        return [action.group for action in self.done if isinstance(action, do.StopGroup)]


def _leave(box: Box) -> None:
    """p1's trainer takes the GPU: its engine pauses and is measured."""
    box.say(P1, say.CloseRollout(0), say.RequestLease(1, ("train",)))


def test_the_intruder_fails_and_the_one_who_was_measured_goes_on() -> None:
    box = Box()
    box.memory = [ev.Holder(GPU, SECOND, LIFE)]
    _leave(box)
    assert box.stopped() == [SECOND]
    trainer = box.scheduler.pipelines[P2].trainer
    assert trainer.note == "holds memory on GPU 0, of which it has no lease"
    assert trainer.restarts == 1
    assert box.engine.state is EngineState.PAUSED
    assert box.engine.incarnation == LIFE
    told = [action.message for action in box.done if isinstance(action, do.TellTrainer)]
    assert say.LeaseGranted(1, ("train",)) in told


def test_an_intruder_of_a_life_that_is_over_is_nobodys_fault() -> None:
    box = Box()
    box.memory = [ev.Holder(GPU, SECOND, Incarnation(0))]
    _leave(box)
    assert SECOND not in box.stopped()
    assert box.engine.incarnation > LIFE or box.engine.state is EngineState.STUCK, "what cannot be told apart is the measured one's"


def test_who_holds_with_a_lease_is_to_blame_itself_also_beside_an_intruder() -> None:
    box = Box()
    box.memory = [ev.Holder(GPU, SECOND, LIFE), ev.Holder(GPU, EngineId(P1, 0), LIFE)]
    _leave(box)
    assert set(box.stopped()) == {SECOND, EngineId(P1, 0)}
    assert box.engine.incarnation == Incarnation(2)


def test_an_intruder_on_a_fenced_gpu_fails_too() -> None:
    box = Box()
    _leave(box)
    box.say(P1, say.Offloaded(1))
    box.scheduler.leases.fence(GPU, "a test")
    box.memory = [ev.Holder(GPU, SECOND, LIFE)]
    box.scheduler._fence_looked = None
    box.feed(ev.Tick())
    assert box.stopped() == [SECOND]
    assert box.scheduler.pipelines[P2].trainer.state is not TrainerState.RUNNING or not box.memory

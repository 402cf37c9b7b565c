"""The checkers of the simulated world can fail: each is shown a broken promise."""

from collections.abc import Callable

import pytest

from engines.lifecycle.state import EngineState
from supervisor.scheduler import actions as do
from supervisor.scheduler.planning.reservations import Request, Reservations
from supervisor.scheduler.records import TrainerState
from supervisor.scheduler.spec import Priority
from supervisor.simulate.faults.simulation import Simulation
from supervisor.simulate.faults.world import Violation
from tests.harness.boxes import BOXES
from trainers.protocol import trainer_messages as say
from trainers.protocol.ids import EngineId, GpuId, PipelineId, TrainerId

A, B = PipelineId("p1"), PipelineId("p2")


class Stopped(Exception):
    pass


def stopped(when: Callable[[Simulation], bool]) -> Simulation:
    """A world in the middle of its run, at the first moment at which that holds."""
    world = Simulation(BOXES["seed"](), 1)
    handle = world.handle

    def watched(event: object, now: float) -> list[do.Action]:
        if when(world):
            raise Stopped
        return handle(event, now)  # type: ignore[arg-type]

    world.handle = watched
    with pytest.raises(Stopped):
        world.run()
    world.handle = handle
    world.promises.check()
    return world


def waiting(world: Simulation) -> bool:
    """A trainer has its turn and waits for engines to leave."""
    return bool(world.scheduler.reservations().reserved)


def test_a_reservation_whose_holder_died() -> None:
    world = stopped(waiting)
    (request,) = world.scheduler.reservations().reserved
    del world.alive[TrainerId(request.pipeline)]
    with pytest.raises(Violation, match="its request of GPUs"):
        world.promises.check()


@pytest.mark.parametrize("state", [TrainerState.FINISHED, TrainerState.STOPPING, TrainerState.QUARANTINED, TrainerState.RETIRED])
def test_a_reservation_of_a_pipeline_that_has_ended(state: TrainerState) -> None:
    world = stopped(waiting)
    (request,) = world.scheduler.reservations().reserved
    world.scheduler.pipelines[request.pipeline].trainer.state = state
    with pytest.raises(Violation, match="its request of GPUs"):
        world.promises.check()


def test_a_reservation_of_what_is_fenced(monkeypatch: pytest.MonkeyPatch) -> None:
    world = stopped(waiting)
    found = world.scheduler.reservations()
    world.scheduler.leases.fence(found.reserved[0].gpus[0], "for ever")
    assert world.scheduler.reservations().reserved == ()
    world.promises.check()
    monkeypatch.setattr(type(world.scheduler), "reservations", lambda scheduler: found)
    with pytest.raises(Violation, match="is fenced"):
        world.promises.check()


def test_a_reservation_of_what_a_stuck_engine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    world = stopped(lambda world: any(world.scheduler.leases.held_by(engine.id) for engine in world.scheduler.engines) and waiting(world))
    found = world.scheduler.reservations()
    lease = next(lease for gpu in found.reserved[0].gpus if (lease := world.scheduler.leases.lease(gpu)) is not None)
    assert isinstance(lease.holder, EngineId)
    world.scheduler.engine(lease.holder).state = EngineState.STUCK
    world.scheduler.leases.withhold([lease.gpu], lease.holder, "a test")
    assert world.scheduler.reservations().reserved == ()
    monkeypatch.setattr(type(world.scheduler), "reservations", lambda scheduler: found)
    with pytest.raises(Violation, match="which is stuck"):
        world.promises.check()


def test_a_reservation_that_waits_for_another_trainers_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    def lent(world: Simulation) -> bool:
        record = world.scheduler.pipelines[A].trainer
        idle = record.state is TrainerState.RUNNING and record.request is None
        return idle and bool(world.scheduler.leases.held_by(TrainerId(B)))

    world = stopped(lent)
    gpus = world.scheduler.leases.held_by(TrainerId(B))
    request = Request(A, 9, ("train",), gpus, Priority.ACTOR_TRAINING, world.now)
    world.scheduler.pipelines[A].trainer.request = request
    assert request not in world.scheduler.reservations().reserved
    world.promises.check()
    monkeypatch.setattr(type(world.scheduler), "reservations", lambda scheduler: Reservations((request,), frozenset(gpus)))
    with pytest.raises(Violation, match="is p2/trainer's"):
        world.promises.check()


def test_a_reservation_that_waits_for_ever() -> None:
    world = stopped(waiting)
    world.now += world.promises.longest - 1.0
    world.promises.check()
    world.now += 2.0
    with pytest.raises(Violation, match="are not granted"):
        world.promises.check()


def test_an_exchange_that_keeps_what_was_given_back() -> None:
    world = stopped(waiting)
    (request,) = world.scheduler.reservations().reserved
    record = world.scheduler.pipelines[request.pipeline].trainer
    record.request = Request(request.pipeline, 9, ("train",), request.gpus, request.priority, world.now, frozenset(request.gpus))
    with pytest.raises(Violation, match="does not hold"):
        world.promises.check()


def test_a_gpu_that_is_lent_unmeasured() -> None:
    world = stopped(lambda world: world.now > 1.0)
    world.promises.measured.clear()
    gpu = next(gpu for gpu in world.box.gpus if world.scheduler.leases.lease(gpu) is None)
    world.scheduler.leases.grant([gpu], TrainerId(A), Priority.ACTOR_TRAINING, 1)  # type: ignore[arg-type]
    with pytest.raises(Violation, match="was not measured"):
        world.promises.check()


def test_a_gpu_that_is_lent_where_somebody_could_not_be_ended() -> None:
    world = stopped(lambda world: world.now > 1.0)
    gpu = next(gpu for gpu in world.box.gpus if world.scheduler.leases.lease(gpu) is None)
    world.promises.measured.add(gpu)
    engine = next(engine for engine in world.scheduler.engines if gpu in engine.gpus)
    world.undead[engine.id, engine.incarnation] = world.now + 100.0
    world.promises.check()
    world.scheduler.leases.grant([gpu], TrainerId(A), Priority.ACTOR_TRAINING, 1)  # type: ignore[arg-type]
    with pytest.raises(Violation, match="could not be ended there"):
        world.promises.check()


def test_memory_without_a_lease() -> None:
    world = stopped(lambda world: world.now > 1.0)
    world.memory[GpuId(0)] = {TrainerId(B)}
    with pytest.raises(Violation, match="holds memory of"):
        world.promises.check()


def test_a_rollout_that_is_forgotten() -> None:
    world = stopped(lambda world: bool(world.scheduler.pipelines[A].rollouts) and world.trainers[A].place == "generating")
    world.scheduler.pipelines[A].rollouts.clear()
    with pytest.raises(Violation, match="nobody knows of it"):
        world.promises.check()


def test_an_answer_that_comes_twice() -> None:
    world = stopped(lambda world: world.now > 1.0)
    for id in (10_001, 10_002):
        action = do.TellTrainer(id=id, pipeline=A, incarnation=1, message=say.LeaseGranted(7, ("train",)))  # type: ignore[arg-type]
        if id == 10_001:
            world.promises.check_actions([action])
        else:
            with pytest.raises(Violation, match="answered twice"):
                world.promises.check_actions([action])


def test_a_life_beside_another() -> None:
    world = stopped(lambda world: any(isinstance(group, EngineId) for group in world.alive))
    group = next(group for group in world.alive if isinstance(group, EngineId))
    with pytest.raises(Violation, match="is started beside its life"):
        world.promises.check_actions([do.StartGroup(id=10_001, engine=group, incarnation=2)])  # type: ignore[arg-type]


def test_something_lives_when_all_is_over() -> None:
    world = Simulation(BOXES["seed"](), 1)
    world.run()
    world.alive[TrainerId(A)] = 1  # type: ignore[assignment]
    with pytest.raises(Violation, match="live"):
        world.promises.check_end()

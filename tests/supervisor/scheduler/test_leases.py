"""Who has which GPU, and when it goes on to whom: one rule a test."""

from dataclasses import replace

import pytest

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.records import TrainerState
from tests.harness.checked_scheduler import well
from tests.harness.scheduler_bench import Bench, one, spec
from trainers.protocol import trainer_messages as say
from trainers.protocol.ids import EngineId, GatewayId, GpuId, PipelineId, TrainerId

A = PipelineId("a")
TRAINER, GATEWAY, ENGINE = TrainerId(A), GatewayId(A), EngineId(A, 0)


def test_a_lease_ends_when_every_rank_has_left() -> None:
    bench = one(2)
    bench.lease("a")
    bench.done.clear()
    bench.say("a", say.Offloaded(0), rank=1)
    bench.say("a", say.Offloaded(0), rank=1)
    assert not bench.asked(do.Measure)
    assert not bench.told("a", say.LeaseEnded)
    bench.say("a", say.Offloaded(0), rank=0)
    assert bench.told("a", say.LeaseEnded)


def test_a_lease_has_a_limit() -> None:
    bench = one()
    bench.lease("a")
    bench.wait(7199.0)
    assert bench.record("a").trainer.state is TrainerState.RUNNING
    assert bench.record("a").trainer.grant is not None
    assert bench.record("a").trainer.grant.warned
    bench.wait(2.0)
    assert bench.record("a").trainer.incarnation == 2
    assert bench.scheduler.leases.leases == []


def test_memory_that_stays_after_a_lease_is_the_trainers_failure() -> None:
    bench = one()
    bench.lease("a")
    bench.rule = lambda action: (
        ev.GpuHeld(id=action.id, gpus=action.gpus, note="1 GiB")
        if isinstance(action, do.Measure) and action.holder == TRAINER and not bench.asked(do.StopGroup)
        else None
    )
    bench.say("a", say.Offloaded(0))
    assert [action.kill for action in bench.asked(do.StopGroup)] == [True]
    assert bench.record("a").trainer.incarnation == 2
    assert not bench.told("a", say.LeaseEnded)


@pytest.mark.parametrize("what", ["memory stays", "a rank does not end"])
def test_what_a_dead_trainer_leaves_behind_is_lent_to_nobody(what: str) -> None:
    bench = Bench(2, spec("a", [0], [1]), spec("b", [0], [0]))
    bench.lease("a")

    def left(action: do.Action) -> ev.Event | None:
        if isinstance(action, do.StopGroup) and what == "a rank does not end":
            return ev.GroupGone(id=action.id, confirmed=False, note="pid 7")
        if isinstance(action, do.Measure):
            return ev.GpuHeld(id=action.id, gpus=(GpuId(0),), note="1 GiB")
        return None

    bench.rule = left
    bench.die(TRAINER)
    assert bench.record("a").trainer.incarnation == 2, "the box goes on"
    assert list(bench.scheduler.leases.fences) == [0]
    bench.open("b")
    bench.lease("b")
    bench.wait(60.0)
    assert bench.awake("b") == []
    assert not bench.granted("b")
    bench.rule = lambda _: None
    bench.wait(6.0)
    assert bench.granted("b"), "it clears by itself"


def test_an_eager_engine_waits_until_its_gpu_was_seen_empty() -> None:
    eager = spec("a", [0], [0, 1])
    eager = replace(eager, engine=replace(eager.engine, eager=True))
    bench = Bench(
        2, eager, rule=lambda action: ev.GpuHeld(id=action.id, gpus=(GpuId(1),), note="1 GiB") if isinstance(action, do.Measure) else None
    )
    assert [action.engine.rank for action in bench.asked(do.StartGroup)] == [0]
    bench.rule = lambda _: None
    bench.wait(6.0)
    assert [action.engine.rank for action in bench.asked(do.StartGroup)] == [0, 1]


def test_what_a_stuck_engine_holds_is_reserved_for_nobody() -> None:
    bench = Bench(2, spec("a", [0], [0]), spec("b", [0, 1], [1]))
    bench.open("a")
    bench.open("b")
    bench.rule = lambda action: ev.GroupGone(id=action.id, confirmed=False, note="") if isinstance(action, do.StopGroup) else None
    bench.die(ENGINE)
    bench.lease("b")
    assert bench.scheduler.reservations().reserved == ()
    assert bench.awake("b") == [0], "nobody is paused for what cannot be granted"
    bench.open("b", 1)
    bench.rule = lambda _: None
    bench.wait(20.0)
    assert bench.granted("b")


def test_an_exchange_gives_up_what_measures_empty_and_keeps_the_rest() -> None:
    bench = Bench(3, spec("a", [0, 1], [2], critic=[1, 2]))
    bench.open("a")
    bench.lease("a")
    bench.hold = lambda action: isinstance(action, do.Measure | do.Pause)
    bench.say("a", say.ExchangeLease(1, ("critic",)))
    assert leased(bench) == {0: TRAINER, 1: TRAINER, 2: ENGINE}
    bench.feed(*(well(action) for action in bench.held if isinstance(action, do.Pause)))
    bench.feed(*(well(action) for action in bench.held if isinstance(action, do.Measure) and action.holder == ENGINE))
    assert say.LeaseGranted(1, ("critic",)) in bench.heard["a"]
    assert leased(bench) == {0: TRAINER, 1: TRAINER, 2: TRAINER}, "GPU 0 was not seen empty yet"
    bench.say("a", say.Offloaded(1))
    bench.feed(*(well(action) for action in bench.held if isinstance(action, do.Measure) and action.gpus == (GpuId(0),)))
    assert leased(bench) == {1: TRAINER, 2: TRAINER}
    assert not bench.told("a", say.LeaseEnded)
    bench.release()
    assert leased(bench) == {2: ENGINE}, "only its engine, which the open rollout wants"
    assert bench.told("a", say.LeaseEnded) == [say.LeaseEnded(1)]


def test_who_leaves_a_lease_that_is_being_exchanged_has_withdrawn() -> None:
    bench = Bench(3, spec("a", [0, 1], [2], critic=[1, 2]))
    bench.open("a")
    bench.lease("a")
    bench.hold = lambda action: isinstance(action, do.Pause)
    bench.say("a", say.ExchangeLease(1, ("critic",)))
    bench.say("a", say.Offloaded(0))
    assert bench.refused("a") == ["out_of_order"]
    assert bench.told("a", say.LeaseEnded) == [say.LeaseEnded(0)]
    bench.release()
    assert bench.scheduler.reservations().reserved == ()
    assert leased(bench) == {2: ENGINE}, "only its engine, which the open rollout wants"
    bench.lease("a", 2, "critic")
    assert say.LeaseGranted(2, ("critic",)) in bench.heard["a"]


def test_who_loses_its_gpu_to_a_reservation_gets_another() -> None:
    bench = Bench(2, spec("a", [0], [0, 1]), spec("b", [0], [0]))
    bench.open("a", target=8)
    assert bench.awake("a") == [0]
    bench.hold = lambda action: isinstance(action, do.Pause)
    bench.lease("b")
    assert bench.awake("a") == [1], "as soon as it must leave"
    bench.release()
    assert bench.granted("b")
    assert bench.awake("a") == [1]


def leased(bench: Bench) -> dict[int, object]:
    return {int(lease.gpu): lease.holder for lease in bench.scheduler.leases.leases}

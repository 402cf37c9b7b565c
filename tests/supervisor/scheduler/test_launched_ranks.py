"""A trainer whose ranks a launcher makes: one process, as many ranks as they say."""

from dataclasses import replace

import pytest

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.records import TrainerState
from tests.harness.scheduler_bench import FIRST, Bench, spec
from trainers.protocol import trainer_messages as say
from trainers.protocol.ids import PipelineId, TrainerId

A = PipelineId("a")
TRAINER = TrainerId(A)


@pytest.fixture
def bench() -> Bench:
    """Two GPUs and one launcher, which has made three ranks."""
    made = spec("a", [0], [0, 1], 2)
    bench = Bench(2, replace(made, trainer=replace(made.trainer, processes=1)))
    for rank in range(3):
        bench.say("a", say.Hello(rank, 3), rank)
    return bench


def left(bench: Bench, rank: int) -> None:
    bench.feed(ev.RankLeft(pipeline=A, incarnation=FIRST, rank=rank))


def test_a_lease_ends_when_every_rank_has_left_it(bench: Bench) -> None:
    bench.lease("a")
    for rank in range(3):
        assert not bench.told("a", say.LeaseEnded)
        bench.say("a", say.Offloaded(0), rank)
    assert bench.told("a", say.LeaseEnded)


def test_it_has_finished_when_its_one_process_has(bench: Bench) -> None:
    for rank in range(3):
        left(bench, rank)
    bench.wait(1000.0)
    assert bench.record("a").trainer.state is TrainerState.RUNNING, "a launcher may do something after its ranks"
    bench.die(TRAINER, code=0)
    assert bench.record("a").trainer.state is TrainerState.FINISHED


def test_a_rank_that_ends_inside_a_lease_has_died(bench: Bench) -> None:
    bench.lease("a")
    bench.say("a", say.Offloaded(0), 1)
    left(bench, 1)
    assert not bench.asked(do.StopGroup)
    left(bench, 2)
    assert bench.record("a").trainer.note == "rank 2 has ended inside a lease (train)"
    assert bench.asked(do.StopGroup)


def test_ranks_end_together(bench: Bench) -> None:
    left(bench, 1)
    bench.wait(59.0)
    assert bench.record("a").trainer.state is TrainerState.RUNNING
    bench.wait(2.0)
    assert "rank 0 still runs 60 s after rank 1 ended" in bench.record("a").trainer.note
    bench.wait(100.0)
    trainer = bench.record("a").trainer
    assert (trainer.incarnation, trainer.world_size, trainer.left) == (2, 2, {}), "the next life's ranks say how many they are"
    left(bench, 0)
    assert not trainer.left, "of a life before this one"
    bench.die(TRAINER, code=3, life=2)
    assert "its launcher ended with exit code 3" in trainer.note

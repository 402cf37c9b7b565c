"""Ranks that ask for samples of their own open and close one rollout together; ranks that should ask alike are compared; trajectories are demand."""

import pytest

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.groups.rollout_requests import MOST_OPEN
from supervisor.scheduler.rollouts import Rollout
from tests.harness.scheduler_bench import FIRST, Bench, one, spec
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import Progress, RolloutProgress
from trainers.protocol.ids import EVALUATIONS, PipelineId


def mine(target: int, number: int = 0) -> say.OpenRollout:
    return say.OpenRollout(number, target, per_rank=True)


def figures(name: str, *rollouts: RolloutProgress) -> ev.GatewaySaid:
    return ev.GatewaySaid(pipeline=PipelineId(name), incarnation=FIRST, progress=Progress(rollouts))


def told_to(bench: Bench, kind: type) -> list[int | None]:
    return [action.rank for action in bench.asked(do.TellTrainer) if isinstance(action.message, kind)]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_the_demand_of_all_ranks_is_one_rollout(order: tuple[int, ...]) -> None:
    bench = one(3)
    for rank in order:
        bench.say("a", mine(10 + rank), rank)
    assert bench.unfinished("a") == 33
    assert len(bench.told("a", say.RolloutOpened)) == 1
    for rank in order:
        assert not bench.told("a", say.RolloutClosed)
        assert bench.unfinished("a") == 33, "the others still want theirs"
        bench.say("a", say.CloseRollout(0), rank)
    assert len(bench.told("a", say.RolloutClosed)) == 1
    assert bench.unfinished("a") == 0


def test_what_rank_0_is_refused_all_are_refused() -> None:
    bench = one(2)
    bench.rule = lambda action: ev.ActionFailed(id=action.id, reason="no") if isinstance(action, do.StartGroup) else None
    bench.lease("a", 0, "train")
    bench.say("a", say.Offloaded(0), 0)
    bench.say("a", mine(8), 1)
    assert not bench.record("a").rollouts, "rank 0 decides"
    bench.record("a").trainer.restored = False
    bench.say("a", mine(8), 0)
    assert len(bench.told("a", say.Refused)) == 1
    bench.record("a").trainer.restored = True
    bench.say("a", mine(8), 0)
    bench.say("a", mine(8), 1)
    assert bench.unfinished("a") == 16, "what was refused is forgotten"


def test_only_rank_0_opens_closes_and_chooses_what_all_share() -> None:
    for message in (say.OpenRollout(1, 8), say.CloseRollout(0), say.EndTrajectories(0, 1), say.Choose(0, 0, (1,))):
        bench = one(2)
        bench.say("a", say.OpenRollout(0, 8))
        bench.say("a", message, 1)
        assert bench.asked(do.StopGroup), f"rank 1 said {message}"
        assert "only rank 0's calls decide" in bench.record("a").trainer.note


def test_what_rank_0_chooses_all_are_told() -> None:
    bench = one(2)
    bench.open("a")
    bench.say("a", say.Choose(3, 0, (1, "kf")))
    assert bench.told("a", say.Chosen) == [say.Chosen(3, (1, "kf"))]
    assert told_to(bench, say.Chosen) == [None]


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_that_ask_alike_are_let_go(first: int) -> None:
    bench = one(3)
    bench.open("a")
    for rank in (first, 1 - first, 2):
        bench.say("a", say.Asked(0, 8, "aa"), rank)
    assert sorted(told_to(bench, say.AskedAlike), key=str) == [1, 2]
    assert not bench.record("a").trainer.asked


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("its", "why"),
    [
        (say.Asked(0, 4, "bb"), "rank 1 asked for 4 samples and rank 0 for 8"),
        (say.Asked(0, 8, "bb"), "the prompts of rank 1 or their parameters are not those of rank 0"),
    ],
)
def test_ranks_that_ask_apart_are_refused(first: int, its: say.Asked, why: str) -> None:
    bench = one(2)
    bench.open("a")
    said = {0: say.Asked(0, 8, "aa"), 1: its}
    for rank in (first, 1 - first):
        bench.say("a", said[rank], rank)
    (refused,) = bench.told("a", say.Refused)
    assert isinstance(refused, say.Refused)
    assert (refused.about, refused.code) == ("asked", "ranks_ask_apart")
    assert why in refused.reason
    assert "per_rank=True" in refused.reason
    assert not bench.asked(do.StopGroup), "the script may do something about it"


def test_who_asks_for_nothing_or_fails_has_not_asked_apart() -> None:
    bench = one(2)
    bench.open("a")
    bench.say("a", say.Asked(0, 0, "00"), 1)
    bench.say("a", say.Asked(0, 8, "aa"))
    bench.say("a", say.CloseRollout(0))
    bench.open("a", rollout=1)
    bench.say("a", say.CloseRollout(1))  # its body has failed: it has not said what it had asked for
    bench.say("a", say.Asked(1, 8, "bb"), 1)
    assert told_to(bench, say.AskedAlike) == [1, 1]
    for number in range(2, 3 * MOST_OPEN):
        bench.say("a", say.Asked(number, 8, "aa"))
    assert len(bench.record("a").trainer.asked) <= MOST_OPEN, "a script whose rank 0 alone asks costs nothing"


def test_nobody_waits_for_others_while_all_stops() -> None:
    bench = one(2)
    bench.say("a", say.Hello(0))
    bench.say("a", mine(8), 0)
    bench.say("a", mine(8), 1)
    bench.say("a", say.CloseRollout(0), 1)
    bench.say("a", say.OpenRollout(1, 8), 0)
    bench.say("a", say.Asked(1, 8, "aa"), 1)
    bench.feed(ev.Stop(level=1))
    assert bench.told("a", say.RolloutClosed) == [say.RolloutClosed(0)]
    assert bench.told("a", say.AskedAlike) == [say.AskedAlike(1)]
    for message, rank, answer in (
        (say.Asked(2, 8, "aa"), 1, say.AskedAlike),
        (mine(8, 5), 1, say.Refused),
        (say.CloseRollout(0), 1, say.RolloutClosed),
        (say.Choose(0, 0, ()), 0, say.Refused),
    ):
        before = len(bench.told("a", answer))
        bench.say("a", message, rank)
        assert len(bench.told("a", answer)) == before + 1, message


def test_a_trajectory_is_demand_until_it_has_ended() -> None:
    bench = one(2)
    bench.say("a", say.OpenRollout(0, 16, trajectories=True))
    rollout = bench.record("a").rollouts[0]
    rollout.absorb(RolloutProgress(0, 0, 0, done=48), bench.now)
    assert bench.unfinished("a") == 16, "tools run; all samples so far are done"
    bench.say("a", say.EndTrajectories(0, 15))
    assert bench.unfinished("a") == 1
    bench.say("a", say.EndTrajectories(0, 3))
    assert bench.unfinished("a") == 1, "an older figure that comes late changes nothing"
    rollout.absorb(RolloutProgress(0, 2, 3, done=48), bench.now)
    assert bench.unfinished("a") == 5, "what waits or runs is wanted in any case"
    bench.say("a", say.EndTrajectories(7, 3))


@pytest.mark.parametrize("trajectories", [True, False])
def test_engines_are_kept_while_tools_run(trajectories: bool) -> None:
    """Another pipeline wants every engine. Three times all 16 games wait for their tools: by samples, there is nothing left to do."""
    bench = Bench(4, spec("a", [0], [0, 1, 2, 3]), spec("b", [1], [0, 1, 2, 3]))
    bench.say("a", say.OpenRollout(0, 16, trajectories=trajectories))
    bench.say("b", say.OpenRollout(0, 10_000))
    bench.progress("b", 0, target=10_000)
    for turn in range(3):
        done = 16 * turn
        bench.feed(figures("a", RolloutProgress(0, 0, 16, done)))
        bench.later(20.0)
        bench.feed(figures("a", RolloutProgress(0, 0, 0, done + 16)))
        bench.later(20.0)
        assert bool(bench.awake("a")) is trajectories
    pauses = [action for action in bench.asked(do.Pause) if action.engine.pipeline == "a"]
    assert (not pauses) is trajectories


def test_each_ranks_trajectories_end_by_themselves() -> None:
    bench = one(2)
    for rank in range(2):
        bench.say("a", say.OpenRollout(0, 4, per_rank=True, trajectories=True), rank)
        bench.say("a", say.EndTrajectories(0, 3), rank)
    assert bench.unfinished("a") == 2


def test_an_evaluation_is_no_step() -> None:
    bench = one()
    bench.open("a", rollout=3)
    bench.say("a", say.CloseRollout(3))
    bench.open("a", rollout=EVALUATIONS + 7)
    assert bench.record("a").step == 3
    assert bench.unfinished("a") == 640


def test_trajectories_are_shown_as_what_is_done() -> None:
    rollout = Rollout(0, 16, 0.0, trajectories=True)
    rollout.absorb(RolloutProgress(0, 0, 0, done=40), 1.0)
    rollout.ended[0] = 5
    assert rollout.finished == 5

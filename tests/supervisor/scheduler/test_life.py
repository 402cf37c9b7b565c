"""How trainers and gateways live, die and come back, and what operators may ask: one rule a test."""

import pytest

from engines.lifecycle.state import EngineState
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.scheduler.groups.gateways import MAX_FAILURES
from supervisor.scheduler.groups.rollout_requests import MOST_OPEN
from supervisor.scheduler.records import TrainerState
from tests.harness.checked_scheduler import well
from tests.harness.scheduler_bench import FIRST, Bench, one, serving, spec
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import EngineLoad, Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId

A = PipelineId("a")
TRAINER, GATEWAY, ENGINE = TrainerId(A), GatewayId(A), EngineId(A, 0)


def heard(bench: Bench, *rollouts: RolloutProgress, life: int = 1, loads: tuple[EngineLoad, ...] = ()) -> None:
    bench.feed(ev.GatewaySaid(pipeline=A, incarnation=life, progress=Progress(rollouts, loads)))  # type: ignore[arg-type]


# -- answers of the dead


def test_a_message_of_a_dead_trainer_is_nothing() -> None:
    bench = one()
    bench.die(TRAINER)
    assert bench.record("a").trainer.incarnation == 2
    bench.say("a", say.OpenRollout(0, 8), life=1)
    assert bench.unfinished("a") == 0
    bench.say("a", say.RequestLease(0, ("train",)), life=1)
    assert not bench.granted("a")
    bench.open("a")
    assert bench.unfinished("a") == 640


def test_a_report_of_a_dead_gateway_is_nothing() -> None:
    bench = one()
    bench.die(GATEWAY)
    assert bench.record("a").gateway.incarnation == 2
    heard(bench, RolloutProgress(-1, 5, 0, 0, True), life=1)
    assert bench.unfinished("a") == 0
    heard(bench, RolloutProgress(-1, 5, 0, 0, True), life=2)
    assert bench.unfinished("a") == 5


def test_a_late_exit_of_a_dead_gateway_or_trainer_ends_nobody() -> None:
    bench = one()
    bench.die(GATEWAY)
    bench.die(TRAINER)
    bench.done.clear()
    bench.die(GATEWAY)
    bench.die(TRAINER)
    bench.feed(
        ev.PeerFailed(group=TRAINER, incarnation=FIRST, reason="late"), ev.PeerFailed(group=GATEWAY, incarnation=FIRST, reason="late")
    )
    assert bench.done == []
    assert bench.record("a").gateway.up
    assert bench.record("a").trainer.state is TrainerState.RUNNING


def test_counts_of_a_dead_engine_are_not_those_of_its_next_life() -> None:
    bench = serving()
    bench.die(ENGINE)
    assert bench.record("a").engines[0].incarnation == 2
    heard(bench, loads=(EngineLoad(0, 1, 7, 7, 7, 7),))
    assert bench.record("a").engines[0].in_flight == 0


def test_what_a_dead_gateway_counted_is_counted_no_more() -> None:
    bench = serving()
    heard(bench, loads=(EngineLoad(0, 1, 7, 7, 7, 7),))
    assert bench.record("a").engines[0].in_flight == 7
    bench.die(GATEWAY)
    engine = bench.record("a").engines[0]
    assert (engine.in_flight, engine.failures, engine.completed, engine.tokens) == (0, 0, 0, 0)


# -- trainers


def test_a_trainer_that_comes_back_publishes_what_it_restored_before_anything_is_routed() -> None:
    bench = serving()
    bench.say("a", say.Publish(0, "w"))
    bench.say("a", say.Checkpoint(0, "/c"))
    assert bench.told("a", say.CheckpointRecorded)
    bench.die(TRAINER)
    start = bench.asked(do.StartTrainer)[-1]
    assert (start.steps_done, start.restore) == (1, True)
    assert all(engine.route is None for engine in bench.record("a").engines.values())
    bench.open("a", 1)
    assert bench.refused("a") == ["out_of_order"]
    bench.say("a", say.Publish(0, "w"))
    bench.open("a", 1)
    assert all(engine.route == 2 for engine in bench.record("a").engines.values())
    assert bench.unfinished("a") == 640


@pytest.mark.parametrize(("there", "published"), [(1, 1), (0, 1), (0, 0)])
def test_a_trainer_whose_newest_checkpoint_is_not_there_goes_on_from_the_older_one(there: int, published: int) -> None:
    """`there` are the steps of the older one; without any, and without published weights, there is nothing to restore."""
    bench = one()
    for step in range(2):
        bench.say("a", say.Checkpoint(step, f"/checkpoints/{step}"))
    if published:
        bench.say("a", say.Publish(call=0, name="step"))
    bench.rule = lambda action: ev.TrainerStarted(id=action.id, steps_done=there) if isinstance(action, do.StartTrainer) else None
    bench.die(TRAINER)
    trainer = bench.record("a").trainer
    assert bench.asked(do.StartTrainer)[-1].steps_done == 2
    assert trainer.steps_done == there
    assert trainer.restored is (not there and not published)


def test_only_rank_0_decides() -> None:
    bench = one(2)
    bench.say("a", say.OpenRollout(0, 8), rank=1)
    assert bench.unfinished("a") == 0
    assert bench.asked(do.StopGroup)[0].group == TRAINER


def test_ranks_end_together() -> None:
    bench = one(2)
    bench.die(TRAINER, code=0)
    bench.wait(59.0)
    assert bench.record("a").trainer.state is TrainerState.RUNNING, "the other rank may still write its files"
    bench.wait(2.0)
    assert bench.record("a").trainer.incarnation == 2, "but not for ever"
    bench.die(TRAINER, code=0, member=1, life=2)
    assert bench.record("a").trainer.state is TrainerState.RUNNING, "exits of the last life do not count"
    bench.die(TRAINER, code=0, member=0, life=2)
    assert bench.record("a").trainer.state is TrainerState.FINISHED


def test_a_trainer_that_keeps_dying_is_given_up() -> None:
    bench = one()
    for _ in range(5):
        bench.die(TRAINER, life=bench.record("a").trainer.incarnation)
        bench.wait(70.0)
    assert bench.record("a").trainer.state is TrainerState.RETIRED
    assert "retired" in bench.record("a").failed
    assert len(bench.asked(do.StartTrainer)) == 4
    bench.feed(ev.OperatorAsked(verb="reset", pipeline=A))
    assert bench.record("a").trainer.state is TrainerState.RUNNING
    assert not bench.record("a").failed
    bench.die(TRAINER, life=bench.record("a").trainer.incarnation)
    assert bench.record("a").trainer.state is TrainerState.RUNNING, "its failures are counted anew"


# -- gateways and hope


def test_a_gateway_that_keeps_dying_fails_its_pipeline() -> None:
    bench = one()
    for _ in range(MAX_FAILURES + 2):
        bench.die(GATEWAY, life=bench.record("a").gateway.incarnation)
        bench.wait(130.0)
    assert not bench.record("a").failed, "it lived a minute each time"
    bench = one()
    for _ in range(MAX_FAILURES + 2):
        bench.die(GATEWAY, life=bench.record("a").gateway.incarnation)
        bench.wait(max(0.0, bench.record("a").gateway.not_before - bench.now))
    assert "gateway" in bench.record("a").failed


def test_stuck_engines_are_waited_for() -> None:
    """They are looked at again until they are gone: a late answer, not an error."""
    bench = serving()
    bench.rule = lambda action: ev.GroupGone(id=action.id, confirmed=False, note="pid 7") if isinstance(action, do.StopGroup) else None
    for rank in (0, 1):
        bench.die(EngineId(A, rank))
    assert [engine.state for engine in bench.record("a").engines.values()] == [EngineState.STUCK] * 2
    bench.wait(300.0)
    assert bench.refused("a") == []
    assert bench.asked(do.TellHopeless) == []
    bench.rule = lambda action: None
    bench.wait(300.0)
    assert bench.awake("a"), "as many as the rest of the rollout wants"


def test_who_cannot_be_served_is_told() -> None:
    bench = one()
    bench.rule = lambda action: ev.ActionFailed(id=action.id, reason="no") if isinstance(action, do.StartGroup) else None
    bench.open("a")
    bench.wait(500.0)
    assert all(engine.state is EngineState.RETIRED for engine in bench.record("a").engines.values())
    assert bench.refused("a") == ["no_engine"]
    assert [action.rollout for action in bench.asked(do.CloseAtGateway)] == [0]
    assert [bool(action.reason) for action in bench.asked(do.TellHopeless)] == [True]
    bench.rule = lambda _: None
    bench.feed(ev.OperatorAsked(verb="reset", pipeline=A))
    assert [bool(action.reason) for action in bench.asked(do.TellHopeless)] == [True, False]
    assert bench.unfinished("a") == 0, "what was refused is not wanted"
    bench.open("a")
    assert bench.awake("a") == [0, 1]
    bench.die(ENGINE, life=bench.record("a").engines[0].incarnation)
    assert bench.record("a").engines[0].state is EngineState.SERVING, "its failures are counted anew"


def test_failures_long_ago_are_forgotten() -> None:
    bench = Bench(1, spec("a", [0], [0]))
    bench.open("a")
    for _ in range(8):
        bench.die(ENGINE, life=bench.record("a").engines[0].incarnation)
        bench.wait(400.0)
    assert bench.record("a").engines[0].state is EngineState.SERVING


def test_what_is_never_answered_has_failed_at_its_deadline() -> None:
    bench = one()
    bench.hold = lambda action: isinstance(action, do.StartGateway)
    bench.die(GATEWAY)
    assert not bench.record("a").gateway.up
    bench.hold = lambda _: False
    bench.later(bench.scheduler.box.limits.gateway_start + 1.0)
    assert bench.record("a").gateway.up
    assert bench.record("a").gateway.incarnation == 3


def test_there_are_pauses_between_the_restarts_of_what_keeps_dying() -> None:
    bench = serving()
    bench.die(ENGINE)
    assert bench.record("a").engines[0].state is EngineState.SERVING, "the first time at once"
    bench.die(ENGINE, life=2)
    assert bench.record("a").engines[0].state is EngineState.COLD
    first = bench.record("a").engines[0].not_before - bench.now
    assert 1.0 <= first <= 2.0
    bench.wait(2.0)
    assert bench.record("a").engines[0].state is EngineState.SERVING
    bench.die(ENGINE, life=3)
    assert 1.0 <= bench.record("a").engines[0].not_before - bench.now <= 4.0
    other = serving()
    for life in (1, 2):
        other.die(EngineId(A, 1), life=life)
    assert other.record("a").engines[1].not_before - other.now != first, "not all of them at the same moment"


SAME, OTHER = "TypeError: unsupported operand", "KeyError: 'x'"


@pytest.mark.parametrize(
    ("errors", "lives"),
    [
        ((SAME, SAME), 2),
        ((SAME, OTHER, OTHER), 3),
        ((SAME, "", SAME, SAME), 4),  # the third began after an end that nobody of the script is to blame for
        (("", "", "", ""), 4),
        ((SAME, OTHER, SAME, OTHER), 4),
    ],
)
def test_a_script_that_ends_alike_twice_is_not_tried_again(errors: tuple[str, ...], lives: int) -> None:
    bench = one()
    for life, error in enumerate(errors, 1):
        bench.wait(100.0)
        assert bench.record("a").trainer.state is TrainerState.RUNNING
        bench.die(TRAINER, code=1, life=life, error=error)
    assert len(errors) == lives
    assert bench.record("a").trainer.state is TrainerState.RETIRED
    ended = bench.record("a").failed
    assert ("two lives that ended alike, after 0 steps" in ended) is (lives < 4), ended
    if lives < 4:
        bench.feed(ev.OperatorAsked(verb="reset", pipeline=A))
        bench.wait(100.0)
        assert bench.record("a").trainer.state is TrainerState.RUNNING
        bench.die(TRAINER, code=1, life=lives + 1, error=errors[-1])
        bench.wait(100.0)
        assert bench.record("a").trainer.state is TrainerState.RUNNING, "what ended before the reset does not count"


def test_the_same_error_at_another_step_is_another_end() -> None:
    bench = one()
    bench.die(TRAINER, code=1, error=SAME)
    bench.wait(100.0)
    bench.say("a", say.Checkpoint(step=0, path="/c"), life=2)
    bench.die(TRAINER, code=1, life=2, error=SAME)
    bench.wait(100.0)
    assert bench.record("a").trainer.state is TrainerState.RUNNING


# -- models


def lost(times: int, code: str = ev.MAKER_LOST) -> Bench:
    """A pipeline whose model's maker is lost so many times."""
    left = [times]

    def rule(action: do.Action) -> ev.Answer | None:
        if isinstance(action, do.PrepareModel) and left[0]:
            left[0] -= 1
            return ev.ActionFailed(id=action.id, reason="ended with SIGKILL", code=code)
        return None

    return Bench(1, spec("a", [0], [0]), rule=rule)


def test_a_model_whose_maker_is_killed_is_made_again() -> None:
    bench = lost(3)
    assert len(bench.asked(do.PrepareModel)) == 2, "at once"
    assert not bench.asked(do.StartTrainer)
    bench.wait(20.0)
    assert len(bench.asked(do.PrepareModel)) == 4
    assert bench.record("a").model_ready
    assert bench.asked(do.StartTrainer)


def test_a_model_is_not_made_again_for_ever_nor_when_its_recipe_has_failed() -> None:
    bench = lost(99)
    bench.wait(1000.0)
    assert len(bench.asked(do.PrepareModel)) == 4
    assert bench.record("a").failed == "its model could not be made: ended with SIGKILL"
    failed = lost(1, code="failed")
    assert len(failed.asked(do.PrepareModel)) == 1
    assert failed.record("a").failed


# -- operators


def test_a_paused_pipeline_starts_nothing_until_it_is_resumed() -> None:
    bench = one()
    bench.hold = lambda action: isinstance(action, do.PrepareModel)
    bench = Bench(2, spec("a", [0], [0, 1]), spec("b", [1], [1]))
    bench.feed(ev.OperatorAsked(verb="pause", pipeline=A))
    bench.die(TRAINER)
    assert len(bench.asked(do.StartTrainer)) == 2, "one each, and none more"
    heard(bench, RolloutProgress(-1, 5, 0, 0, True))
    assert bench.awake("a") == []
    bench.feed(ev.OperatorAsked(verb="resume", pipeline=A))
    assert len(bench.asked(do.StartTrainer)) == 3
    assert bench.awake("a")


def test_the_end_of_an_engine_that_was_asked_for_is_no_failure() -> None:
    bench = serving()
    bench.hold = lambda action: isinstance(action, do.StopGroup) and action.group == ENGINE
    bench.feed(ev.OperatorAsked(verb="stop", pipeline=A))
    bench.die(ENGINE, code=0)
    assert bench.record("a").engines[0].state is EngineState.STOPPING
    bench.release()
    assert bench.record("a").settled
    assert not bench.scheduler.faults
    assert bench.record("a").engines[0].restarts == 0


def test_a_late_answer_of_an_engine_that_is_being_ended_changes_nothing() -> None:
    """RB-D8: what wakes while its pipeline ends must not hold anything afterwards."""
    bench = serving()
    bench.say("a", say.CloseRollout(0))
    bench.train("a")
    bench.feed(ev.OperatorAsked(verb="pause", pipeline=A), ev.OperatorAsked(verb="resume", pipeline=A))
    bench.hold = lambda action: isinstance(action, do.Wake | do.StopGroup)
    bench.open("a", 1)
    wakes = [action for action in bench.held if isinstance(action, do.Wake)]
    assert wakes
    bench.feed(ev.OperatorAsked(verb="stop", pipeline=A))
    bench.feed(*(well(action) for action in bench.held if isinstance(action, do.StopGroup) and action.group == TRAINER))
    assert bench.record("a").engines[0].state is EngineState.STOPPING
    bench.feed(*map(well, wakes))
    assert bench.record("a").engines[0].state is EngineState.STOPPING
    bench.release()
    assert bench.scheduler.leases.leases == []
    assert bench.record("a").settled


def test_a_graceful_stop_lets_the_trainer_end_by_itself_and_then_ends_it() -> None:
    bench = serving()
    bench.say("a", say.Hello(1))
    bench.feed(ev.Stop(level=1))
    assert bench.told("a", say.Stopping)
    assert TRAINER not in [action.group for action in bench.asked(do.StopGroup)]
    bench.wait(7.0)
    assert TRAINER not in [action.group for action in bench.asked(do.StopGroup)]
    bench.wait(2.0)
    (asked,) = [action for action in bench.asked(do.StopGroup) if action.group == TRAINER]
    assert not asked.kill
    assert asked.grace is not None
    assert 7.5 + asked.grace <= 10.0, "it is killed within grace_s of being told, not twice that"
    assert bench.scheduler.finished


def test_a_trainer_that_has_said_nothing_yet_is_ended_at_once() -> None:
    """A script without our client, or one that is still importing, cannot hear that it should go."""
    bench = serving()
    bench.feed(ev.Stop(level=1))
    assert [action.kill for action in bench.asked(do.StopGroup) if action.group == TRAINER] == [False]
    assert bench.scheduler.finished


def test_a_trainer_that_is_stopping_waits_for_nothing() -> None:
    """What it waits for is refused when it is told, what it asks after that at once; what it saves is kept."""
    bench = serving()
    bench.say("a", say.Hello(1))
    bench.hold = lambda action: isinstance(action, do.AdoptSnapshot | do.Drain)
    bench.say("a", say.RequestLease(7, ("train",)))
    bench.say("a", say.Publish(8, "w"))
    bench.feed(ev.Stop(level=1))
    assert {(refused.about, refused.number, refused.code) for refused in bench.told("a", say.Refused)} == {
        ("request_lease", 7, "stopping"),
        ("publish", 8, "stopping"),
    }
    for message in (say.OpenRollout(5, 8), say.CloseRollout(0), say.RequestLease(9, ("train",)), say.Offloaded(6), say.Publish(10, "w")):
        bench.say("a", message)
    assert {(refused.about, refused.number, refused.code) for refused in bench.told("a", say.Refused)} == {
        ("request_lease", 7, "stopping"),
        ("publish", 8, "stopping"),
        ("open_rollout", 5, "stopping"),
        ("request_lease", 9, "stopping"),
        ("publish", 10, "stopping"),
    }
    assert bench.told("a", say.RolloutClosed) == [say.RolloutClosed(0)]
    assert bench.told("a", say.LeaseEnded) == [say.LeaseEnded(6)]
    bench.say("a", say.Checkpoint(3, "/c"))
    assert bench.told("a", say.CheckpointRecorded) == [say.CheckpointRecorded(3)]
    assert bench.record("a").trainer.steps_done == 4


def test_a_trainer_may_have_so_many_rollouts_and_no_more() -> None:
    """Ten thousand of them made the loop 46 s late, for every pipeline."""
    bench = serving()
    for number in range(1, MOST_OPEN + 50):
        bench.open("a", number)
    refused = bench.told("a", say.Refused)
    assert len(bench.record("a").rollouts) == MOST_OPEN
    assert [(each.about, each.number, each.code) for each in refused] == [
        ("open_rollout", number, "out_of_order") for number in range(MOST_OPEN, MOST_OPEN + 50)
    ]
    bench.hold = lambda action: isinstance(action, do.CloseAtGateway)
    bench.say("a", say.CloseRollout(0))
    bench.open("a", 1000)
    assert bench.told("a", say.Refused)[-1].number == 1000, "the one that closes counts, too"
    bench.release()
    bench.open("a", 1001)
    assert 1001 in bench.record("a").rollouts


@pytest.mark.parametrize("level", [2, 3])
def test_an_impatient_stop_does_not_wait(level: int) -> None:
    bench = serving()
    bench.hold = lambda action: isinstance(action, do.StopGroup)
    bench.feed(ev.Stop(level=1), ev.Stop(level=level))
    kills = {str(action.group): action.kill for action in bench.asked(do.StopGroup)}
    assert set(kills) == {"a/trainer", "a/engine/0", "a/engine/1"}
    assert set(kills.values()) == {level == 3}
    bench.release()
    assert bench.scheduler.finished


def test_nothing_is_started_while_everything_stops() -> None:
    bench = serving()
    bench.hold = lambda action: isinstance(action, do.StopGroup)
    bench.die(GATEWAY)
    bench.feed(ev.Stop(level=1))
    bench.done.clear()
    bench.release()
    bench.wait(20.0)
    assert not bench.asked(do.StartGateway)
    assert not bench.asked(do.StartGroup)
    assert not bench.asked(do.StartTrainer)
    assert bench.scheduler.finished

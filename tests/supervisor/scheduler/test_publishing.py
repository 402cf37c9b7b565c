"""What is published when, and which weights an engine has when it is routed: one rule a test."""

from supervisor.scheduler import actions as do
from tests.harness.checked_scheduler import well
from tests.harness.scheduler_bench import one, serving
from trainers.protocol import trainer_messages as say
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId

A = PipelineId("a")
TRAINER, GATEWAY, ENGINE = TrainerId(A), GatewayId(A), EngineId(A, 0)


def test_published_is_told_when_no_older_route_is_left() -> None:
    bench = serving()
    bench.hold = lambda action: isinstance(action, do.Unroute)
    bench.say("a", say.Publish(0, "w"))
    assert len(bench.held) == 2
    assert not bench.told("a", say.Published)
    bench.release()
    assert bench.told("a", say.Published) == [say.Published(0, 1)]
    assert all(engine.route == 1 for engine in bench.record("a").engines.values())


def test_a_route_under_way_is_taken_back_before_published_is_told() -> None:
    bench = one()
    bench.hold = lambda action: isinstance(action, do.Route)
    bench.open("a")
    assert len(bench.held) == 2
    bench.hold = lambda action: isinstance(action, do.Route | do.Unroute)
    bench.done.clear()
    bench.say("a", say.Publish(0, "w"))
    assert len(bench.asked(do.Unroute)) == 2, "at once: orders keep their order"
    assert not bench.told("a", say.Published), "a request may still go there"
    bench.release()
    assert bench.told("a", say.Published)
    assert all(engine.route == 1 for engine in bench.record("a").engines.values())


def test_published_is_told_when_the_gateway_knows_of_an_engine_that_died_with_older_weights() -> None:
    bench = serving()
    bench.hold = lambda action: isinstance(action, do.Unroute | do.Lost)
    bench.say("a", say.Publish(0, "w"))
    bench.die(ENGINE)
    bench.feed(*(well(action) for action in bench.held if isinstance(action, do.Unroute)))
    assert not bench.told("a", say.Published), "a request may still go to the dead"
    bench.feed(*(well(action) for action in bench.held if isinstance(action, do.Lost)))
    assert bench.told("a", say.Published)


def test_weights_in_use_do_not_change_under_a_route() -> None:
    bench = serving()
    bench.done.clear()
    bench.say("a", say.Publish(0, "w"))
    kinds = [type(action) for action in bench.done if getattr(action, "engine", None) == ENGINE]
    assert kinds == [do.Unroute, do.LoadWeights, do.Route]


def test_a_snapshot_lives_while_it_is_published_or_loaded_and_no_longer() -> None:
    bench = serving()
    bench.hold = lambda action: isinstance(action, do.LoadWeights)
    bench.say("a", say.Publish(0, "w"))
    bench.say("a", say.Publish(1, "w"))
    assert not bench.asked(do.DropSnapshot), "version 1 is being loaded"
    bench.release()
    assert [action.version for action in bench.asked(do.DropSnapshot)] == [1]
    bench.say("a", say.Publish(2, "w"))
    assert [action.version for action in bench.asked(do.DropSnapshot)] == [1, 2]


def test_one_publish_at_a_time() -> None:
    bench = one()
    bench.hold = lambda action: isinstance(action, do.AdoptSnapshot)
    bench.say("a", say.Publish(0, "w"))
    bench.say("a", say.Publish(1, "w"))
    assert bench.refused("a") == ["out_of_order"]
    bench.release()
    assert bench.told("a", say.Published) == [say.Published(0, 1)]


def test_engines_wake_with_the_published_weights() -> None:
    bench = serving()
    bench.say("a", say.CloseRollout(0))
    bench.lease("a")
    bench.say("a", say.Publish(0, "w"))
    bench.done.clear()
    bench.say("a", say.Offloaded(0))
    bench.open("a", 1)
    assert [action.version for action in bench.asked(do.Wake)] == [1]


def test_what_rank_0_could_not_write_is_refused_in_its_words_and_nothing_is_adopted() -> None:
    bench = serving()
    bench.say("a", say.Publish(0, "w", "not_finite", "lm_head.weight has values that are NaN"))
    assert bench.told("a", say.Refused) == [say.Refused("publish", 0, "not_finite", "lm_head.weight has values that are NaN")]
    assert not bench.asked(do.AdoptSnapshot)
    assert all(engine.route == 0 for engine in bench.record("a").engines.values())
    bench.say("a", say.Publish(1, "w"))
    assert bench.told("a", say.Published) == [say.Published(1, 1)]

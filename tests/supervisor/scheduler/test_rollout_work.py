"""Expected remaining work of a pipeline's rollouts, as the planner is given it."""

import pytest

from supervisor.scheduler import events as ev
from supervisor.scheduler.rollouts import Rollout, work
from tests.harness.scheduler_driver import LIFE, P1, Driver
from trainers.protocol.gateway_messages import Progress, RolloutProgress

QUIET = 60.0


def rollout(target: int, waiting: int, in_flight: int, done: int, expected: float = 0.0, longest: float = 0.0) -> Rollout:
    made = Rollout(0, target, 0.0)
    made.absorb(RolloutProgress(0, waiting, in_flight, done, expected=expected, longest=longest), 1.0)
    return made


def test_work_is_summed_and_the_longest_is_the_longest_of_all() -> None:
    both = [rollout(8, 4, 4, 0, 80.0, 20.0), rollout(4, 0, 2, 2, 10.0, 7.0)]
    assert work(both, 1.0, QUIET) == (90.0, 20.0)


def test_what_is_known_of_one_rollout_only_is_no_comparison() -> None:
    assert work([rollout(8, 4, 4, 0, 80.0, 20.0), rollout(4, 2, 2, 0)], 1.0, QUIET) == (0.0, 0.0)
    assert work([], 1.0, QUIET) == (0.0, 0.0)


def test_a_rollout_that_is_done_says_nothing_and_hides_nothing() -> None:
    assert work([rollout(8, 4, 4, 0, 80.0, 20.0), rollout(4, 0, 0, 4)], 1.0, QUIET) == (80.0, 20.0)


def test_samples_that_have_not_been_asked_for_are_like_those_that_have() -> None:
    assert work([rollout(16, 2, 2, 8, 40.0, 30.0)], 1.0, QUIET) == (pytest.approx(80.0), 30.0)


def test_nothing_is_known_of_a_rollout_of_which_nothing_was_asked() -> None:
    assert work([rollout(16, 0, 0, 8)], 1.0, QUIET) == (0.0, 0.0)


def test_what_a_dead_gateway_knew_is_forgotten() -> None:
    made = rollout(8, 4, 4, 0, 80.0, 20.0)
    made.gateway_lost(2.0)
    assert (made.expected, made.longest) == (0.0, 0.0)


def test_what_the_gateway_reports_is_what_the_planner_bids_with() -> None:
    driver = Driver()
    driver.open(16)

    def bid() -> tuple[int, float, float]:
        (share,) = driver.scheduler.view.shares
        return share.unfinished, share.expected, share.longest

    assert bid() == (16, 0.0, 0.0), "counts, as long as nothing is known"
    report = RolloutProgress(0, 6, 2, 8, expected=120.0, longest=60.0)
    driver.feed(ev.GatewaySaid(pipeline=P1, incarnation=LIFE, progress=Progress((report,))))
    assert bid() == (8, 120.0, 60.0)

"""The order of dispatch by what is expected, in the dispatch core: who goes first, what finished samples teach, and what it costs."""

import time
from random import Random
from typing import Any

import pytest

from engines.gateway.core.events import Finished
from engines.gateway.core.ordering.order import Queue
from engines.gateway.core.records import Estimate, Phase, Rollout, Sample
from engines.gateway.core.samples import SampleKey, State
from tests.harness.dispatch_driver import ABORTED, DispatchDriver, request
from trainers.protocol.gateway_messages import RolloutProgress

STOP = Finished({"type": "stop"})


def made(driver: DispatchDriver, attempt: int, count: int, end: Finished = STOP) -> None:
    """The attempt makes so many tokens and ends."""
    driver.make(attempt, *[5] * count)
    driver.end(attempt, end)


def prompts(driver: DispatchDriver) -> list[int]:
    return [start.body["input_ids"][0] for start in driver.running.values()]


def ask(driver: DispatchDriver, rollout: int, asked: list[int], limit: int = 100, **more: Any) -> list[int]:
    return [driver.ask(rollout, str(index), wants=request(prompt, limit, **more)) for index, prompt in enumerate(asked)]


def test_the_same_prompts_of_an_earlier_rollout_tell_who_is_long() -> None:
    driver = DispatchDriver()
    driver.route(slots=3)
    driver.open(0)
    ask(driver, 0, [1, 2, 3])
    for attempt, tokens in zip(tuple(driver.running), (5, 80, 20), strict=True):
        made(driver, attempt, tokens)
    driver.close(0)
    driver.drain(0)
    driver.open(1)
    ask(driver, 1, [1, 2, 3])
    driver.route(slots=1)
    order = []
    while driver.running:
        order += prompts(driver)
        made(driver, driver.only(), 1)
    assert order == [2, 3, 1]


def test_the_first_of_a_group_to_end_moves_its_mates() -> None:
    driver = DispatchDriver()
    driver.route(slots=3)
    driver.open(0)
    ask(driver, 0, [1, 2, 3, 1, 2, 3, 1, 2, 3], limit=400)
    assert prompts(driver) == [1, 2, 3]
    first = tuple(driver.running)
    made(driver, first[1], 3)
    assert prompts(driver) == [1, 3, 1], "prompt 2 is short"
    made(driver, first[2], 390)
    assert prompts(driver) == [1, 1, 3], "prompt 3 is long"
    made(driver, first[0], 30)
    assert prompts(driver) == [1, 3, 3]


def test_an_interrupted_sample_goes_by_what_is_left_of_it() -> None:
    driver = DispatchDriver()
    driver.route(0, slots=2)
    driver.open(0)
    ask(driver, 0, [1, 2], expected_tokens=60)
    ask_more = [driver.ask(0, str(index), wants=request(index, 100, expected_tokens=40)) for index in (3, 4)]
    assert ask_more
    short, long = tuple(driver.running)
    driver.make(short, *[5] * 50)
    driver.make(long, *[5] * 2)
    driver.drain(0)
    driver.end(short, ABORTED)
    driver.end(long, ABORTED)
    driver.route(1, slots=4)
    assert prompts(driver) == [2, 3, 4, 1], "most is left of 2, and least of 1"


def test_a_sample_that_the_close_has_cut_short_is_remembered_as_long() -> None:
    driver = DispatchDriver()
    driver.route(0, slots=2)
    driver.open(0)
    ask(driver, 0, [1, 2], limit=1000)
    cut, whole = tuple(driver.running)
    made(driver, whole, 60)
    driver.make(cut, *[5] * 55)
    driver.close(0)
    driver.end(cut, ABORTED)
    driver.drain(0)
    driver.open(1)
    ask(driver, 1, [2, 1], limit=1000)
    driver.route(1, slots=1)
    assert prompts(driver) == [1], "it had made 55 tokens and would have made more"


def test_without_any_knowledge_the_order_is_the_index_and_counts_are_reported() -> None:
    driver = DispatchDriver()
    driver.open(0)
    ask(driver, 0, [1, 2, 3, 4])
    assert driver.core.progress().rollouts == (RolloutProgress(0, 4, 0, 0),)
    driver.route(slots=4)
    assert prompts(driver) == [1, 2, 3, 4]
    assert driver.core.progress().rollouts == (RolloutProgress(0, 0, 4, 0),)
    made(driver, next(iter(driver.running)), 50)
    assert driver.core.progress().rollouts == (RolloutProgress(0, 0, 3, 1),), "a mean of all says nothing of any"


def test_what_is_known_is_reported_as_work() -> None:
    driver = DispatchDriver()
    driver.open(0)
    ask(driver, 0, [1, 2, 3], limit=10**6, expected_tokens=100)
    driver.ask(0, "3", wants=request(4, 10**6, expected_tokens=1000))
    (report,) = driver.core.progress().rollouts
    mean = 1.1331  # of a log-normal, over its median
    assert (report.expected, report.longest) == (pytest.approx(1300 * mean, rel=1e-3), pytest.approx(1000 * mean, rel=1e-3))
    driver.now += 1
    driver.route(slots=1)
    driver.make(driver.only(), *[5] * 900)
    driver.now += 1
    driver.route(slots=1)
    (later,) = driver.core.progress().rollouts
    assert later.longest < report.longest
    assert later.expected < report.expected - 400
    driver.close(0)
    assert driver.core.progress().rollouts == ()


def test_the_order_is_the_same_for_the_same_history() -> None:
    def history(seed: int) -> list[tuple[int, ...]]:
        random, driver, order = Random(seed), DispatchDriver(), []
        driver.route(0, slots=4)
        driver.route(1, slots=4)
        for rollout in range(3):
            driver.open(rollout)
            ask(driver, rollout, [index // 8 for index in range(64)], limit=500)
            while driver.running:
                attempt = random.choice(tuple(driver.running))
                order.append((rollout, attempt, *driver.running[attempt].body["input_ids"][:1], driver.running[attempt].engine))
                made(driver, attempt, random.randint(1, 60))
            driver.close(rollout)
        return order

    assert history(1) == history(1)


def test_a_sample_pushed_again_is_popped_once_and_where_it_belongs() -> None:
    left: dict[int, float] = {}
    queue = Queue(lambda sample: Estimate(left[sample.serial], own=True))
    rollout = Rollout(number=0, serial=1, phase=Phase.OPEN, since=0.0)
    samples = [Sample(key=SampleKey(0, str(serial)), request=request(), rollout=rollout, serial=serial) for serial in range(6)]
    left.update({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0, 5: 6.0})
    for sample in samples:
        queue.push(sample, 6)
    for serial, value in [(0, 9.0), (5, 0.5), (3, 9.0), (3, 4.0), (0, 1.0), (0, 9.0), (2, 3.0)]:
        left[serial] = value
        queue.push(samples[serial], 6)
    samples[4].state = State.DONE
    popped = []
    while queue:
        popped.append(queue.pop().serial)
    assert popped == [0, 3, 2, 1, 5]
    for sample in samples[:2]:
        queue.push(sample, 2)
    left.update({0: 1.0, 1: 9.0})
    queue.resort()
    assert [queue.pop().serial, queue.pop().serial, bool(queue)] == [1, 0, False]


def test_ten_thousand_waiting_samples_cost_nothing_noticeable() -> None:
    driver, random = DispatchDriver(), Random(3)
    driver.route(slots=256)
    driver.open(0, target=10_000)
    begun = time.process_time()
    ask(driver, 0, [index // 8 for index in range(10_000)], limit=4000)
    asked = time.process_time()
    ended = reports = 0
    for _ in range(2000):
        made(driver, next(iter(driver.running)), random.randint(1, 40))
        ended += 1
        driver.now += 0.005
        if ended % 10 == 0:
            driver.core.progress()
            reports += 1
    done = time.process_time()
    assert (asked - begun) / 10_000 < 300e-6
    assert (done - asked) / ended < 1e-3, f"{(done - asked) / ended * 1e6:.0f} us a sample, from its start to its end"

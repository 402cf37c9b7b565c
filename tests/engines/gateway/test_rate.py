"""How many tokens an event of an engine has, and how they are held until somebody gets them."""

import asyncio
import math
import sys
from array import array
from pathlib import Path

import pytest

from engines.gateway.core.attempts import MOST_AT_ONCE, MOST_READ_AT_ONCE, tokens_at_once
from engines.gateway.core.events import Tokens
from engines.gateway.core.samples import SINGLE, TOKENS, Request, joined
from tests.harness.dispatch_driver import DispatchDriver, request
from tests.harness.gateway_box import box, right, sample, samples
from tests.harness.scripted_engine import Script, ScriptedEngine


def intervals(driver: DispatchDriver) -> list[int | None]:
    return [start.body["sampling_params"].get("stream_interval") for start in driver.running.values()]


def test_the_more_run_the_more_tokens_an_event_has() -> None:
    assert [tokens_at_once(count, False) for count in (1, 15, 16, 64, 256, 10_000)] == [1, 1, 2, 8, MOST_AT_ONCE, MOST_AT_ONCE]
    assert tokens_at_once(10_000, True) == MOST_READ_AT_ONCE


@pytest.mark.parametrize(
    ("target", "slots", "interval"),
    [(8, 4096, None), (64, 4096, 8), (1024, 4096, 32), (1024, 32, 4)],
    ids=["few", "some", "many", "few slots"],
)
def test_an_engine_is_asked_for_events_of_as_many_tokens_as_will_run(target: int, slots: int, interval: int | None) -> None:
    driver = DispatchDriver()
    driver.route(slots=slots)
    driver.open(target=target)
    driver.ask(0, "0")
    assert intervals(driver) == [interval]


def test_what_runs_already_counts_too_and_readers_are_told_sooner() -> None:
    driver = DispatchDriver()
    driver.route(slots=4096)
    driver.open(target=1)
    for index in range(128):
        driver.ask(0, str(index))
    assert intervals(driver)[-1] == 16
    driver.ask(0, "128", streams=True)
    assert intervals(driver)[-1] == MOST_READ_AT_ONCE
    own = Request(array(TOKENS, [1]), {"stream_interval": 3}, 4, fingerprint=1)
    driver.ask(0, "129", wants=own)
    assert intervals(driver)[-1] == 3, "what a client says holds"


def test_what_a_dead_engine_had_not_told_is_made_again(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(Script(delay=0.002, key="secret")) as one:
            await gateway.route(one, 0, slots=64)
            await gateway.open(0, target=64)
            work = asyncio.create_task(samples(session, 0, [sample(index, 40) for index in range(64)]))
            await gateway.busy(0)
            await one.die()
            async with ScriptedEngine(Script(key="secret")) as two:
                await gateway.route(two, 1, slots=64)
                await gateway.lost(0)
                lines = await work
            assert {body["sampling_params"].get("stream_interval") for body in one.bodies} == {8}
            assert all(right(0, index, lines[index], 40) for index in range(64))
            assert any(len(line["spans"]) > 1 for line in lines.values()), "nothing was interrupted"

    asyncio.run(play())


def test_log_probs_are_held_in_four_bytes_while_that_is_exact() -> None:
    single = [-0.6931471824645996, 0.0, -123.5, -1.1920928955078125e-07]
    held = joined(array(SINGLE), single)
    assert (held.typecode, held.tolist()) == (SINGLE, single)
    held = joined(held, array("d", [-0.5]))
    assert (held.typecode, held.tolist()) == (SINGLE, [*single, -0.5])
    double = [-0.1, -1e300]
    held = joined(held, double)
    assert held.tolist() == [*single, -0.5, *double]
    held = joined(held, [-0.5, math.nan])
    assert held.tolist()[:-1] == [*single, -0.5, *double, -0.5]
    assert math.isnan(held[-1])


def test_a_token_that_is_held_takes_at_most_ten_bytes() -> None:
    driver = DispatchDriver()
    driver.route()
    driver.open()
    driver.ask(0, "0", wants=request(limit=4096))
    attempt = driver.only()
    for _ in range(128):
        driver.tell(Tokens(attempt, array(TOKENS, [150_000] * 32), array("d", [-0.6931471824645996] * 32)))
    driver.end(attempt)
    answer = driver.answer(1)
    assert len(answer.ids) == 4096
    assert sys.getsizeof(answer.ids) + sys.getsizeof(answer.logprobs) <= 10 * 4096

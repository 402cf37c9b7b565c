"""Requests to an engine, whole and interrupted: the same for ours, the scripted one and real SGLang."""

import asyncio
from typing import Any
from uuid import uuid4

import anyio
import pytest

from engines.control import EngineControl
from engines.gateway.core.events import Refused
from tests.harness.sglang.asking import LONG, PROMPT, Asked, asking, greedy
from tests.harness.sglang.served import CONTEXT, Served

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]


async def test_a_stream_has_every_token_once_with_its_logprob(engine: Served, control: EngineControl) -> None:
    asked = await Asked(engine, PROMPT, 40).run()
    assert asked.reason == "length"
    assert len(asked.ids) == len(asked.logprobs) == 40
    assert all(logprob <= 0 for logprob in asked.logprobs)
    assert asked.end.meta["completion_tokens"] == 40
    spans = asked.end.meta["weight_versions"]
    assert (spans[0]["start"], spans[-1]["end"]) == (0, 40)


async def test_greedy_answers_repeat(engine: Served) -> None:
    assert await greedy(engine, PROMPT, 32) == await greedy(engine, PROMPT, 32)


# -- partial rollouts


async def test_an_abort_keeps_the_tokens_so_far(engine: Served, control: EngineControl) -> None:
    asked = Asked(engine, PROMPT, LONG)
    async with asking(asked):
        await asked.has(3)
        engine.post("/abort_request", {"rid": asked.rid})
    assert asked.reason in ("abort", "length")
    assert len(asked.ids) == len(asked.logprobs) >= 3


@pytest.mark.parametrize(("after", "interval"), [(1, 1), (7, 1), (30, 1), (7, 16)])
async def test_interrupted_and_continued_is_the_uninterrupted(engine: Served, after: int, interval: int) -> None:
    whole = await greedy(engine, PROMPT, 80)
    first = Asked(engine, PROMPT, 80, stream_interval=interval)
    async with asking(first):
        await first.has(after)
        engine.post("/abort_request", {"rid": first.rid})
    got = first.ids
    assert len(got) == first.end.meta["completion_tokens"], "tokens that no event had told yet are lost with the abort"
    if len(got) < 80:
        got = got + await greedy(engine, PROMPT + got, 80 - len(got))
    assert got == whole


async def test_abort_of_an_unknown_request_is_nothing(engine: Served) -> None:
    engine.post("/abort_request", {"rid": uuid4().hex})


async def test_an_abort_takes_everything_that_begins_with_its_id(engine: Served) -> None:
    """Trap: the id is matched as a prefix, so ours are all of one length."""
    one, other = Asked(engine, PROMPT, LONG), Asked(engine, PROMPT[:2], LONG)
    one.rid, other.rid = "a" * 31 + "1", "b" * 32
    async with asking(one, other):
        await one.has(1)
        await other.has(1)
        engine.post("/abort_request", {"rid": "a" * 31})
    assert other.reason == "length"
    assert len(other.ids) == LONG


async def test_a_connection_that_is_cut_frees_its_slot(engine: Served, control: EngineControl) -> None:
    """A cut is what the gateway does to an engine that does not answer an abort in time."""
    asked = Asked(engine, PROMPT, LONG)
    task = asyncio.ensure_future(asked.run())
    await asked.has(1)
    running = (await control.load_info(10)).running
    assert running == 1 or task.done()  # the scripted engine may be through by now
    task.cancel()
    with anyio.fail_after(20):
        while (await control.load_info(10)).running:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.05)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 7.0}])
async def test_what_is_no_request_is_refused_and_no_fault_of_the_engine(engine: Served, wrong: dict[str, Any]) -> None:
    if engine.kind == "scripted":
        pytest.skip("the scripted engine takes whatever it is asked")
    asked = await Asked(engine, PROMPT, 4, **wrong).run()
    assert isinstance(asked.end, Refused), asked.end
    asked = await Asked(engine, [5] * (CONTEXT + 1), 4).run()
    assert isinstance(asked.end, Refused), asked.end
    assert await greedy(engine, PROMPT, 4)

"""Traps of a bare SGLang that cost time rather than a start: one engine for all of them, with short deadlines; the last one kills it."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from engines.control import EngineControl, EngineRefused, EngineTimedOut, new_session
from tests.harness.sglang.asking import LONG, PROMPT, Asked, asking, greedy
from tests.harness.sglang.served import REAL, Served, launched, make_models, serving

HEALTH_S, WATCHDOG_S = 3, 10
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not REAL, reason="TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """In place of 20 s for a health probe and 300 s for its watchdog. Its streams have an event for every eight tokens."""
    args, env = ["--watchdog-timeout", str(WATCHDOG_S), "--stream-interval", "8"], {"SGLANG_HEALTH_CHECK_TIMEOUT": str(HEALTH_S)}
    with serving("sglang", tmp_path_factory.mktemp("traps"), args=args, env=env) as served:
        yield served


def test_the_keys_are_on_no_command_line(engine: Served) -> None:
    for process in [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]:
        assert not any(engine.key in word for word in process.cmdline())
    port = int(engine.url.rpartition(":")[2])
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port]
    assert [connection.laddr.ip for connection in listening] == ["127.0.0.1"]


async def test_trap_4_a_probe_of_a_paused_engine_latches_unhealthy(engine: Served) -> None:
    """`/health` is a flag by our environment; `/health_generate` computes, waits in vain, and `/ready` says no until one succeeds."""
    assert engine.call("GET", "/ready")[0] == 200
    asked = Asked(engine, PROMPT, LONG)
    async with asking(asked):
        await asked.has(1)
        engine.post("/pause_generation", {"mode": "retract"})
        await asked.rests()  # any output counts as a sign of health
        began = time.monotonic()
        status, _ = engine.call("GET", "/health_generate")
        assert (status, time.monotonic() - began >= HEALTH_S - 0.5) == (503, True)
        engine.post("/continue_generation")
    assert asked.reason == "length"
    assert engine.call("GET", "/ready")[0] == 503
    assert engine.call("GET", "/health_generate")[0] == 200
    assert engine.call("GET", "/ready")[0] == 200


@pytest.mark.parametrize("after", [1, 20])
async def test_an_abort_answers_with_the_tokens_that_were_not_sent_yet(engine: Served, after: int) -> None:
    asked = Asked(engine, PROMPT, LONG)
    async with asking(asked):
        await asked.has(after)
        engine.post("/abort_request", {"rid": asked.rid})
    assert asked.reason == "abort"
    assert len(asked.ids) == len(asked.logprobs) == asked.end.meta["completion_tokens"]


async def test_its_loads_are_not_those_of_now_while_it_is_paused(engine: Served) -> None:
    """So they are hints for routing, and a drain counts its own requests."""
    requests = [Asked(engine, [*PROMPT, index + 4], LONG) for index in range(4)]
    async with asking(*requests), new_session() as session:
        for request in requests:
            await request.has(1)
        engine.post("/pause_generation", {"mode": "retract"})
        load = await EngineControl(engine.url, engine.key, session).load_info(10)
        engine.post("/continue_generation")
    assert load.running > 0, "retracted: nothing runs"


async def test_a_stopped_scheduler_hangs_the_round_trip_and_nothing_else(engine: Served) -> None:
    """It never exits for it; `/model_info` and `/health` still answer, so a sleeper is asked `/server_info`."""
    (scheduler,) = [child for child in psutil.Process(engine.pid).children(recursive=True) if "scheduler" in " ".join(child.cmdline())]
    scheduler.suspend()
    try:
        async with new_session() as session:
            control = EngineControl(engine.url, engine.key, session)
            with pytest.raises(EngineTimedOut):
                await control.probe(1.0)
            await control.model_info(5)
            await control.health(5)
    finally:
        scheduler.resume()
    assert await greedy(engine, PROMPT, 4)


async def test_a_load_never_leaves_the_label_of_what_was_not_loaded(engine: Served) -> None:
    """Trap: `/update_weight_version` sets the label alone and aborts everything by default. Not one of our calls."""
    before = engine.call("GET", "/model_info")[1]["weight_version"]
    asked = Asked(engine, PROMPT, LONG)
    async with asking(asked):
        await asked.has(1)
        engine.post("/update_weight_version", {"new_version": "77"})
    assert asked.reason == "abort"
    assert engine.call("GET", "/model_info")[1]["weight_version"] == "77"
    engine.post("/update_weight_version", {"new_version": before, "abort_all_requests": False})


async def test_trap_5_a_pause_in_place_outlasts_its_watchdog_and_a_term_does_not_end_it(engine: Served) -> None:
    """What is paused cannot end, so a TERM waits for it for ever; we escalate. The watchdog counts a batch that does not move as stuck."""
    asked = Asked(engine, PROMPT, LONG)
    async with asking(asked):
        await asked.has(1)
        engine.post("/pause_generation", {"mode": "in_place"})
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.dies(WATCHDOG_S / 2) is None
        assert engine.dies(WATCHDOG_S * 3 + 15) is not None
    assert not hasattr(asked.end, "reason"), "its end is that of the engine"


async def test_a_port_that_is_taken_is_logged_and_it_lives_on(tmp_path: Path) -> None:
    """So the start has a deadline, and whoever answers on the port must know the key."""
    model, _ = make_models("sglang", tmp_path)
    log = tmp_path / "engine.log"
    held: list[socket.socket] = []
    with launched("sglang", tmp_path, model, log, occupy=lambda port: held.append(socket.create_server(("127.0.0.1", port)))) as (
        url,
        process,
    ):
        try:
            deadline = time.monotonic() + 480
            while "address already in use" not in log.read_text(errors="replace").lower():
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                await anyio.sleep(0.2)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(5)
            async with new_session() as session:
                with pytest.raises((EngineTimedOut, EngineRefused)):
                    await EngineControl(url, "key", session).ready(2)
        finally:
            held[0].close()

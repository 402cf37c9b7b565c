"""What an engine must do to be driven by us, and what must not reach it: the same for ours, the scripted one and real SGLang.

Real SGLang runs where TRAINSHED_SGLANG names an environment made by `bin/sglang-cpu`. Numbers in names of tests are those of the traps
in docs/engines.md.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec
import pytest

from engines.control import EngineControl, EngineGarbled, EnginePoisoned, EngineRefused, EngineTimedOut, Memory
from tests.harness.sglang.asking import LONG, PROMPT, Asked, asking, greedy
from tests.harness.sglang.served import Served
from trainers.grpo.train import as_in_files
from trainers.protocol.ids import Version
from trainers.weights import SnapshotError, adopt, layout_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

# -- it is there, it is ours, it can


async def test_it_is_ready_and_ours(engine: Served, control: EngineControl) -> None:
    info = await control.ready(10)
    assert info.version == 0
    await control.canary(30)
    await control.health(5)
    await control.health_generate(30)
    assert (await control.probe(10)).version.startswith("0.5.")
    load = await control.load_info(10)
    assert load.waiting == 0


async def test_it_turns_away_who_has_no_key(engine: Served, session: aiohttp.ClientSession) -> None:
    with pytest.raises(EngineGarbled, match="another process has the port"):
        await EngineControl(engine.url, "key of another life", session).ready(10)
    async with session.post(engine.url + "/abort_request", json={"abort_all": True}) as reply:
        assert reply.status in (401, 403)


# -- sleep and wake


async def test_it_sleeps_and_wakes_with_the_version_that_was_asked_for(engine: Served, control: EngineControl) -> None:
    before = await greedy(engine, PROMPT, 24)
    await control.pause(30)
    await control.pause(30)  # does nothing
    assert control.memory is Memory.ASLEEP
    began = time.monotonic()
    await control.probe(5)
    await control.model_info(5)
    assert time.monotonic() - began < 5
    assert await control.wake(Version(11), str(engine.other), 60) == 11
    other = await greedy(engine, PROMPT, 24)
    await control.pause(30)
    assert await control.wake(Version(12), str(engine.first), 60) == 12
    assert await greedy(engine, PROMPT, 24) == before
    assert (other != before) is engine.computes
    assert (await control.model_info(5)).version == 12


async def test_pausing_a_busy_engine_gives_what_there_is(engine: Served, control: EngineControl) -> None:
    requests = [Asked(engine, [*PROMPT, index + 4], LONG) for index in range(8)]
    async with asking(*requests):
        for request in requests:
            await request.has(1)
        await control.pause(30)
    for request in requests:
        assert request.reason in ("abort", "length")
        assert len(request.ids) == len(request.logprobs)
    assert any(request.reason == "abort" for request in requests)
    assert await control.wake(Version(13), str(engine.first), 60) == 13


async def test_a_load_in_place_lets_what_runs_go_on(engine: Served, control: EngineControl) -> None:
    requests = [Asked(engine, [*PROMPT, index + 4], LONG) for index in range(8)]
    async with asking(*requests):
        for request in requests:
            await request.has(1)
        assert await control.load(Version(21), str(engine.other), 60) == 21
    for request in requests:
        assert request.reason == "length"
        assert len(request.ids) == len(request.logprobs) == LONG
    spans = [[span["version"] for span in request.end.meta["weight_versions"]] for request in requests]
    assert any(len(versions) == 2 and versions[1] == "21" for versions in spans), spans
    assert await control.load(Version(22), str(engine.first), 60) == 22


async def test_bytes_are_told_apart_and_labels_are_not_bytes(engine: Served, control: EngineControl) -> None:
    if engine.kind == "embedded":
        pytest.skip("the embedded engine has no checksums")
    await control.load(Version(31), str(engine.first), 60)
    first = await control.checksum(30)
    assert await control.checksum(30) == first
    await control.load(Version(32), str(engine.other), 60)
    assert await control.checksum(30) != first
    if engine.computes:
        await control.load(Version(33), str(engine.first), 60)
        assert await control.checksum(30) == first


async def test_experts_under_other_names_are_skipped_without_a_word(engine: Served, control: EngineControl, tmp_path: Path) -> None:
    """Trap: it says `success` and has the version. So the supervisor compares names when a snapshot is published."""
    if engine.kind != "sglang-moe":
        pytest.skip("a matter of mixtures of experts")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    await control.load(Version(34), str(engine.other), 60)
    whole = await control.checksum(30)
    await control.load(Version(35), str(engine.first), 60)
    model = AutoModelForCausalLM.from_pretrained(engine.other, dtype=torch.float32)
    sums = []
    for version, name, state in ((36, "by-state", model.state_dict()), (37, "by-file", as_in_files(model))):
        folder = shutil.copytree(engine.other, tmp_path / name)
        save_file({tensor: value.contiguous() for tensor, value in state.items()}, folder / "model.safetensors")
        assert await control.load(Version(version), str(folder), 60) == version
        sums.append(await control.checksum(30))
    assert sums[0] != whole
    assert sums[1] == whole
    with pytest.raises(SnapshotError, match="in another way than the model"):
        adopt(tmp_path, "by-state", 1, layout_of(engine.first))
    await control.load(Version(38), str(engine.first), 60)


# -- traps: what a bare engine dies of, or hangs in, is never sent


async def test_trap_1_release_and_resume_out_of_turn_are_refused_here(engine: Served, control: EngineControl) -> None:
    with pytest.raises(EngineRefused, match="awake"):
        await control.wake(Version(1), str(engine.first), 10)
    await control.pause(30)
    with pytest.raises(EngineRefused, match="asleep"):
        await control.load(Version(1), str(engine.first), 10)
    assert await control.wake(Version(41), str(engine.first), 60) == 41
    with pytest.raises(EngineRefused, match="awake"):
        await control.wake(Version(1), str(engine.first), 10)
    await control.canary(30)
    assert engine.alive()


async def test_trap_4_no_health_probe_and_no_canary_reaches_a_sleeper(engine: Served, control: EngineControl) -> None:
    await control.pause(30)
    for probe in (control.health, control.health_generate, control.canary, control.checksum):
        with pytest.raises(EngineRefused, match="asleep"):
            await probe(5)
    await control.probe(5)
    assert await control.wake(Version(42), str(engine.first), 60) == 42
    await control.health_generate(30)  # it has not latched an unhealthy state


async def test_trap_7_what_is_sent_to_a_paused_engine_waits_and_cannot_be_aborted(engine: Served) -> None:
    engine.post("/pause_generation", {"mode": "abort"})
    asked = Asked(engine, PROMPT, 4)
    async with asking(asked):
        await anyio.sleep(0.3)
        engine.post("/abort_request", {"rid": asked.rid})
        await anyio.sleep(0.3)
        assert asked.end is None
        engine.post("/continue_generation")
    assert asked.reason in ("length", "abort")


async def test_nothing_can_be_flushed_while_requests_stay_in_place(engine: Served) -> None:
    if engine.kind == "scripted":
        pytest.skip("the scripted engine pauses by abort and retract only")
    asked = Asked(engine, PROMPT, LONG)
    async with asking(asked):
        await asked.has(1)
        engine.post("/pause_generation", {"mode": "in_place"})
        status, _ = engine.call("POST", "/flush_cache", {})
        engine.post("/continue_generation")
    assert status == 400
    assert asked.reason == "length"


async def test_trap_6_tensors_need_an_open_session(engine: Served) -> None:
    """Not one of our calls yet; the adapter for faster paths must know it."""
    if not engine.real:
        pytest.skip("only SGLang takes tensors")
    status, answer = engine.call("POST", "/update_weights_from_tensor", {"serialized_named_tensors": ["AAAA"], "flush_cache": False})
    assert status == 400, answer
    assert engine.alive()


async def test_trap_9_memory_usage_is_of_the_start(engine: Served, control: EngineControl) -> None:
    if not engine.real:
        pytest.skip("only SGLang tells it")

    def told() -> Any:
        return engine.call("GET", "/server_info")[1]["internal_states"][0]["memory_usage"]

    before = told()
    await control.pause(30)
    assert told() == before  # so memory is measured from outside
    assert await control.wake(Version(43), str(engine.first), 60) == 43


# -- poison; these leave the engine paused, and put it right by hand


async def test_a_load_that_fails_is_poison_and_nothing_is_sent_after_it(
    engine: Served, control: EngineControl, session: aiohttp.ClientSession
) -> None:
    if engine.kind == "scripted":
        pytest.skip("the scripted engine loads whatever it is told")
    with pytest.raises(EnginePoisoned, match="version 9 from /nonexistent"):
        await control.load(Version(9), "/nonexistent", 60)
    assert control.memory is Memory.UNKNOWN
    for operation in (control.pause(5), control.load(Version(9), str(engine.first), 5), control.wake(Version(9), str(engine.first), 5)):
        with pytest.raises(EngineTimedOut, match="unknown"):
            await operation
    assert engine.alive()
    engine.post("/continue_generation")
    assert await EngineControl(engine.url, engine.key, session).load(Version(51), str(engine.first), 60) == 51


async def test_no_answer_of_it_is_too_long_or_of_another_shape(engine: Served) -> None:
    """Every reply that we read decodes within our limit (`/server_info` is the longest)."""
    for path in ("/model_info", "/server_info", "/v1/loads?include=core"):
        status, answer = engine.call("GET", path)
        assert status == 200
        assert len(msgspec.json.encode(answer)) < 1 << 20

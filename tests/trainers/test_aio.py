"""The asynchronous face of the client: the same answers, no thread for who waits, and nothing left open by who is cancelled."""

import ast
import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import trainshed
import trainshed.aio

from tests.harness.fake_supervisor import FakeGateway, FakeSupervisor, echo, line
from trainers.protocol import trainer_messages as m


def test_it_is_of_the_standard_library_for_python_3_9() -> None:
    tree = ast.parse(Path(trainshed.aio.__file__).read_text("utf-8"), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"trainshed"}


def test_a_script_on_asyncio(tmp_path: Path) -> None:
    async def play(trajectory: trainshed.aio.Trajectory) -> int:
        async with trajectory:
            ids = [1]
            for _ in range(3):
                ids = [*ids, *(await trajectory.generate(ids)).output_ids]
        return len(ids)

    async def script(pipeline: trainshed.aio.Pipeline) -> None:
        async with pipeline.lease("init"):
            assert await pipeline.restore(dict) == 0
        async with pipeline.rollout(trajectories=40) as rollout:
            assert await asyncio.gather(*(play(rollout.trajectory(game)) for game in range(40))) == [8] * 40
            samples = await rollout.samples()
            assert [sample.key for sample in samples] == [(game, turn) for game in range(40) for turn in range(3)]
        async with pipeline.lease("train") as lease:
            await lease.become("train")
        await pipeline.checkpoint(0, "/c")
        pipeline.report(0, reward=1)

    with FakeGateway() as gateway, FakeSupervisor(tmp_path, url=gateway.url, gpus=()) as supervisor:
        asyncio.run(script(trainshed.aio.Pipeline(supervisor.connect())))
        assert {"request_lease", "open_rollout", "end_trajectories", "close_rollout", "exchange_lease", "checkpoint"} <= set(
            supervisor.tags()
        )


def test_samples_come_as_they_are_completed_while_the_loop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainshed, "_TOKENS_PER_REQUEST", 1)
    gates = {sample: threading.Event() for sample in range(4)}

    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert gates[requests[0]["sample"]].wait(10)
        if requests[0]["sample"] == 3:
            return [{"sample": 3, "error": {"code": "too_long", "message": "no"}}]
        return [line(requests[0]["sample"], [7])]

    async def script(pipeline: trainshed.aio.Pipeline) -> None:
        async with pipeline.rollout(4) as rollout:
            rollout.start([[i] for i in range(4)])
            coming = rollout.as_completed()
            for index in (2, 0):
                asyncio.get_running_loop().call_later(0.01, gates[index].set)
                assert (await coming.__anext__()).index == index
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(rollout.samples([1]), 0.01)
            assert not pipeline.sync._channel.listeners, "who has given up is not called any more"
            gates[1].set()
            gates[3].set()
            assert (await coming.__anext__()).index == 1
            with pytest.raises(trainshed.SamplesFailed, match="too_long"):
                await coming.__anext__()
            assert [one.index for one in await rollout.first(2, [0, 1])] == [0, 1]
            await rollout.cancel()

    with FakeGateway(answer) as gateway, FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        gateway.lines = answer  # type: ignore[method-assign]
        asyncio.run(script(trainshed.aio.Pipeline(supervisor.connect())))


def test_who_waits_costs_no_thread(tmp_path: Path) -> None:
    asked = threading.Event()

    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert asked.wait(10)
        return echo(rollout, requests)

    async def script(pipeline: trainshed.aio.Pipeline) -> None:
        async with pipeline.rollout(500) as rollout:
            keys = rollout.start([[1]] * 500)
            before = threading.active_count()
            waiting = [asyncio.ensure_future(rollout.samples([key])) for key in keys]
            await asyncio.sleep(0)
            assert threading.active_count() == before
            asked.set()
            assert len(await asyncio.gather(*waiting)) == 500

    with FakeGateway(answer) as gateway, FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        asyncio.run(script(trainshed.aio.Pipeline(supervisor.connect())))


def test_what_is_cancelled_while_it_opens_is_closed(tmp_path: Path) -> None:
    said = {"open_rollout": threading.Event(), "close_rollout": threading.Event()}

    async def script(pipeline: trainshed.aio.Pipeline, supervisor: FakeSupervisor) -> None:
        opening = asyncio.ensure_future(pipeline.rollout(1).__aenter__())
        assert await asyncio.to_thread(said["open_rollout"].wait, 10)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        supervisor.tell(m.RolloutOpened(0))
        assert await asyncio.to_thread(said["close_rollout"].wait, 10)

    with FakeSupervisor(tmp_path) as supervisor:
        pipeline = trainshed.aio.Pipeline(supervisor.connect())
        supervisor.mute.add("open_rollout")
        supervisor.before = lambda rank, message: said[str(message.__struct_config__.tag)].set()
        asyncio.run(script(pipeline, supervisor))


def test_a_lost_supervisor_is_told(tmp_path: Path) -> None:
    async def script(pipeline: trainshed.aio.Pipeline, supervisor: FakeSupervisor) -> None:
        async with pipeline.rollout(1) as rollout:
            rollout.start([[1]])
            waiting = asyncio.ensure_future(rollout.samples())
            await asyncio.sleep(0)
            supervisor.tell(m.Stopping(1.0))
            with pytest.raises(trainshed.RolloutRefused, match="stopping"):
                await waiting

    with FakeSupervisor(tmp_path) as supervisor:
        asyncio.run(script(trainshed.aio.Pipeline(supervisor.connect()), supervisor))

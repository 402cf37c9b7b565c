"""What onlookers are told of memory, beside those who hand GPUs over."""

from collections.abc import Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import structlog

from supervisor.host.gpus.emptiness import Usage
from supervisor.host.gpus.meter import Gpu, MeasureFailed
from supervisor.host.gpus.residuals import Rules
from supervisor.runtime import gpu_memory as subject
from supervisor.runtime.gpu_memory import GpuMemory
from supervisor.runtime.group_lifecycle import Groups
from supervisor.scheduler.actions import Measure
from supervisor.scheduler.events import GpuFree
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId

ENGINE = EngineId(PipelineId("p1"), 0)


class Driver:
    """Takes one question at a time and refuses a second, as NVML does. `used` are bytes by GPU; None cannot be measured."""

    def __init__(self, used: Mapping[int, int | None], *, real: bool = True, takes: float = 0.02) -> None:
        self.gpus = tuple(Gpu(GpuId(id), "H200", f"GPU-{id}", 1 << 37, f"GPU-{id}") for id in used)
        self.measures_others = real
        self.used = dict(used)
        self.asked: list[tuple[int, ...]] = []
        self.refused = 0
        self._takes = takes
        self._busy = False

    async def measure(self, gpus: Collection[GpuId], pids: Mapping[GroupId, Collection[int]]) -> Usage:
        if self._busy and self.measures_others:
            self.refused += 1
            raise MeasureFailed("an earlier question is not answered yet")
        self._busy = True
        self.asked.append(tuple(gpus))
        await anyio.sleep(self._takes)
        self._busy = False
        found = {gpu: self.used[gpu] for gpu in gpus}
        if None in found.values():
            raise MeasureFailed("no")
        total = {gpu: used for gpu, used in found.items() if used is not None}
        return Usage(total, {gpu: {ENGINE: used} if used else {} for gpu, used in total.items()}, {})


def memory(driver: Driver) -> GpuMemory:
    nothing: Any = None
    return GpuMemory(driver, Groups(nothing, nothing), nothing, Rules(512 << 20 if driver.measures_others else 0, {}, {}))


def test_every_gpu_is_measured_when_somebody_looks_and_not_again_at_once() -> None:
    async def main() -> None:
        driver = Driver({0: 5 << 20, 1: 0})
        seen = memory(driver)
        assert seen.seen is None, "nobody has asked: nothing is known, not even 0"
        await seen.look_on()
        await seen.look_on()
        assert seen.seen is not None
        assert seen.seen.total == {0: 5 << 20, 1: 0}
        assert seen.seen.by_group[GpuId(0)] == {ENGINE: 5 << 20}
        assert driver.asked == [(0,), (1,)], "once, and one GPU after the other"

    anyio.run(main)


def test_what_was_seen_long_ago_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SEEN_S", 0.05)

    async def main() -> None:
        driver = Driver({0: 7})
        seen = memory(driver)
        await seen.look_on()
        await anyio.sleep(0.12)
        assert seen.seen is None
        driver.used[0] = 8
        await seen.look_on()
        assert seen.seen is not None
        assert seen.seen.total == {0: 8}

    anyio.run(main)


def test_who_cannot_be_measured_is_not_shown_as_empty() -> None:
    async def main() -> None:
        seen = memory(Driver({0: None, 1: 3}))
        await seen.look_on()
        assert seen.seen is not None
        assert seen.seen.total == {1: 3}

    anyio.run(main)


def test_a_hand_over_is_neither_refused_nor_kept_waiting_by_onlookers() -> None:
    """It waits for one answer of the driver, not for those about all GPUs."""

    async def main() -> None:
        driver = Driver(dict.fromkeys(range(8), 0), takes=0.05)
        seen = memory(driver)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(seen.look_on)
            await anyio.sleep(0.07)
            began = anyio.current_time()
            answer = await seen.measure(Measure(id=1, holder=None, gpus=(GpuId(7),), within=0.0))
            assert anyio.current_time() - began < 0.25
        assert answer == GpuFree(id=1)
        assert driver.refused == 0

    anyio.run(main)


def test_what_a_hand_over_measures_is_shown_at_once() -> None:
    """Nobody seems to keep what he has just been seen to have left."""

    async def main() -> None:
        driver = Driver({0: 8 << 20}, real=False)
        seen = memory(driver)
        await seen.look_on()
        driver.used[0] = 0
        await seen.measure(Measure(id=1, holder=None, gpus=(GpuId(0),), within=0.0))
        assert seen.seen is not None
        assert seen.seen.total == {0: 0}
        assert seen.seen.by_group[GpuId(0)] == {}

    anyio.run(main)


def test_what_a_group_keeps_is_learned_when_it_has_settled() -> None:
    """A driver gives memory back little by little, and every step of it may be below the cap of a first leave."""

    class Alive(Groups):
        async def pids(self, but: object = None) -> dict[GroupId, frozenset[int]]:
            return {ENGINE: frozenset()}

        def __iter__(self) -> Iterator[Any]:
            return iter([SimpleNamespace(id=ENGINE, incarnation=1)])

    class Slow(Driver):
        async def measure(self, gpus: Collection[GpuId], pids: Mapping[GroupId, Collection[int]]) -> Usage:
            self.used[0] = max(1100 << 20, (self.used[0] or 0) - (300 << 20))
            return await super().measure(gpus, pids)

    async def main() -> None:
        nothing: Any = None
        loop: Any = SimpleNamespace(log_for=lambda *_: structlog.testing.CapturingLogger())
        rules = Rules(512 << 20, {(ENGINE, GpuId(0)): 4096 << 20}, {})
        kept = GpuMemory(Slow({0: 3000 << 20}), Alive(nothing, nothing), loop, rules)
        assert await kept.measure(Measure(id=1, holder=ENGINE, gpus=(GpuId(0),), within=10.0)) == GpuFree(id=1)
        assert kept.residuals.kept(GpuId(0), {ENGINE: Incarnation(1)}) == {ENGINE: 1100 << 20}

    anyio.run(main)

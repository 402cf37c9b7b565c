"""Measures whether a GPU is empty when a holder leaves it, and names who still holds what.

For those who only look on (`status`, `/metrics`) it measures what is used now, when somebody asks and at most once a second.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

import anyio
from anyio import to_thread

from supervisor.config.kinds.registry import kind_of
from supervisor.config.schema.tables import Config
from supervisor.host.foreign import is_foreign
from supervisor.host.gpus.emptiness import MIB, Usage, Verdict, judge
from supervisor.host.gpus.meter import GpuMeter, MeasureFailed
from supervisor.host.processes.proc import table
from supervisor.runtime.driver import Loop
from supervisor.runtime.group_lifecycle import Groups
from supervisor.scheduler.actions import Measure
from supervisor.scheduler.events import GpuFree, GpuHeld, Holder
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId

FIRST_LOOK_S, LONGEST_WAIT_S = 0.02, 0.25
"""Seconds between two looks, the first and the longest: no event says that memory was freed, and each look scans all processes."""
SEEN_S: Final = 1.0
"""Seconds for which a measurement for one onlooker is good enough for the next one."""
LONGEST_LOOK_S: Final = 2.0
"""Seconds after which an onlooker gets what has been measured by then."""


class GpuMemory:
    """Measures the GPUs of the box, with the live groups as the known holders.

    `residuals` (bytes) are what each sleeping engine kept at the first pause of its incarnation; `residual_mib` is what a process may keep
    on a real GPU without being a holder.
    """

    def __init__(self, meter: GpuMeter, groups: Groups, loop: Loop, residual_mib: int) -> None:
        self._meter = meter
        self._groups = groups
        self._loop = loop
        self._residual_mib = residual_mib
        self.residuals: dict[GpuId, dict[EngineId, tuple[Incarnation, int]]] = {}
        self._seen_total: dict[GpuId, int] = {}
        self._seen_groups: dict[GpuId, Mapping[GroupId, int]] = {}
        self._seen_at = float("-inf")
        self._names_ours = False  # the driver has told a process of ours by its pid: here it can tell others, too
        self._onlooker = anyio.Lock()
        self._question = anyio.Lock()

    @property
    def allowance(self) -> int:
        """Bytes that a process may keep without being a holder: none on a virtual GPU, which is measured exactly."""
        return self._residual_mib * MIB if self._meter.measures_others else 0

    async def measure(self, action: Measure) -> GpuFree | GpuHeld:
        """Look until every GPU is empty, or `within` seconds have passed. A GPU that cannot be measured is not free."""
        wait = FIRST_LOOK_S
        began = anyio.current_time()
        while True:
            held = await self._look(action)
            if held is None:
                return GpuFree(id=action.id)
            remaining = began + action.within - anyio.current_time()
            if remaining <= 0:
                return held
            await anyio.sleep(min(wait, remaining))
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _look(self, action: Measure) -> GpuHeld | None:
        lives = {live.id: live.incarnation for live in self._groups}
        try:
            pids = await self._groups.pids()
            async with self._one_question():
                usage = await self._meter.measure(action.gpus, pids)
        except MeasureFailed as error:
            return GpuHeld(id=action.id, gpus=action.gpus, note=f"cannot be measured: {error}")
        self._names_ours |= self._meter.measures_others and any(map(bool, usage.by_group.values()))
        self._show(usage)
        verdicts = [self._judge(gpu, usage) for gpu in action.gpus]
        held = [verdict for verdict in verdicts if not verdict.empty]
        if not held:
            if isinstance(action.holder, EngineId):
                self._learn_residual(action.holder, action.gpus, usage)
            return None
        holders = tuple(Holder(verdict.gpu, group, lives[group]) for verdict in held for group in verdict.offenders if group in lives)
        note = "; ".join(str(verdict) for verdict in held)
        strangers = await self._strangers(held, usage, pids)
        return GpuHeld(id=action.id, gpus=tuple(verdict.gpu for verdict in held), note=note, holders=holders, strangers=strangers)

    async def _strangers(self, held: list[Verdict], usage: Usage, pids: Mapping[GroupId, frozenset[int]]) -> tuple[GpuId, ...]:
        """Returns those GPUs that would be empty without processes which are certainly not ours."""
        if not self._names_ours or all(verdict.offenders for verdict in held):
            return ()
        ours = {pid for some in pids.values() for pid in some}
        processes = await to_thread.run_sync(table, abandon_on_cancel=True)

        def theirs(gpu: GpuId) -> int:
            return sum(bytes_ for pid, bytes_ in usage.by_pid[gpu].items() if pid not in ours and is_foreign(pid, processes))

        return tuple(v.gpu for v in held if not v.offenders and v.used - theirs(v.gpu) <= v.allowed)

    def _one_question(self) -> AbstractAsyncContextManager[None]:
        """Guards a question to the driver, which takes one at a time and refuses a second; /proc can be read by many."""
        return self._question if self._meter.measures_others else contextlib.nullcontext()

    async def look_on(self) -> None:
        """Measure all GPUs, so that `seen` is at most a second old. A GPU that cannot be measured is not in it."""
        async with self._onlooker:
            if anyio.current_time() < self._seen_at + SEEN_S:
                return
            self._seen_total, self._seen_groups = {}, {}
            every = tuple(gpu.id for gpu in self._meter.gpus)
            # a driver is asked about one GPU after the other: whoever hands over a GPU meanwhile waits for one answer, not for all
            several = [(gpu,) for gpu in every] if self._meter.measures_others else [every]
            with anyio.move_on_after(LONGEST_LOOK_S):
                pids = await self._groups.pids()
                for gpus in several:
                    with contextlib.suppress(MeasureFailed):
                        async with self._one_question():
                            usage = await self._meter.measure(gpus, pids)
                        self._show(usage)
            self._seen_at = anyio.current_time()

    def _show(self, usage: Usage) -> None:
        """Keeps a measurement for onlookers, also one that was made for a hand-over: so nobody seems to keep what has just been measured as free."""
        self._seen_total.update(usage.total)
        self._seen_groups.update(usage.by_group)

    @property
    def seen(self) -> Usage | None:
        """What was used at the last measurement, without `by_pid`; None when that was too long ago."""
        if anyio.current_time() >= self._seen_at + 2 * SEEN_S:
            return None
        return Usage(self._seen_total, self._seen_groups, {})

    def _judge(self, gpu: GpuId, usage: Usage) -> Verdict:
        sleepers: dict[GroupId, int] = {}
        for engine, (incarnation, kept) in self.residuals.get(gpu, {}).items():
            live = self._groups.get(engine)
            if live is not None and live.incarnation == incarnation:
                sleepers[engine] = kept
        return judge(gpu, usage, sleepers, self.allowance)

    def _learn_residual(self, engine: EngineId, gpus: tuple[GpuId, ...], usage: Usage) -> None:
        """Remembers what stays at the first pause of an incarnation as its residual; when it grows later, that is logged as a warning."""
        live = self._groups.get(engine)
        if live is None:
            return
        for gpu in gpus:
            kept = usage.by_group.get(gpu, {}).get(engine, 0)
            known = self.residuals.setdefault(gpu, {}).get(engine)
            if known is None or known[0] != live.incarnation:
                self.residuals[gpu][engine] = (live.incarnation, kept)
            elif kept > known[1] + self.allowance // 4 and kept > known[1]:
                log = self._loop.log_for(engine, live.incarnation)
                log.warning("residual memory has grown", gpu=gpu, first_mib=known[1] / MIB, now_mib=kept / MIB)


def unmeasured_pipelines(config: Config) -> Iterator[PipelineId]:
    """Yields the pipelines whose engines hold memory that does not show: programs that are not ours, on virtual GPUs."""
    if config.host.virtual is not None:
        for pipeline in config.pipeline:
            if not kind_of(pipeline.engine).MEASURED_ON_VIRTUAL_GPUS:
                yield PipelineId(pipeline.name)


def unmeasured_gpus(config: Config) -> frozenset[GpuId]:
    """Returns the GPUs of which nobody may say how much is used, nor that they are empty."""
    unmeasured = set(unmeasured_pipelines(config))
    return frozenset(GpuId(gpu) for pipeline in config.pipeline if pipeline.name in unmeasured for gpu in pipeline.engine.gpus)

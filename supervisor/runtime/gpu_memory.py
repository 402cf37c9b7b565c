"""Is a GPU empty? Asked when a holder leaves it, answered by measurement, in words that name who still holds what.

And for those who only look on (`status`, a scrape): what is used now, measured when somebody asks, at most once a second.
"""

import contextlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

import anyio
from anyio import to_thread

from supervisor.host.foreign import is_foreign
from supervisor.host.gpus.emptiness import MIB, Usage, Verdict, judge
from supervisor.host.gpus.meter import MeasureFailed
from supervisor.host.processes.group import census
from supervisor.host.processes.proc import table
from supervisor.runtime.context import Site
from supervisor.scheduler.actions import Measure
from supervisor.scheduler.events import GpuFree, GpuHeld, Holder
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation

FIRST_LOOK_S, LONGEST_WAIT_S = 0.02, 0.25
"""Memory goes by itself after a release; there is nothing to wait on but another look. Each look costs a scan of the processes."""
SEEN_S: Final = 1.0
"""For so long what an onlooker was told is good enough for the next one."""
LONGEST_LOOK_S: Final = 2.0
"""An onlooker who has waited for so long is told what is known by then."""


class Memory:
    """Measures. `residuals` (bytes) are what each sleeping engine kept at its first pause of this life."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.residuals: dict[GpuId, dict[EngineId, tuple[Incarnation, int]]] = {}
        self._seen_total: dict[GpuId, int] = {}
        self._seen_groups: dict[GpuId, Mapping[GroupId, int]] = {}
        self._seen_at = float("-inf")
        self._names_ours = False  # the driver has told a process of ours by its pid: here it can tell others, too
        self._onlooker = anyio.Lock()
        self._line = anyio.Lock()

    @property
    def allowance(self) -> int:
        """Bytes that a process may keep on a real GPU without being a holder; a virtual GPU is exact."""
        return self._site.config.host.residual_mib * MIB if self._site.meter.measures_others else 0

    async def measure(self, action: Measure) -> GpuFree | GpuHeld:
        """Look until every GPU is empty, or until the time is over. What cannot be measured is not free."""
        wait = FIRST_LOOK_S
        began = anyio.current_time()
        while True:
            held = await self._look(action)
            if held is None:
                return GpuFree(id=action.id)
            left = began + action.within - anyio.current_time()
            if left <= 0:
                return held
            await anyio.sleep(min(wait, left))
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _look(self, action: Measure) -> GpuHeld | None:
        lives = {group: living.incarnation for group, living in self._site.living.items()}
        try:
            pids = await self._pids()
            async with self._turn():
                usage = await self._site.meter.measure(action.gpus, pids)
        except MeasureFailed as error:
            return GpuHeld(id=action.id, gpus=action.gpus, note=f"cannot be measured: {error}")
        self._names_ours |= self._site.meter.measures_others and any(map(bool, usage.by_group.values()))
        self._learned(usage)
        verdicts = [self._judge(gpu, usage) for gpu in action.gpus]
        held = [verdict for verdict in verdicts if not verdict.empty]
        if not held:
            if isinstance(action.holder, EngineId):
                self._learn(action.holder, action.gpus, usage)
            return None
        holders = tuple(Holder(verdict.gpu, group, lives[group]) for verdict in held for group in verdict.offenders if group in lives)
        note = "; ".join(str(verdict) for verdict in held)
        strangers = await self._strangers(held, usage, pids)
        return GpuHeld(id=action.id, gpus=tuple(verdict.gpu for verdict in held), note=note, holders=holders, strangers=strangers)

    async def _strangers(self, held: list[Verdict], usage: Usage, pids: Mapping[GroupId, frozenset[int]]) -> tuple[GpuId, ...]:
        """Those of these GPUs that would be empty but for processes which are certainly none of ours."""
        if not self._names_ours or all(verdict.offenders for verdict in held):
            return ()
        ours = {pid for some in pids.values() for pid in some}
        processes = await to_thread.run_sync(table)

        def theirs(gpu: GpuId) -> int:
            return sum(bytes_ for pid, bytes_ in usage.by_pid[gpu].items() if pid not in ours and is_foreign(pid, processes))

        return tuple(v.gpu for v in held if not v.offenders and v.used - theirs(v.gpu) <= v.allowed)

    def _turn(self) -> AbstractAsyncContextManager[None]:
        """A driver takes one question at a time, and refuses a second; /proc can be read by many."""
        return self._line if self._site.meter.measures_others else contextlib.nullcontext()

    async def look_on(self) -> None:
        """See that `seen` is true now (or was a second ago). What cannot be measured is not in it."""
        async with self._onlooker:
            if anyio.current_time() < self._seen_at + SEEN_S:
                return
            self._seen_total, self._seen_groups = {}, {}
            every = tuple(gpu.id for gpu in self._site.meter.gpus)
            # a driver is asked about one GPU after the other: whoever hands over a GPU meanwhile waits for one answer, not for all
            several = [(gpu,) for gpu in every] if self._site.meter.measures_others else [every]
            with anyio.move_on_after(LONGEST_LOOK_S):
                pids = await self._pids()
                for gpus in several:
                    with contextlib.suppress(MeasureFailed):
                        async with self._turn():
                            usage = await self._site.meter.measure(gpus, pids)
                        self._learned(usage)
            self._seen_at = anyio.current_time()

    def _learned(self, usage: Usage) -> None:
        """Onlookers are told what is known; so nobody seems to keep what he has just been seen to have left."""
        self._seen_total.update(usage.total)
        self._seen_groups.update(usage.by_group)

    @property
    def seen(self) -> Usage | None:
        """What was used when `look_on` was called last, if that was in this moment; `by_pid` is left out."""
        if anyio.current_time() >= self._seen_at + 2 * SEEN_S:
            return None
        return Usage(self._seen_total, self._seen_groups, {})

    def _judge(self, gpu: GpuId, usage: Usage) -> Verdict:
        sleepers: dict[GroupId, int] = {}
        for engine, (incarnation, kept) in self.residuals.get(gpu, {}).items():
            living = self._site.living.get(engine)
            if living is not None and living.incarnation == incarnation:
                sleepers[engine] = kept
        return judge(gpu, usage, sleepers, self.allowance)

    def _learn(self, engine: EngineId, gpus: tuple[GpuId, ...], usage: Usage) -> None:
        """At its first pause: what stays is its residual, and drift from it is worth an alarm."""
        living = self._site.living.get(engine)
        if living is None:
            return
        for gpu in gpus:
            kept = usage.by_group.get(gpu, {}).get(engine, 0)
            known = self.residuals.setdefault(gpu, {}).get(engine)
            if known is None or known[0] != living.incarnation:
                self.residuals[gpu][engine] = (living.incarnation, kept)
            elif kept > known[1] + self.allowance // 4 and kept > known[1]:
                log = self._site.group_log(engine, living.incarnation)
                log.warning("residual memory has grown", gpu=gpu, first_mib=known[1] / MIB, now_mib=kept / MIB)

    async def _pids(self) -> Mapping[GroupId, frozenset[int]]:
        return await census({group: living.group for group, living in self._site.living.items()})

"""Is a GPU empty? Asked when a holder leaves it, answered by measurement, in words that name who still holds what."""

from collections.abc import Mapping

import anyio

from engines.ids import EngineId, GpuId, GroupId, Incarnation
from supervisor.runtime.emptiness import MIB, Usage, Verdict, judge
from supervisor.runtime.gpus import MeasureFailed
from supervisor.runtime.processes import census
from supervisor.runtime.site import Site
from supervisor.scheduler.actions import Measure
from supervisor.scheduler.events import GpuFree, GpuHeld, Holder

FIRST_LOOK_S, LONGEST_WAIT_S = 0.02, 0.25
"""Memory goes by itself after a release; there is nothing to wait on but another look. Each look costs a scan of the processes."""


class Memory:
    """Measures. `residuals` (bytes) are what each sleeping engine kept at its first pause of this life."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.residuals: dict[GpuId, dict[EngineId, tuple[Incarnation, int]]] = {}
        self.last: Usage | None = None

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
            usage = await self._site.meter.measure(action.gpus, await self._pids())
        except MeasureFailed as error:
            return GpuHeld(id=action.id, gpus=action.gpus, note=f"cannot be measured: {error}")
        self.last = usage
        verdicts = [self._judge(gpu, usage) for gpu in action.gpus]
        held = [verdict for verdict in verdicts if not verdict.empty]
        if not held:
            if isinstance(action.holder, EngineId):
                self._learn(action.holder, action.gpus, usage)
            return None
        holders = tuple(Holder(verdict.gpu, group, lives[group]) for verdict in held for group in verdict.offenders if group in lives)
        note = "; ".join(str(verdict) for verdict in held)
        return GpuHeld(id=action.id, gpus=tuple(verdict.gpu for verdict in held), note=note, holders=holders)

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

"""Measures whether a GPU is empty when a holder leaves it, and names who still holds what.

For those who only look on (`status`, `/metrics`) it measures what is used now, when somebody asks and at most once a second.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio import to_thread

from supervisor.config.kinds.registry import kind_of
from supervisor.config.schema.tables import Config
from supervisor.host.foreign import is_foreign
from supervisor.host.gpus.emptiness import MIB, Usage, Verdict
from supervisor.host.gpus.meter import Gpu, GpuMeter, MeasureFailed
from supervisor.host.gpus.residuals import Growth, Residuals, Rules, first_cap
from supervisor.host.processes.proc import table
from supervisor.runtime.driver import Loop
from supervisor.runtime.group_lifecycle import Groups
from supervisor.scheduler.actions import Measure
from supervisor.scheduler.events import GpuFree, GpuHeld, Holder
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId, TrainerId

FIRST_LOOK_S, LONGEST_WAIT_S = 0.02, 0.25
"""Seconds between two looks, the first and the longest: no event says that memory was freed, and each look scans all processes."""
SETTLED_S: Final = 0.5
"""Seconds for which what a group keeps must stay the same before it is learned: a driver gives memory back little by little."""
SETTLED_BYTES: Final = 16 * MIB
FIRST_ENGINE_MIB, FIRST_TRAINER_MIB = 4096, 8192
"""What an engine (with NCCL: 2.7 GB at tp 2) and a trainer (Megatron: 7 to 10 GB) may be seen to keep at first, where the file does not say it."""
FOREIGN_S: Final = 5.0
"""Seconds after which memory that is certainly of foreign processes is not waited for any more: ours give theirs back meanwhile."""
NAMED_BYTES: Final = 64 * MIB
"""A driver that has seen so much with a group of ours knows pids as we do."""
SEEN_S: Final = 1.0
"""Seconds for which a measurement for one onlooker is good enough for the next one."""
LONGEST_LOOK_S: Final = 2.0
"""Seconds after which an onlooker gets what has been measured by then."""


class GpuMemory:
    """Measures the GPUs of the box, with the live groups as the known holders. `residuals` is what each of them was seen to keep."""

    def __init__(self, meter: GpuMeter, groups: Groups, loop: Loop, rules: Rules) -> None:
        self._meter = meter
        self._groups = groups
        self._loop = loop
        self.residuals = Residuals(rules)
        self._seen_total: dict[GpuId, int] = {}
        self._seen_groups: dict[GpuId, Mapping[GroupId, int]] = {}
        self._seen_at = float("-inf")
        self._names_ours = False  # the driver has told a process of ours by its pid: here it can tell others, too
        self._onlooker = anyio.Lock()
        self._question = anyio.Lock()

    async def measure(self, action: Measure) -> GpuFree | GpuHeld:
        """Look until every GPU is empty, or `within` seconds have passed. A GPU that cannot be measured is not free."""
        wait = FIRST_LOOK_S
        began = anyio.current_time()
        settling = _Settling()
        while True:
            held = await self._look(action, settling)
            now = anyio.current_time()
            if held is None and (settling.settled(now) or now >= began + action.within):
                self._learn(action.holder, settling.usages)
                return GpuFree(id=action.id)
            remaining = began + action.within - now
            foreign = held is not None and set(held.gpus) <= set(held.strangers)
            if held is not None and ((foreign and now >= began + FOREIGN_S) or remaining <= 0):
                if foreign:  # but for strangers it is empty: the holder has left, and keeps what it keeps
                    self._learn(action.holder, settling.usages)
                return held
            await anyio.sleep(min(wait, max(remaining, FIRST_LOOK_S)))
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _look(self, action: Measure, settling: "_Settling") -> GpuHeld | None:
        lives = self._lives()
        failed: dict[GpuId, str] = {}
        verdicts: list[Verdict] = []
        usages: dict[GpuId, Usage] = {}
        pids = await self._groups.pids()
        for gpu in action.gpus:  # one by one: a card that is lost says nothing about the others
            try:
                async with self._one_question():
                    usage = usages[gpu] = await self._meter.measure((gpu,), pids)
            except MeasureFailed as error:
                failed[gpu] = f"GPU {gpu} cannot be measured: {error}"
                continue
            groups = usage.by_group.get(gpu, {})
            self._names_ours |= self._meter.measures_others and any(held > NAMED_BYTES for held in groups.values())
            self._show(usage)
            verdicts.append(self.residuals.judge(gpu, usage, action.holder, lives))
        first = [gpu for gpu in usages if self._meter.measures_others and self.residuals.is_first_leave(gpu, action.holder, lives)]
        settling.look(usages, {gpu: usages[gpu].total[gpu] for gpu in first}, anyio.current_time())
        held = [verdict for verdict in verdicts if not verdict.empty]
        if not held and not failed:
            return None
        holders = tuple(Holder(verdict.gpu, group, lives[group]) for verdict in held for group in verdict.offenders if group in lives)
        note = "; ".join([*map(str, held), *failed.values()])
        strangers = () if failed else await self._strangers(held, usages, pids)
        return GpuHeld(id=action.id, gpus=(*(verdict.gpu for verdict in held), *failed), note=note, holders=holders, strangers=strangers)

    def _lives(self) -> dict[GroupId, Incarnation]:
        return {live.id: live.incarnation for live in self._groups}

    async def _strangers(
        self, held: list[Verdict], usages: Mapping[GpuId, Usage], pids: Mapping[GroupId, frozenset[int]]
    ) -> tuple[GpuId, ...]:
        """Returns those GPUs that would be empty without processes which are certainly not ours."""
        if not self._names_ours or all(verdict.offenders for verdict in held):
            return ()
        ours = {pid for some in pids.values() for pid in some}
        processes = await to_thread.run_sync(table, abandon_on_cancel=True)

        def theirs(gpu: GpuId) -> int:
            return sum(bytes_ for pid, bytes_ in usages[gpu].by_pid[gpu].items() if pid not in ours and is_foreign(pid, processes))

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
        lives = self._lives()
        self._seen_groups.update(
            {gpu: self.residuals.kept(gpu, lives) if gpu in usage.unattributed else by for gpu, by in usage.by_group.items()}
        )

    @property
    def seen(self) -> Usage | None:
        """What was used at the last measurement, without `by_pid`; None when that was too long ago."""
        if anyio.current_time() >= self._seen_at + 2 * SEEN_S:
            return None
        return Usage(self._seen_total, self._seen_groups, {})

    def _learn(self, holder: GroupId | None, usages: Mapping[GpuId, Usage]) -> None:
        lives = self._lives()
        for gpu, usage in usages.items():
            for growth in self.residuals.learn(gpu, usage, holder, lives):
                self._log(growth, lives[growth.group])

    def _log(self, growth: Growth, incarnation: Incarnation) -> None:
        """What is kept is said once; when it grows later, that is a warning: it is allowed no more than `residual_mib`."""
        log = self._loop.log_for(growth.group, incarnation)
        if growth.first is not None:
            log.warning("residual memory has grown", gpu=growth.gpu, first_mib=growth.first / MIB, now_mib=growth.now / MIB)
        elif growth.now:
            log.info("keeps memory while it has no lease", gpu=growth.gpu, mib=round(growth.now / MIB, 1))


@dataclass(slots=True)
class _Settling:
    """Whether what is about to be learned has stayed the same for long enough. `usages` is the last look."""

    usages: Mapping[GpuId, Usage] = field(default_factory=dict)
    first: Mapping[GpuId, int] = field(default_factory=dict)
    since: float = 0.0

    def look(self, usages: Mapping[GpuId, Usage], first: Mapping[GpuId, int], now: float) -> None:
        same = first.keys() == self.first.keys() and all(abs(first[gpu] - self.first[gpu]) <= SETTLED_BYTES for gpu in first)
        if not same:
            self.first, self.since = first, now
        self.usages = usages

    def settled(self, now: float) -> bool:
        """True at once where nothing is to be learned."""
        return not self.first or now >= self.since + SETTLED_S


def memory_rules(config: Config, gpus: Sequence[Gpu], exact: bool) -> Rules:
    """Return what may be kept on these GPUs. Nothing where memory is measured `exact`ly: on virtual GPUs, a sleeper gives everything back."""
    if exact:
        return Rules(0, {}, {})
    first: dict[tuple[GroupId, GpuId], int] = {}
    trainers: dict[GpuId, frozenset[GroupId]] = {gpu.id: frozenset() for gpu in gpus}
    for pipeline in config.pipeline:
        engine, trainer = pipeline.engine, pipeline.trainer
        for gpu in gpus:
            who = TrainerId(PipelineId(pipeline.name))
            for place, position in enumerate(engine.gpus):
                if position == gpu.id:
                    id = EngineId(PipelineId(pipeline.name), place // engine.tp)
                    first[id, gpu.id] = first_cap(engine.first_residual_mib, FIRST_ENGINE_MIB, gpu.total_bytes)
            if gpu.id in {*trainer.gpus, *(other for others in trainer.roles.values() for other in others)}:
                first[who, gpu.id] = first_cap(trainer.first_residual_mib, FIRST_TRAINER_MIB, gpu.total_bytes)
                trainers[gpu.id] |= {who}
    return Rules(config.host.residual_mib * MIB, first, trainers)


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

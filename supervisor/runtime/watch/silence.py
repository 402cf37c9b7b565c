"""The ranks of trainers are watched from outside, by /proc: is one stopped, or do all of them say nothing and use no processor?

A rank that waits in a collective for another is silent for good reason, so the ranks of a trainer are judged together; and a trainer that waits
for us (a lease, an engine, its samples) is never silent. It is warned of; it has failed only where its table sets a limit (`watchdog_s`).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio import to_thread

from supervisor.host.processes.proc import processor_seconds, read_stat
from supervisor.runtime.driver import Loop
from supervisor.runtime.group_lifecycle import Groups, LiveGroup
from supervisor.runtime.ranks import Ranks
from supervisor.scheduler import Scheduler
from supervisor.scheduler.events import PeerFailed
from supervisor.scheduler.records import Pipeline, TrainerState
from trainers.protocol.ids import PipelineId, TrainerId

LOOK_S: Final = 5.0
SILENT_S: Final = 60.0
"""Silence of this length is worth a word."""
IDLE: Final = 0.01
"""Of one processor: whoever uses less only waits. Threads that look at a clock use a little."""


@dataclass(slots=True)
class _Watched:
    """What was seen of one life of a trainer. `used` is processor time by pid, `stopped` since when each rank has been stopped."""

    live: LiveGroup
    quiet_since: float
    used: dict[int, float] = field(default_factory=dict)
    stopped: dict[int, float] = field(default_factory=dict)
    told: bool = False


class TrainerSilence:
    """Watches the ranks of every trainer. `limits` has the seconds after which one that is stopped or silent has failed, where there are any."""

    def __init__(self, loop: Loop, scheduler: Scheduler, groups: Groups, ranks: Ranks, limits: Mapping[PipelineId, float]) -> None:
        self._loop, self._scheduler, self._groups, self._ranks, self._limits = loop, scheduler, groups, ranks, limits
        self._watched: dict[PipelineId, _Watched] = {}
        self._looked = time.monotonic()

    async def run(self) -> None:
        """Look until cancelled."""
        every = min([LOOK_S, *(limit / 4 for limit in self._limits.values())])
        while True:
            await anyio.sleep(every)
            pids = await self._groups.pids()
            now, before = time.monotonic(), self._looked
            self._looked = now
            for pipeline in self._scheduler.pipelines.values():
                live = self._groups.get(TrainerId(pipeline.id))
                if live is None or live.stopping or pipeline.trainer.state is not TrainerState.RUNNING:
                    self._watched.pop(pipeline.id, None)
                    continue
                watched = self._watched.get(pipeline.id)
                if watched is None or watched.live is not live:
                    watched = self._watched[pipeline.id] = _Watched(live, now)
                used = await to_thread.run_sync(_used, pids.get(live.id, frozenset()), abandon_on_cancel=True)
                if now - before > every + LOOK_S:  # we did not look ourselves
                    watched.quiet_since, watched.stopped = now, {}
                self._look(pipeline, watched, used, now, now - before)

    def _look(self, pipeline: Pipeline, watched: _Watched, used: dict[int, float], now: float, seconds: float) -> None:
        more = sum(max(0.0, much - watched.used.get(pid, 0.0)) for pid, much in used.items())
        busy = more > IDLE * seconds or not watched.used
        watched.used = used
        self._look_who_is_stopped(watched, now)
        limit = self._limits.get(pipeline.id, float("inf"))
        log = self._loop.log_for(watched.live.id, watched.live.incarnation)
        if busy or waits_for_us(pipeline) or self._ranks.heard(pipeline.id) >= now - seconds:
            if watched.told:
                log.warning("trainer goes on", silent_s=round(now - watched.quiet_since, 1))
            watched.quiet_since, watched.told = now, False
        silent = now - watched.quiet_since
        if silent >= SILENT_S and not watched.told:
            watched.told = True
            pids = [member.pid for member in watched.live.group.members]
            log.warning("trainer says nothing and uses no processor", silent_s=round(silent, 1), pids=pids)
        reason = f"said nothing and used no processor for {silent:.0f} s (watchdog_s)" if silent >= limit else ""
        for rank, since in watched.stopped.items():
            if now - since >= limit:
                reason = f"rank {rank} was stopped (SIGSTOP) for {now - since:.0f} s (watchdog_s)"
        if reason:
            self._loop.feed(PeerFailed(group=watched.live.id, incarnation=watched.live.incarnation, reason=reason))

    def _look_who_is_stopped(self, watched: _Watched, now: float) -> None:
        log = self._loop.log_for(watched.live.id, watched.live.incarnation)
        for member in watched.live.group.members:
            stat = read_stat(member.pid)
            stopped = stat is not None and stat.identity == member.identity and stat.state == "T"
            if stopped and member.index not in watched.stopped:
                watched.stopped[member.index] = now
                log.warning("a rank is stopped", rank=member.index, pid=member.pid, remedy=f"kill -CONT {member.pid}")
            elif not stopped and watched.stopped.pop(member.index, None) is not None:
                log.warning("a rank is not stopped any more", rank=member.index, pid=member.pid)


def waits_for_us(pipeline: Pipeline) -> bool:
    """Return whether the trainer waits for an answer of ours, or for samples that are made."""
    trainer = pipeline.trainer
    leaves = trainer.grant is not None and trainer.grant.leaving is not None
    made = any(rollout.waiting + rollout.in_flight > 0 for rollout in pipeline.rollouts.values())
    return bool(pipeline.figures.waits_since) or trainer.publishing is not None or leaves or made


def _used(pids: frozenset[int]) -> dict[int, float]:
    return {pid: seconds for pid in pids if (seconds := processor_seconds(pid)) is not None}

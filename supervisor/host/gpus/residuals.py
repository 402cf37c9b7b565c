"""Residuals are what groups keep on a GPU while they have no lease of it: a CUDA context, NCCL's buffers, workspaces.

Nobody knows them beforehand (1.1 GB for a sleeping SGLang of one GPU, 2.7 GB of two, 0.5 to 10 GB for a trainer), so each is *learned* when its
group first leaves the GPU in an incarnation, under a cap of its own. Later it may grow by the allowance, and no more.
Where the driver does not say whose memory it is, a residual is what the device has more than before: leases are exclusive, so it is the leaver's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from supervisor.host.gpus.emptiness import MIB, Usage, Verdict, judge
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, TrainerId

CONTEXT_BYTES = 1 << 30
"""A trainer may make its CUDA context before its first lease: a bare one takes 0.45 to 0.61 GiB with CUDA 13."""
LARGEST_SHARE = 4
"""A group may be seen to keep a quarter of its GPU at first, where the configuration does not say more."""

Lives = Mapping[GroupId, Incarnation]


@dataclass(frozen=True)
class Growth:
    """Something that was kept has changed. `first` is None when it was seen for the first time. Bytes."""

    gpu: GpuId
    group: GroupId
    first: int | None
    now: int


@dataclass(frozen=True)
class Rules:
    """`allowance`: bytes that may be used beyond all residuals. `first`: bytes that a group may be seen to keep at first, by group and GPU.
    `trainers`: who may make a context on a GPU without a lease."""

    allowance: int
    first: Mapping[tuple[GroupId, GpuId], int]
    trainers: Mapping[GpuId, frozenset[GroupId]]


@dataclass(frozen=True)
class _Known:
    incarnation: Incarnation
    kept: int
    beside: frozenset[tuple[GroupId, Incarnation]] = frozenset()
    """Trainers that lived and were not known yet when this was learned from the device's sum: a context of theirs may be in it."""


class Residuals:
    """What each group was seen to keep on each GPU. `lives` are the groups that have processes now, with their incarnations."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[GpuId, dict[GroupId, _Known]] = {}

    def kept(self, gpu: GpuId, lives: Lives) -> dict[GroupId, int]:
        """Return what those who live were seen to keep there."""
        known = self._known.get(gpu, {})
        return {group: entry.kept for group, entry in known.items() if lives.get(group) == entry.incarnation}

    def is_first_leave(self, gpu: GpuId, holder: GroupId | None, lives: Lives) -> bool:
        """Return whether what `holder` keeps there is about to be learned."""
        return isinstance(holder, EngineId | TrainerId) and holder in lives and holder not in self.kept(gpu, lives)

    def judge(self, gpu: GpuId, usage: Usage, holder: GroupId | None, lives: Lives) -> Verdict:
        """Return whether the GPU that `holder` leaves is empty but for what may be kept there."""
        may_keep = self.kept(gpu, lives)
        may_keep |= {trainer: CONTEXT_BYTES for trainer in self._newcomers(gpu, lives) if self._rules.allowance}
        if holder is not None and self.is_first_leave(gpu, holder, lives):
            may_keep[holder] = self._rules.first.get((holder, gpu), 0)
        if gpu in usage.unattributed:
            may_keep |= self._mistaken(gpu, lives)
        else:  # what a cap allows to one group is nobody else's
            groups = usage.by_group.get(gpu, {})
            known = self.kept(gpu, lives)
            may_keep = {group: most if group in known else min(most, groups.get(group, 0)) for group, most in may_keep.items()}
        return judge(gpu, usage, may_keep, self._rules.allowance)

    def _newcomers(self, gpu: GpuId, lives: Lives) -> Iterator[GroupId]:
        known = self.kept(gpu, lives)
        return (trainer for trainer in self._rules.trainers.get(gpu, ()) if trainer in lives and trainer not in known)

    def _mistaken(self, gpu: GpuId, lives: Lives) -> dict[GroupId, int]:
        """Return what trainers that live may hold of that which was learned as kept by groups that have died since."""
        known = self.kept(gpu, lives)
        found: dict[GroupId, int] = {}
        for group, entry in self._known.get(gpu, {}).items():
            if lives.get(group) != entry.incarnation:
                for trainer, incarnation in entry.beside:
                    if lives.get(trainer) == incarnation:
                        found[trainer] = known.get(trainer, 0) + min(entry.kept, CONTEXT_BYTES)
        return found

    def learn(self, gpu: GpuId, usage: Usage, holder: GroupId | None, lives: Lives) -> list[Growth]:
        """Take in a measurement that was judged empty when `holder` left. Return what was new, and what has grown by a quarter of the allowance."""
        if gpu in usage.unattributed:
            return [*self._by_difference(gpu, usage.total[gpu], holder, lives)]
        groups = usage.by_group.get(gpu, {})
        newcomers = [trainer for trainer in self._newcomers(gpu, lives) if trainer != holder and groups.get(trainer)]
        return [growth for group in (*newcomers, holder) for growth in self._of(gpu, groups, group, lives)]

    def _of(self, gpu: GpuId, held: Mapping[GroupId, int], holder: GroupId | None, lives: Lives) -> Iterator[Growth]:
        if holder is None or holder not in lives or not isinstance(holder, EngineId | TrainerId):
            return
        now = held.get(holder, 0)
        first = self.kept(gpu, lives).get(holder)
        if first is None:  # and never less: what a trainer leaves varies with what its allocator keeps
            self._remember(gpu, holder, _Known(lives[holder], now))
        if first is None or (now > first + self._rules.allowance // 4 and now > first):
            yield Growth(gpu, holder, first, now)

    def _by_difference(self, gpu: GpuId, used: int, holder: GroupId | None, lives: Lives) -> Iterator[Growth]:
        known, mistaken = self.kept(gpu, lives), self._mistaken(gpu, lives)
        over = max(0, used - sum(known.values()))
        self._known[gpu] = {group: entry for group, entry in self._known.get(gpu, {}).items() if group in known}
        grown = over > self._rules.allowance // 4
        if holder is not None and self.is_first_leave(gpu, holder, lives):
            beside = frozenset((trainer, lives[trainer]) for trainer in self._newcomers(gpu, lives) if trainer != holder)
            self._remember(gpu, holder, _Known(lives[holder], over, beside))
            yield Growth(gpu, holder, None, over)
        elif mistaken and grown:  # what stays after a death was somebody else's
            trainer = min(mistaken, key=str)
            self._remember(gpu, trainer, _Known(lives[trainer], known.get(trainer, 0) + over))
            yield Growth(gpu, trainer, None, known.get(trainer, 0) + over)
        elif holder in known and grown:
            yield Growth(gpu, holder, known[holder], known[holder] + over)

    def _remember(self, gpu: GpuId, group: GroupId, entry: _Known) -> None:
        self._known.setdefault(gpu, {})[group] = entry


def first_cap(configured: int | None, default_mib: int, total: int | None) -> int:
    """Return how many bytes a group may be seen to keep at first: what is configured (MiB), else the default, at most a quarter of the GPU."""
    if configured is not None:
        return configured * MIB
    return min(default_mib * MIB, total // LARGEST_SHARE) if total is not None else default_mib * MIB

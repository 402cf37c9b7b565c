"""This policy follows the incumbent's rules, to compare with: our own implementation, from a description of its behaviour.

One cycle decides for everybody: releases, then trainings in order of arrival, then engines by gap ratio; all pauses, then all wakes,
then everybody who waited is told. A cycle runs when a pipeline has reported something, and once a second when shares have drifted. Its driver
waits here for resizes in flight, since otherwise it books GPUs twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, floor

from .box import Box, Job, Phase, Unit, UnitState

POLL_S = 1.0
BAND = 0.02
DRIFT = 0.10


@dataclass(slots=True)
class _Seen:
    """What the incumbent's scheduler knows of one pipeline."""

    job: Job
    open: bool = False
    pending: bool = False
    releasing: bool = False
    training: bool = False  # asked for, not granted
    allocated: bool = False
    active: set[int] = field(default_factory=set)
    reported: int = 0

    @property
    def target(self) -> int:
        return len(self.job.remaining) if self.open else 0

    @property
    def remaining(self) -> float:
        return self.target - self.reported + (self.target if self.pending else 0)

    @property
    def tp(self) -> int:
        return self.job.load.tp


@dataclass(slots=True)
class _Cycle:
    """What one cycle will do. `protected` are ranks that it has touched already."""

    idle: set[int]
    shrink: list[Unit] = field(default_factory=list)
    expand: list[Unit] = field(default_factory=list)
    train: list[Job] = field(default_factory=list)
    protected: set[tuple[int, int]] = field(default_factory=set)


class Incumbent:
    """The incumbent is a `Policy` of the simulated box."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._seen = [_Seen(job) for job in box.jobs]
        self._queue: list[_Seen] = []  # trainings, first come first served
        self._cycle: _Cycle | None = None
        self._pausing = self._waking = 0
        self._dirty = False
        box.after(POLL_S, self._poll)

    # -- what the box tells

    def arrived(self, job: Job) -> None:
        seen = self._of(job)
        seen.open, seen.reported = True, 0
        seen.pending = not seen.active
        seen.allocated = True
        self._wake_up()

    def progressed(self, job: Job) -> None:
        seen = self._of(job)
        step = max(1, ceil(BAND * len(job.remaining)))
        if job.done - seen.reported >= step:
            seen.reported = job.done
            self._wake_up()

    def rolled(self, job: Job) -> None:
        seen = self._of(job)
        seen.open = seen.pending = False
        seen.reported = 0
        seen.releasing = bool(seen.active)
        if not seen.releasing:
            self._ask_training(seen)
        self._wake_up()

    def trained(self, job: Job) -> None:
        if job.phase is Phase.ROLLING:
            self.arrived(job)
        else:
            self._of(job).allocated = False
            self._wake_up()

    def woken(self, unit: Unit) -> None:
        self._waking -= 1
        if self._waking == 0:
            self._commit()

    def slept(self, unit: Unit) -> None:
        self._pausing -= 1
        if self._pausing == 0:
            self._expand()

    def _of(self, job: Job) -> _Seen:
        return next(seen for seen in self._seen if seen.job is job)

    def _ask_training(self, seen: _Seen) -> None:
        seen.training = True
        self._queue.append(seen)

    # -- when a cycle runs

    def _poll(self) -> None:
        if self._cycle is None and self._drifted():
            self._run()
        if any(seen.job.phase is not Phase.DONE for seen in self._seen):
            self._box.after(POLL_S, self._poll)

    def _drifted(self) -> bool:
        if any(seen.pending or seen.training or seen.releasing for seen in self._seen):
            return False
        held = [seen for seen in self._seen if seen.allocated]
        if any(not seen.active and seen.remaining > 0 for seen in held):
            return True
        wanted = sum(seen.remaining * seen.tp for seen in held)
        active = sum(len(seen.active) * seen.tp for seen in held)
        if len(held) < 2 or not wanted or not active:
            return False
        worst = sorted(held, key=lambda s: s.reported / s.target if s.target else 0.0)[: ceil(len(held) / 2)]
        share = sum(s.remaining * s.tp for s in worst) / wanted
        return abs(share - sum(len(s.active) * s.tp for s in worst) / active) > DRIFT

    def _wake_up(self) -> None:
        if self._cycle is not None:
            self._dirty = True
        else:
            self._run()

    def _run(self) -> None:
        self._dirty = False
        cycle = self._cycle = _Cycle({gpu for gpu, holder in enumerate(self._box.holder) if holder is None})
        for seen in self._seen:
            if seen.releasing:
                for rank in sorted(seen.active):
                    self._plan_shrink(cycle, seen, rank)
        reserved = self._trainings(cycle)
        cycle.idle -= reserved
        _gap_ratio(cycle, [seen for seen in self._seen if seen.target > 0], reserved | self._in_training())
        self._pausing = len(cycle.shrink)
        for unit in cycle.shrink:
            self._of(unit.job).active.discard(unit.rank)
            self._box.sleep(unit)
        if not cycle.shrink:
            self._expand()

    def _in_training(self) -> set[int]:
        return {gpu for seen in self._seen if seen.job.phase is Phase.TRAINING for gpu in seen.job.load.train_gpus}

    def _plan_shrink(self, cycle: _Cycle, seen: _Seen, rank: int) -> None:
        unit = seen.job.units[rank]
        cycle.shrink.append(unit)
        cycle.protected.add((id(seen), rank))
        cycle.idle |= set(unit.gpus)

    def _trainings(self, cycle: _Cycle) -> set[int]:
        """Serve trainings first come first served; pauses of a request that cannot be met yet stay planned all the same, a defect of the original."""
        reserved: set[int] = set()
        for seen in self._queue:
            needed = set(seen.job.load.train_gpus)
            missing = needed - cycle.idle
            for other in self._seen:
                for rank in sorted(other.active):
                    gpus = set(other.job.units[rank].gpus)
                    if missing & gpus and (id(other), rank) not in cycle.protected:
                        self._plan_shrink(cycle, other, rank)
                        missing -= gpus
            if needed <= cycle.idle:
                cycle.idle -= needed
                reserved |= needed
                cycle.train.append(seen.job)
        return reserved

    def _expand(self) -> None:
        cycle = self._cycle
        assert cycle is not None
        self._waking = len(cycle.expand)
        for unit in cycle.expand:
            self._box.wake(unit)
        if not cycle.expand:
            self._commit()

    def _commit(self) -> None:
        cycle, self._cycle = self._cycle, None
        assert cycle is not None
        for unit in cycle.expand:
            seen = self._of(unit.job)
            seen.active.add(unit.rank)
            seen.pending = False
        for job in cycle.train:
            seen = self._of(job)
            self._queue.remove(seen)
            seen.training = False
            self._box.train(job)
        for seen in self._seen:
            if seen.releasing and not seen.active:
                seen.releasing = False
                self._ask_training(seen)
                self._dirty = True
            elif seen.job.phase is Phase.WANTING and not seen.releasing and not seen.training:
                seen.releasing = bool(seen.active)  # the rollout ended while engines of it were waking
                self._dirty = True
                if not seen.releasing:
                    self._ask_training(seen)
        if self._dirty:
            self._run()


def _gap_ratio(cycle: _Cycle, listed: list[_Seen], reserved: set[int]) -> None:
    """Set targets by remaining x tp, then give one engine at a time to the widest relative gap."""
    active = {id(seen): seen.active - {rank for key, rank in cycle.protected if key == id(seen)} for seen in listed}
    weight = sum(seen.remaining * seen.tp for seen in listed)
    budget = len(cycle.idle) + sum(len(active[id(seen)]) * seen.tp for seen in listed)
    if not weight or not budget:
        return
    ratio = {id(seen): seen.remaining * seen.tp / weight for seen in listed}
    target = {id(seen): max(floor(ratio[id(seen)] * budget / seen.tp + 0.5), 1) for seen in listed}
    while True:
        gap = {id(seen): ratio[id(seen)] - len(active[id(seen)]) * seen.tp / budget for seen in listed}
        acceptors = [s for s in listed if gap[id(s)] > 0 and len(active[id(s)]) < target[id(s)]]
        acceptors.sort(key=lambda s: (-gap[id(s)] / ratio[id(s)], -gap[id(s)], s.job.load.id))
        donors = sorted((s for s in listed if gap[id(s)] < 0), key=lambda s: gap[id(s)])
        if not any(_activate(cycle, seen, donors, active, target, reserved) for seen in acceptors):
            return


def _activate(
    cycle: _Cycle, receiver: _Seen, donors: list[_Seen], active: dict[int, set[int]], target: dict[int, int], reserved: set[int]
) -> bool:
    best: tuple[tuple[object, ...], Unit, list[tuple[_Seen, int]]] | None = None
    for unit in receiver.job.units:
        gpus = set(unit.gpus)
        touched = unit.rank in active[id(receiver)] or (id(receiver), unit.rank) in cycle.protected
        if touched or unit.state is not UnitState.ASLEEP or gpus & reserved:
            continue
        given = _given(cycle, gpus - cycle.idle, donors, active, target)
        if given is None:
            continue
        done = sorted(seen.remaining / seen.target for seen, _ in given)
        score = (1 if given else 0, tuple(-share for share in done), unit.rank)
        if best is None or score < best[0]:
            best = (score, unit, given)
    if best is None:
        return False
    _, unit, given = best
    for seen, rank in given:
        cycle.shrink.append(seen.job.units[rank])
        cycle.protected.add((id(seen), rank))
        active[id(seen)].discard(rank)
        cycle.idle |= set(seen.job.units[rank].gpus)
    cycle.idle -= set(unit.gpus)
    cycle.expand.append(unit)
    cycle.protected.add((id(receiver), unit.rank))
    active[id(receiver)].add(unit.rank)
    return True


def _given(
    cycle: _Cycle, missing: set[int], donors: Iterable[_Seen], active: dict[int, set[int]], target: dict[int, int]
) -> list[tuple[_Seen, int]] | None:
    """Return engines that donors can spare to cover `missing`; None when they cannot."""
    given: list[tuple[_Seen, int]] = []
    for seen in donors:
        spare = max(0, len(active[id(seen)]) - target[id(seen)])
        for rank in sorted(active[id(seen)]):
            gpus = set(seen.job.units[rank].gpus)
            if spare and missing & gpus and (id(seen), rank) not in cycle.protected:
                given.append((seen, rank))
                missing = missing - gpus
                spare -= 1
    return given if not missing else None

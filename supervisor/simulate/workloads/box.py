"""The box is the physics of a simulation in virtual time: engines take the scenario's time to sleep and wake, samples run at rate 1.

The box decides nothing. It tells a *policy* what happened, and the policy calls `sleep`, `wake` and `train`; a call that breaks the physics
(a GPU for two, an engine taken twice) raises AssertionError, so that no policy can look good by cheating.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from engines.gateway.core.ordering.lengths import expected_remaining

from .scenario import PipelineLoad, Scenario


class Phase(Enum):
    """Where a pipeline is in its step."""

    ABSENT = "has not arrived"
    ROLLING = "rollout"
    WANTING = "waits for its training GPUs"
    TRAINING = "training"
    DONE = "done"


class UnitState(Enum):
    ASLEEP = "asleep"
    WAKING = "waking"
    AWAKE = "awake"
    SLEEPING = "going to sleep"


@dataclass(slots=True)
class Unit:
    """A unit is one engine."""

    job: "Job"
    rank: int
    gpus: tuple[int, ...]
    state: UnitState = UnitState.ASLEEP
    running: dict[int, float] = field(default_factory=dict)  # sample -> when it started here
    busy_since: float | None = None  # generates without a pause since


@dataclass(slots=True)
class Job:
    """A job is one pipeline: its step, and the seconds that remain of each of its samples."""

    load: PipelineLoad
    units: list[Unit] = field(default_factory=list)
    phase: Phase = Phase.ABSENT
    step: int = 0
    remaining: list[float] = field(default_factory=list)
    waiting: list[tuple[float, int]] = field(default_factory=list)  # heap of (order, sample)
    lives: list[int] = field(default_factory=list)  # of a sample: how often it was started; an older life's end is void
    done: int = 0
    since: float = 0.0  # of the phase
    end: float = 0.0

    @property
    def unfinished(self) -> int:
        return len(self.remaining) - self.done if self.phase is Phase.ROLLING else 0

    @property
    def in_flight(self) -> int:
        return sum(len(unit.running) for unit in self.units)


class Policy(Protocol):
    """A policy is told what happened, after the fact, and acts through the box that it was given."""

    def arrived(self, job: Job) -> None: ...
    def progressed(self, job: Job) -> None: ...
    def rolled(self, job: Job) -> None: ...
    def trained(self, job: Job) -> None: ...
    def woken(self, unit: Unit) -> None: ...
    def slept(self, unit: Unit) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation came to. Times are seconds, `busy` are GPU-seconds in which a GPU trained or generated."""

    makespan: float
    resizes: int
    busy: float
    ends: tuple[float, ...]


class Box:
    """A box runs one scenario. With `hints` the dispatcher starts the longest expected sample first, and the policy may ask for expectations."""

    def __init__(self, scenario: Scenario, hints: bool = False) -> None:
        self.scenario = scenario
        self.hints = hints
        self.now = 0.0
        self.jobs = [Job(load) for load in scenario.pipelines]
        for job in self.jobs:
            job.units = [Unit(job, rank, job.load.bundle(rank)) for rank in range(job.load.ranks)]
        self.holder: list[object | None] = [None] * scenario.gpus
        self.busy = 0.0
        self.resizes = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self.policy: Policy | None = None

    # -- time

    def after(self, delay: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, what))

    def run(self, policy: Policy) -> Outcome:
        """Run to the end of the last pipeline. Raises AssertionError when the policy leaves something undone for ever."""
        self.policy = policy
        for job in self.jobs:
            self.after(job.load.arrival_s, lambda job=job: self._roll(job, policy.arrived))  # type: ignore[misc]
        while any(job.phase is not Phase.DONE for job in self.jobs):
            assert self._heap, f"the policy lets {[job.load.id for job in self.jobs if job.phase is not Phase.DONE]} wait for ever"
            self.now, _, what = heapq.heappop(self._heap)
            what()
        ends = tuple(job.end for job in self.jobs)
        return Outcome(max(ends), self.resizes, self.busy, ends)

    # -- what a policy may do

    def sleep(self, unit: Unit) -> None:
        """Stop producing at once; the engine holds its GPUs for `sleep_s`."""
        assert unit.state is UnitState.AWAKE, f"{unit.job.load.id}/{unit.rank} is {unit.state.value} and cannot be put to sleep"
        unit.state = UnitState.SLEEPING
        self.resizes += 1
        self._interrupt(unit)
        self.after(self.scenario.sleep_s, lambda: self._slept(unit))

    def end(self, unit: Unit) -> None:
        """End the engine's process: nothing of it stays. This costs nothing and is no resize."""
        assert not unit.running, f"{unit.job.load.id}/{unit.rank} ends with {len(unit.running)} samples running"
        unit.state = UnitState.ASLEEP
        for gpu in unit.gpus:
            if self.holder[gpu] is unit:
                self.holder[gpu] = None

    def wake(self, unit: Unit) -> None:
        """Take its GPUs now; the engine produces after `wake_s`."""
        assert unit.state is UnitState.ASLEEP, f"{unit.job.load.id}/{unit.rank} is {unit.state.value} and cannot be woken"
        self._take(unit.gpus, unit)
        unit.state = UnitState.WAKING
        self.resizes += 1
        self.after(self.scenario.wake_s, lambda: self._woken(unit))

    def train(self, job: Job) -> None:
        """Take every training GPU for `train_s`."""
        assert job.phase is Phase.WANTING, f"{job.load.id} wants no training: {job.phase.value}"
        self._take(job.load.train_gpus, job)
        job.phase, job.since = Phase.TRAINING, self.now
        self.after(job.load.train_s, lambda: self._trained(job))

    def expected(self, job: Job) -> tuple[float, float]:
        """Return the seconds of work expected in the unfinished samples, and in the longest of them; (0, 0) without hints."""
        if not self.hints or not job.load.hints or job.phase is not Phase.ROLLING:
            return (0.0, 0.0)
        guesses, work = job.load.hints[job.step], job.load.trajectories[job.step]
        started = {sample: since for unit in job.units for sample, since in unit.running.items()}
        total = longest = 0.0
        for sample, seconds in enumerate(job.remaining):
            if seconds > 0.0:
                age = work[sample] - seconds + (self.now - started[sample] if sample in started else 0.0)
                expected = expected_remaining(guesses[sample], max(0.0, age))
                total += expected
                longest = max(longest, expected)
        return (total, longest)

    # -- what happens

    def _roll(self, job: Job, tell: Callable[[Job], None]) -> None:
        work = job.load.trajectories[job.step]
        job.phase, job.since, job.done = Phase.ROLLING, self.now, 0
        job.remaining, job.lives = list(work), [0] * len(work)
        job.waiting = [(self._dispatch_order(job, sample), sample) for sample in range(len(work))]
        heapq.heapify(job.waiting)
        self._fill(job)
        tell(job)

    def _dispatch_order(self, job: Job, sample: int) -> float:
        """Return a sort key: the longest expected first, else by index. What was interrupted is known to be long."""
        if self.hints and job.load.hints:
            age = job.load.trajectories[job.step][sample] - job.remaining[sample]
            return -expected_remaining(job.load.hints[job.step][sample], age)
        return float(sample)

    def _fill(self, job: Job) -> None:
        """Start waiting samples on the emptiest engines."""
        slots = job.load.slots_per_rank
        open_units = [unit for unit in job.units if unit.state is UnitState.AWAKE and len(unit.running) < slots]
        while job.waiting and open_units:
            unit = min(open_units, key=lambda u: (len(u.running), u.rank))
            _, sample = heapq.heappop(job.waiting)
            unit.running[sample] = self.now
            if unit.busy_since is None:
                unit.busy_since = self.now
            job.lives[sample] += 1
            life = job.lives[sample]
            self.after(job.remaining[sample], lambda s=sample, u=unit, n=life: self._finished(job, u, s, n))  # type: ignore[misc]
            if len(unit.running) >= slots:
                open_units.remove(unit)

    def _finished(self, job: Job, unit: Unit, sample: int, life: int) -> None:
        if job.phase is not Phase.ROLLING or sample not in unit.running or job.lives[sample] != life:
            return
        del unit.running[sample]
        self._rest(unit)
        job.remaining[sample] = 0.0
        job.done += 1
        if job.done == len(job.remaining):
            job.phase, job.since = Phase.WANTING, self.now
            assert self.policy is not None
            self.policy.rolled(job)
        else:
            self._fill(job)
            assert self.policy is not None
            self.policy.progressed(job)

    def _rest(self, unit: Unit) -> None:
        """Count an engine's busy time when nothing runs on it any more."""
        if not unit.running and unit.busy_since is not None:
            self.busy += (self.now - unit.busy_since) * len(unit.gpus)
            unit.busy_since = None

    def _interrupt(self, unit: Unit) -> None:
        job = unit.job
        for sample, since in unit.running.items():
            job.remaining[sample] = max(1e-9, job.remaining[sample] - (self.now - since))
            job.lives[sample] += 1
            heapq.heappush(job.waiting, (self._dispatch_order(job, sample), sample))
        unit.running.clear()
        self._rest(unit)
        self._fill(job)

    def _woken(self, unit: Unit) -> None:
        unit.state = UnitState.AWAKE
        if unit.job.phase is Phase.ROLLING:
            self._fill(unit.job)
        assert self.policy is not None
        self.policy.woken(unit)

    def _slept(self, unit: Unit) -> None:
        unit.state = UnitState.ASLEEP
        for gpu in unit.gpus:
            self.holder[gpu] = None
        assert self.policy is not None
        self.policy.slept(unit)

    def _trained(self, job: Job) -> None:
        for gpu in job.load.train_gpus:
            self.holder[gpu] = None
        self.busy += job.load.train_s * len(job.load.train_gpus)
        job.step += 1
        assert self.policy is not None
        if job.step < len(job.load.trajectories):
            self._roll(job, self.policy.trained)
        else:
            job.phase, job.end = Phase.DONE, self.now
            self.policy.trained(job)

    # -- GPUs

    def _take(self, gpus: tuple[int, ...], holder: object) -> None:
        for gpu in gpus:
            assert self.holder[gpu] is None, f"GPU {gpu} is booked twice at {self.now:.2f} s"
            self.holder[gpu] = holder

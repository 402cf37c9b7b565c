"""These policies do not share: a pipeline alone stops and goes; a queue of them (`serial`); the box cut in two by hand (`static`)."""

import msgspec

from .box import Box, Job, Outcome, Phase, Unit, UnitState
from .scenario import PipelineLoad, Scenario


class StopAndGo:
    """This policy has one pipeline: every engine wakes for a rollout and sleeps before the training."""

    def __init__(self, box: Box) -> None:
        assert len(box.jobs) == 1, "a pipeline alone"
        self._box = box
        self._job = box.jobs[0]

    def arrived(self, job: Job) -> None:
        for unit in job.units:
            self._box.wake(unit)

    def progressed(self, job: Job) -> None:
        pass

    def rolled(self, job: Job) -> None:
        for unit in job.units:
            if unit.state is UnitState.AWAKE:
                self._box.sleep(unit)

    def trained(self, job: Job) -> None:
        if job.phase is Phase.ROLLING:
            self.arrived(job)

    def woken(self, unit: Unit) -> None:
        if self._job.phase is not Phase.ROLLING:
            self._box.sleep(unit)

    def slept(self, unit: Unit) -> None:
        if self._job.phase is Phase.WANTING and all(unit.state is UnitState.ASLEEP for unit in self._job.units):
            self._box.train(self._job)


def alone(scenario: Scenario, load: PipelineLoad, hints: bool) -> Outcome:
    """Run this pipeline with the whole box to itself, from its own arrival on."""
    box = Box(msgspec.structs.replace(scenario, pipelines=(msgspec.structs.replace(load, arrival_s=0.0),)), hints)
    return box.run(StopAndGo(box))


def in_turn(scenario: Scenario, loads: tuple[PipelineLoad, ...], hints: bool, *, wait: bool) -> Outcome:
    """Run one pipeline after another, in their order. With `wait`, none starts before it has arrived."""
    now, ends, resizes, busy = 0.0, [], 0, 0.0
    for load in loads:
        outcome = alone(scenario, load, hints)
        now = max(now, load.arrival_s if wait else 0.0) + outcome.makespan
        ends.append(now)
        resizes += outcome.resizes
        busy += outcome.busy
    return Outcome(now, resizes, busy, tuple(ends))


def halves(scenario: Scenario, hints: bool) -> Outcome:
    """Give half the box to every other pipeline (by where it trains, where that decides it), each half a queue of its own.

    A training with fewer GPUs than it is used to takes as much longer. A pipeline whose engines do not fit its half gets the whole box
    for itself, after both queues.
    """
    middle = scenario.gpus // 2
    halved = (frozenset(range(middle)), frozenset(range(middle, scenario.gpus)))
    queues: tuple[list[PipelineLoad], list[PipelineLoad]] = ([], [])
    unsplit: list[PipelineLoad] = []
    for load in scenario.pipelines:
        side = _side(load, halved, queues)
        fitted = _fit(load, halved[side])
        if fitted is None:
            unsplit.append(load)
        else:
            queues[side].append(fitted)
    outcomes = [in_turn(scenario, tuple(queue), hints, wait=True) for queue in queues]
    start = max(outcome.makespan for outcome in outcomes)
    rest = in_turn(scenario, tuple(unsplit), hints, wait=True)
    ends = {load.id: end for queue, outcome in zip(queues, outcomes, strict=True) for load, end in zip(queue, outcome.ends, strict=True)}
    ends |= {load.id: start + end for load, end in zip(unsplit, rest.ends, strict=True)}
    total = [*outcomes, rest]
    ordered = tuple(ends[load.id] for load in scenario.pipelines)
    return Outcome(max(ordered), sum(o.resizes for o in total), sum(o.busy for o in total), ordered)


def _side(load: PipelineLoad, halved: tuple[frozenset[int], ...], queues: tuple[list[PipelineLoad], ...]) -> int:
    mine = [len(half & set(load.train_gpus)) for half in halved]
    if mine[0] != mine[1]:
        return mine.index(max(mine))
    return 0 if len(queues[0]) <= len(queues[1]) else 1


def _fit(load: PipelineLoad, half: frozenset[int]) -> PipelineLoad | None:
    """Return the pipeline inside its half; None when it has no engine or no training GPU there."""
    infer = tuple(gpu for rank in range(load.ranks) if half.issuperset(load.bundle(rank)) for gpu in load.bundle(rank))
    train = tuple(gpu for gpu in load.train_gpus if gpu in half)
    if not infer or not train:
        return None
    longer = load.train_s * len(load.train_gpus) / len(train)
    return msgspec.structs.replace(load, infer_gpus=infer, train_gpus=train, train_s=longer)

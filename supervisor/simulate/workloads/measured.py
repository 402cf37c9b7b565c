"""This module makes a scenario of what a run has measured, to answer: what would the same work have cost alone, and one pipeline after another?

A run knows the seconds of each training, of each pause and wake, and of all samples together. How long the single samples were, it does not
keep: they count as equally long, so that a pipeline alone has no long tail here, and what sharing brings is rather said too low.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median

import msgspec

from supervisor.history import totals
from supervisor.history.fold import History
from supervisor.history.records import PipelineHistory

from .alone import alone
from .scenario import PipelineLoad, Scenario

SIMULATED = 4
"""Steps of a pipeline that are simulated."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What the work of a run cost, and would have cost, in seconds.

    `shared`: from the first trainer that ran to the end. `alone`: each pipeline with the whole box to itself; `in_turn`: all of these, one after
    the other. `own`: seconds of each pipeline in which its trainer needed no GPU; they are in `alone`, too.
    """

    shared: float
    alone: dict[str, float]
    own: dict[str, float]

    @property
    def in_turn(self) -> float:
        return sum(self.alone.values())

    @property
    def times(self) -> float:
        """Return how many times as long the queue would have taken."""
        return self.in_turn / self.shared if self.shared else 0.0


def scenario(history: History, name: str) -> Scenario:
    """Make a scenario of the pipelines that have trained or generated at all. It may have none."""
    sleep_s, wake_s = _resizes(history)
    loads = (load for pipeline in history.pipelines.values() if (load := _load(history, pipeline)) is not None)
    return Scenario(name, max(history.gpus, default=0) + 1, sleep_s, wake_s, tuple(loads))


def worth(history: History, name: str = "run") -> Worth | None:
    """Compare a run with its pipelines alone. None: not one has trained and generated yet."""
    made = scenario(history, name)
    if not made.pipelines:
        return None
    splits = totals.of_pipelines(history)
    own = {load.id: splits[load.id].by_kind.get("own", 0.0) for load in made.pipelines}
    each = {load.id: _alone(made, load) + own[load.id] for load in made.pipelines}
    return Worth(_shared(history, each), each, own)


def _alone(made: Scenario, load: PipelineLoad) -> float:
    """Return the seconds of a pipeline alone. Its steps are all alike: a few are simulated, and stand for all."""
    steps = load.trajectories
    few = msgspec.structs.replace(load, trajectories=steps[:SIMULATED])
    return alone(made, few, hints=False).makespan * len(steps) / len(few.trajectories)


def _shared(history: History, names: Iterable[str]) -> float:
    """Return the seconds from the first moment at which a pipeline's trainer ran to the last; time without a supervisor does not count."""
    begin, end = history.until, 0.0
    for name in names:
        for first, last, doing in history.pipelines[name].lane.slices(history.until):
            if doing.kind not in ("start", "off", "ended"):
                begin, end = min(begin, first), max(end, last)
    off = sum(max(0.0, min(end, later.begin) - life.end) for life, later in zip(history.lives, history.lives[1:], strict=False))
    return max(0.0, end - begin - off)


def _load(history: History, pipeline: PipelineHistory) -> PipelineLoad | None:
    trainings = totals.train_seconds(history, pipeline)
    counts, of = pipeline.counts, pipeline.of
    samples = counts.samples[-1] if counts.times else 0
    train = of.roles.get("train", ())
    if not trainings or not samples or not pipeline.work or not train:
        return None
    steps = len(trainings)
    each = max(1, round(samples / steps))
    seconds = pipeline.work / samples
    trajectories = tuple((seconds,) * each for _ in range(steps))
    engines = of.engines
    return PipelineLoad(of.name, tuple(train), tuple(engines.gpus), engines.tp, engines.slots, median(trainings), trajectories)


def _resizes(history: History) -> tuple[float, float]:
    """Return the mean seconds of a pause (drain and measurement included) and of a wake, as the GPUs saw them."""
    down: list[float] = []
    up: list[float] = []
    for lane in history.gpus.values():
        holder = ""
        for begin, end, doing in lane.slices(history.until):
            if doing.what == "waking":
                up.append(end - begin)
            elif doing.what in ("draining", "pausing"):
                if holder == doing.who:
                    down[-1] += end - begin
                else:
                    down.append(end - begin)
            holder = doing.who if doing.what in ("draining", "pausing") else ""
    return fmean(down or [0.0]), fmean(up or [0.0])

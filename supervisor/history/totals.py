"""Totals say where the time of a run went: how each GPU's and each pipeline's time splits, and who was waited for how long.

All shares are of the time in which a supervisor ran; what a GPU or a pipeline did then sums up to 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .fold import History
from .lanes import Doing, Lane
from .records import PipelineHistory

WORK = ("train", "rollout")
"""What a GPU is there for."""
LOST_TO_SHARING = ("switch",)
IDLE = ("ready", "free", "withheld")


@dataclass(frozen=True, slots=True)
class Split:
    """How `seconds` split, by kind; and by holder or by whom is waited for."""

    seconds: float
    by_kind: dict[str, float]
    by_who: dict[tuple[str, str], float]

    def share(self, *kinds: str) -> float:
        """Return the share of these kinds, 0 to 1; 0 of nothing."""
        return sum(self.by_kind.get(kind, 0.0) for kind in kinds) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class WaitedFor:
    """How long a trainer waited, as the summary counts it (`got`), and in all; by kind, and by the pipelines that had what it waited for."""

    counted: float
    total: float
    by_kind: dict[str, float]
    by_pipeline: dict[str, float]
    longest: float
    times: int


def split(lane: Lane, until: float) -> Split:
    """Return how the time of a lane splits. Time without a supervisor does not count."""
    by_kind: dict[str, float] = {}
    by_who: dict[tuple[str, str], float] = {}
    for doing, seconds in lane.seconds(until).items():
        if doing.kind != "off":
            by_kind[doing.kind] = by_kind.get(doing.kind, 0.0) + seconds
            key = (doing.kind, doing.who)
            by_who[key] = by_who.get(key, 0.0) + seconds
    return Split(sum(by_kind.values()), by_kind, by_who)


def together(splits: Iterable[Split]) -> Split:
    """Add up the splits of several lanes."""
    by_kind: dict[str, float] = {}
    by_who: dict[tuple[str, str], float] = {}
    for one in splits:
        for kind, seconds in one.by_kind.items():
            by_kind[kind] = by_kind.get(kind, 0.0) + seconds
        for key, seconds in one.by_who.items():
            by_who[key] = by_who.get(key, 0.0) + seconds
    return Split(sum(by_kind.values()), by_kind, by_who)


def of_gpus(history: History) -> dict[int, Split]:
    return {gpu: split(lane, history.until) for gpu, lane in history.gpus.items()}


def of_pipelines(history: History) -> dict[str, Split]:
    """Return how each pipeline's time splits, up to its end."""
    return {name: _without_end(split(pipeline.lane, history.until)) for name, pipeline in history.pipelines.items()}


def _without_end(whole: Split) -> Split:
    by_kind = {kind: seconds for kind, seconds in whole.by_kind.items() if kind != "ended"}
    return Split(sum(by_kind.values()), by_kind, {key: seconds for key, seconds in whole.by_who.items() if key[0] != "ended"})


def waited(history: History, pipeline: str) -> WaitedFor:
    """Return what a pipeline waited for, and for whom. Each second of a wait counts once for whom it waited at its end."""
    counted = total = longest = 0.0
    by_kind: dict[str, float] = {}
    by_pipeline: dict[str, float] = {}
    times = 0
    for wait in history.waits:
        if wait.pipeline != pipeline:
            continue
        seconds = (history.until if wait.end is None else wait.end) - wait.begin
        total += seconds
        times += 1
        longest = max(longest, seconds)
        counted += seconds if wait.got else 0.0
        by_kind[wait.what] = by_kind.get(wait.what, 0.0) + seconds
        for name in {party.pipeline for party in wait.whom} or {""}:
            by_pipeline[name] = by_pipeline.get(name, 0.0) + seconds
    return WaitedFor(counted, total, by_kind, by_pipeline, longest, times)


def train_seconds(history: History, pipeline: PipelineHistory) -> list[float]:
    """Return how long each training of a pipeline held its GPUs, in order: the slices of its lane, put together where only the role changes."""
    found: list[float] = []
    last: Doing | None = None
    for begin, end, doing in pipeline.lane.slices(history.until):
        if doing.kind == "train":
            if last is not None and last.kind == "train":
                found[-1] += end - begin
            else:
                found.append(end - begin)
        last = doing
    return found

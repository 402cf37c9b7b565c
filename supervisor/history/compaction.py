"""Compaction makes the facts of an old segment few: lanes as they are drawn in buckets of time, and of each bucket the last figures.

Totals stay: how long each thing was done and how long was waited for whom are exact. What is lost is the order within a bucket, single waits of
it, and all figures of a trainer but the bucket's last. Failures, notes, requests and published versions all stay.
"""

from collections.abc import Iterable
from typing import Final

from .facts import (
    BoxIs,
    Demand,
    Drawn,
    EngineIs,
    Fact,
    GpuLent,
    GpuWithheld,
    Party,
    Reported,
    Waited,
    WaitKind,
    Waits,
)
from .fold import History
from .lanes import Lane
from .thinning import thinned

WIDTHS: Final = (60.0, 600.0, 3600.0, 21_600.0)
"""Seconds of a bucket, of facts that are older and older."""

Changes = list[tuple[float, list[Fact]]]
"""What changed, and when, on the clock of the events."""


def compacted(changes: Changes, width: float, *, began: float | None = None, drawn: bool = False) -> Changes:
    """Return the facts of a segment in fewer facts. They are to be folded with `drawn`, as those are that were compacted before.

    `began`: a life of a supervisor begins with the segment, at this time; else the first facts tell all that holds then.
    """
    if not changes:
        return []
    first = _first(changes) if began is None else began
    history = History()
    history.opened(first, 0.0, life=True, drawn=drawn)
    kept = _Kept(first, width)
    for at, facts in changes:
        history.changed(at, facts)
        kept.take(at, facts)
    last = changes[-1][0]
    lanes: list[Fact] = [_drawn(lane, history.until, width, first, gpu=gpu) for gpu, lane in history.gpus.items()]
    lanes += [_drawn(one.lane, history.until, width, first, pipeline=name) for name, one in history.pipelines.items()]
    return [*kept.end(last), (last, lanes)]


def _first(changes: Changes) -> float:
    """Return from when on the facts tell what was done."""
    begins = [fact.slices[0][0] for _, facts in changes for fact in facts if isinstance(fact, Drawn) and fact.slices]
    return min(begins, default=changes[0][0])


def _drawn(lane: Lane, until: float, width: float, first: float, gpu: int = -1, pipeline: str = "") -> Drawn:
    """Return a lane in slices, the last of which says what is done when the segment ends: it goes on from there, whatever the order was before."""
    slices = [(begin, doing) for begin, _, doing in thinned(lane, until, width)] + [(until, lane.doing)]
    return Drawn(gpu, pipeline, tuple((round(first + begin, 4), doing.kind, doing.who, doing.what) for begin, doing in slices))


class _Kept:
    """What is kept of the facts, bucket by bucket."""

    def __init__(self, first: float, width: float) -> None:
        self._first, self._width = first, width
        self._bucket = 0
        self._at = first
        self._out: Changes = []
        self._demands: dict[str, Demand] = {}
        self._reports: dict[str, Reported] = {}
        self._open: dict[tuple[str, WaitKind], Waits] = {}
        self._waits: dict[tuple[str, WaitKind, bool, tuple[Party, ...]], tuple[float, str]] = {}

    def take(self, at: float, facts: Iterable[Fact]) -> None:
        bucket = int((at - self._first) / self._width)
        if bucket != self._bucket:
            self._flush()
            self._bucket = bucket
        self._at = at
        for fact in facts:
            match fact:
                case EngineIs() | GpuLent() | GpuWithheld() | Drawn():
                    pass  # the lanes have it
                case Demand():
                    self._demands[fact.pipeline] = fact
                case Reported():
                    known = self._reports.get(fact.pipeline)
                    metrics = fact.metrics if known is None else known.metrics | fact.metrics
                    self._reports[fact.pipeline] = Reported(fact.pipeline, fact.step, metrics)
                case Waits():
                    self._wait(fact)
                case Waited():
                    self._waited(at, fact)
                case BoxIs() if self._out:
                    pass
                case _:
                    self._tell(at, [fact])

    def _wait(self, fact: Waits) -> None:
        """A wait is for whom it was last, as the fold has it."""
        key = (fact.pipeline, fact.what)
        known = self._open.get(key)
        if known is not None and known.since == fact.since and not fact.whom:
            fact = Waits(fact.pipeline, fact.what, fact.since, fact.why, known.whom)
        self._open[key] = fact

    def _waited(self, at: float, fact: Waited) -> None:
        wait = self._open.pop((fact.pipeline, fact.what), None)
        if wait is None or wait.since < self._first:  # it began before, and is known by when it began
            self._tell(at, [fact] if wait is None else [wait, fact])
            return
        key = (fact.pipeline, fact.what, fact.got, wait.whom)
        before, _ = self._waits.get(key, (0.0, ""))
        self._waits[key] = before + at - wait.since, wait.why

    def _flush(self) -> None:
        facts: list[Fact] = []
        at = self._at
        for (pipeline, what, got, whom), (seconds, why) in self._waits.items():
            facts += [Waits(pipeline, what, at - seconds, why, whom), Waited(pipeline, what, got)]
        facts += [*self._demands.values(), *self._reports.values()]
        self._tell(at, facts)
        self._demands, self._reports, self._waits = {}, {}, {}

    def _tell(self, at: float, facts: list[Fact]) -> None:
        if self._out and self._out[-1][0] == at:
            self._out[-1][1].extend(facts)
        elif facts:
            self._out.append((at, facts))

    def end(self, last: float) -> Changes:
        """Return what is kept, with the waits that are still open last."""
        self._at = last
        self._flush()
        self._tell(last, list(self._open.values()))
        return self._out

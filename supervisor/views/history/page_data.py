"""What the page shows, as plain data: nothing of it is markup, and texts of children are made plain here. Times are seconds since the run began."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from supervisor.attempt.summary import Summary
from supervisor.config.child_environment import SECRET, matches
from supervisor.errors import ExitCode
from supervisor.history import totals
from supervisor.history.fold import History
from supervisor.history.lanes import GPU_KINDS, PIPELINE_KINDS, Lane
from supervisor.history.records import Figure
from supervisor.observe.sanitize import one_line
from supervisor.simulate.workloads.measured import Worth, worth
from supervisor.views.history.thinning import thinned, width_for

MOST_SLICES: Final = 150_000
"""Of all lanes of a page together: what a browser draws at once without a stutter, in some 2 MB."""
MOST_POINTS: Final = 3000
"""Of one curve."""
MOST_PARTS: Final = 120
"""Parts of the time of a run, of which each has a rate."""
MOST_MARKS: Final = 2000
HIDDEN: Final = "(hidden)"
_WORD: Final = 120


class LaneData(msgspec.Struct, frozen=True):
    """A lane: slice i begins `steps[i]` milliseconds after the one before it, and does `doings[i]`, a place in the page's table."""

    name: str
    steps: list[int]
    doings: list[int]


class SplitData(msgspec.Struct, frozen=True):
    """How the time of one lane splits, in seconds by kind."""

    name: str
    seconds: dict[str, float]


class WaitData(msgspec.Struct, frozen=True):
    """What a pipeline waited for: `counted` seconds are the summary's; by kind, and by the pipeline that had it ("" where nobody had)."""

    name: str
    counted: float
    total: float
    times: int
    longest: float
    by_kind: dict[str, float]
    by_pipeline: dict[str, float]


class CurveData(msgspec.Struct, frozen=True):
    """A figure of one pipeline, over time and over its steps."""

    pipeline: str
    name: str
    times: list[float]
    steps: list[int]
    values: list[float | None]


class PipelineData(msgspec.Struct, frozen=True):
    """One pipeline, at its end or now."""

    name: str
    state: str
    steps_done: int
    steps: int
    samples: int
    tokens: int
    version: int
    outcome: str = ""
    why: str = ""


class WorthData(msgspec.Struct, frozen=True):
    """What the work cost, and would have cost alone and in turn, in seconds."""

    shared: float
    in_turn: float
    alone: dict[str, float]
    own: dict[str, float]


class PageData(msgspec.Struct, frozen=True):
    """All that a page shows. `thinned_s`: within so many seconds, the lanes' slices may be in another order; totals are exact."""

    run: str
    directory: str
    began_at: float
    seconds: float
    state: str
    meaning: str
    utilisation: float
    switching: float
    idle: float
    lives: list[tuple[float, float, str, str]]
    gpu_kinds: dict[str, str]
    pipeline_kinds: dict[str, str]
    doings: list[tuple[str, str, str]]
    gpus: list[LaneData]
    lanes: list[LaneData]
    gpu_splits: list[SplitData]
    pipeline_splits: list[SplitData]
    waits: list[WaitData]
    curves: list[CurveData]
    marks: list[tuple[float, str, str, str, str]]
    marks_left_out: int
    pipelines: list[PipelineData]
    worth: WorthData | None
    configuration: list[tuple[str, str]]
    thinned_s: float = 0.0


def page_data(
    history: History, *, run: str, directory: str, summary: Summary | None = None, configuration: Mapping[str, Any] | None = None
) -> PageData:
    """Return what a page shows of a history. `configuration` is the resolved one, as it lies in the attempt."""
    lanes = [*history.gpus.values(), *(pipeline.lane for pipeline in history.pipelines.values())]
    width = width_for(lanes, MOST_SLICES)
    table: dict[tuple[str, str, str], int] = {}
    splits = totals.of_gpus(history)
    box = totals.together(splits.values())
    marks = sorted(history.marks, key=lambda mark: (mark.kind in ("asked", "note"), mark.at))[:MOST_MARKS]
    return PageData(
        run=one_line(run, _WORD),
        directory=one_line(directory, 400),
        began_at=history.began_at,
        seconds=round(history.until, 3),
        state=history.lives[-1].how if history.lives else "runs",
        meaning=_meaning(history, summary),
        utilisation=box.share(*totals.WORK),
        switching=box.share(*totals.LOST_TO_SHARING),
        idle=box.share(*totals.IDLE),
        lives=[(round(life.begin, 3), round(life.end, 3), life.how, one_line(life.why, 300)) for life in history.lives],
        gpu_kinds=dict(GPU_KINDS),
        pipeline_kinds=dict(PIPELINE_KINDS),
        gpus=[_lane(f"GPU {gpu}", lane, history.until, width, table) for gpu, lane in history.gpus.items()],
        lanes=[_lane(name, pipeline.lane, history.until, width, table) for name, pipeline in history.pipelines.items()],
        doings=list(table),
        gpu_splits=[SplitData(f"GPU {gpu}", _rounded(split.by_kind)) for gpu, split in splits.items()],
        pipeline_splits=[SplitData(name, _rounded(split.by_kind)) for name, split in totals.of_pipelines(history).items()],
        waits=[_waits(history, name) for name in history.pipelines],
        curves=[
            *(_curve(name, figure, series) for name, one in history.pipelines.items() for figure, series in one.figures.items()),
            *(
                _rate(name, "tokens per second", one.counts.times, one.counts.tokens, history.until)
                for name, one in history.pipelines.items()
            ),
        ],
        marks=[
            (round(mark.at, 3), mark.kind, mark.level, one_line(mark.about, _WORD), one_line(mark.text, 400))
            for mark in sorted(marks, key=lambda mark: mark.at)
        ],
        marks_left_out=len(history.marks) - len(marks),
        pipelines=_pipelines(history, summary),
        worth=_worth(worth(history, run)),
        configuration=[] if configuration is None else list(_configuration(configuration, "")),
        thinned_s=width,
    )


def _meaning(history: History, summary: Summary | None) -> str:
    """Say in a sentence how the run stands."""
    if not history.lives:
        return ""
    life = history.lives[-1]
    if life.how == "runs":
        return "The run goes on."
    if life.how == "killed":
        return "The supervisor was killed or crashed. `bin/supervise run FILE --resume` goes on from the last checkpoints."
    if summary is None:
        return f"The supervisor has ended: {one_line(life.why, 300)}."
    try:
        meaning = ExitCode(summary.exit).meaning
    except ValueError:
        meaning = "unknown exit code"
    return f"Exit code {summary.exit}: {meaning}."


def _lane(name: str, lane: Lane, until: float, width: float, table: dict[tuple[str, str, str], int]) -> LaneData:
    steps: list[int] = []
    doings: list[int] = []
    last = 0
    for begin, _, doing in thinned(lane, until, width):
        key = (doing.kind, one_line(doing.who, _WORD), one_line(doing.what, 300))
        at = round(begin * 1000)
        steps.append(at - last)
        doings.append(table.setdefault(key, len(table)))
        last = at
    return LaneData(one_line(name, _WORD), steps, doings)


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(value, 4) for kind, value in seconds.items()}


def _waits(history: History, name: str) -> WaitData:
    found = totals.waited(history, name)
    by_kind, by_pipeline = _rounded(found.by_kind), _rounded(found.by_pipeline)
    return WaitData(name, round(found.counted, 3), round(found.total, 3), found.times, round(found.longest, 3), by_kind, by_pipeline)


def _curve(pipeline: str, name: str, figure: Figure) -> CurveData:
    places = _spread(len(figure.times))
    values = [_number(figure.values[place]) for place in places]
    times, steps = [round(figure.times[place], 3) for place in places], [figure.steps[place] for place in places]
    return CurveData(pipeline, one_line(name, _WORD), times, steps, values)


def _rate(pipeline: str, name: str, times: list[float], counts: list[int], until: float) -> CurveData:
    """Return how fast a count grew, in equal parts of the time."""
    part = max(1.0, until / MOST_PARTS)
    points: list[float] = []
    values: list[float | None] = []
    place = before = 0
    for number in range(int(until / part)):
        end = (number + 1) * part
        while place < len(times) and times[place] <= end:
            place += 1
        now = counts[place - 1] if place else 0
        points.append(round(end, 3))
        values.append(round((now - before) / part, 3))
        before = now
    return CurveData(pipeline, name, points, [], values)


def _spread(count: int, most: int = MOST_POINTS) -> Iterable[int]:
    """Return at most so many places of a list, evenly spread, the last one always."""
    if count <= most:
        return range(count)
    return sorted({*(int(place * count / most) for place in range(most)), count - 1})


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pipelines(history: History, summary: Summary | None) -> list[PipelineData]:
    found = []
    for name, one in history.pipelines.items():
        told = summary.pipelines.get(name) if summary is not None else None
        counts = one.counts
        samples = told.samples if told is not None else counts.samples[-1] if counts.times else 0
        found.append(
            PipelineData(
                name=name,
                state=_last(one.lane),
                steps_done=told.steps if told is not None else one.steps_done,
                steps=one.of.steps,
                samples=samples,
                tokens=counts.tokens[-1] if counts.times else 0,
                version=one.versions[-1][1] if one.versions else 0,
                outcome=told.outcome if told is not None else "",
                why=one_line(told.why, 400) if told is not None else "",
            )
        )
    return found


def _last(lane: Lane) -> str:
    """Return what a lane does now, or did when the supervisor ended."""
    return next((doing.kind for doing in reversed(lane.doings) if doing.kind != "off"), "off")


def _worth(found: Worth | None) -> WorthData | None:
    if found is None:
        return None
    return WorthData(round(found.shared, 3), round(found.in_turn, 3), _rounded(found.alone), _rounded(found.own))


def _configuration(value: Any, path: str) -> Iterable[tuple[str, str]]:
    """Yield each key of the configuration with its value, what may be a secret without it."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            name = f"{path}.{key}" if path else str(key)
            secret = path.rpartition(".")[2] == "env" or matches(str(key).upper(), (*SECRET, "KEY", "TOKEN", "SECRET", "PASSWORD"))
            if secret and not isinstance(one, bool | None) and not isinstance(one, Mapping):
                yield one_line(name, 200), HIDDEN
            else:
                yield from _configuration(one, name)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for place, one in enumerate(value):
            yield from _configuration(one, f"{path}[{one.get('name', place)}]")
    else:
        yield one_line(path, 200), one_line(value if isinstance(value, str) else msgspec.json.encode(value).decode(), 400)

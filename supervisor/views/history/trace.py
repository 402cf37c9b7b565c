"""The history as a trace in Chrome's JSON format, which ui.perfetto.dev and chrome://tracing open.

It has a process "GPUs" with a thread for each GPU, and a process "pipelines" with a thread for each pipeline; a pipeline's waits are slices of
its thread that say why, and for whom. Counters and marks lie with the pipelines. Times are microseconds since the run began.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from supervisor.history.fold import History
from supervisor.history.lanes import Doing, Lane
from supervisor.observe.sanitize import one_line

GPUS: Final = 1
PIPELINES: Final = 2
_SILENT: Final = frozenset(["free", "off", "ended"])
"""Kinds that are no slice: nothing happens."""
_WAIT_WORDS: Final = {"lease": "waits for GPUs", "engine": "waits for an engine"}

Event = dict[str, Any]


def trace(history: History, run: str) -> bytes:
    """Return the trace as JSON, one event a line."""
    encoder = msgspec.json.Encoder()
    events = b",\n".join(encoder.encode(event) for event in _events(history, run))
    head = encoder.encode({"run": run, "began_at": history.began_at, "seconds": round(history.until, 6)})
    return b'{"displayTimeUnit":"ms","otherData":' + head + b',"traceEvents":[\n' + events + b"\n]}\n"


def _events(history: History, run: str) -> Iterator[Event]:
    yield from _named("process_name", GPUS, 0, f"GPUs of {run}")
    yield from _named("process_name", PIPELINES, 0, f"pipelines of {run}")
    for gpu, lane in history.gpus.items():
        yield from _named("thread_name", GPUS, gpu + 1, f"GPU {gpu}")
        yield from _slices(lane, history.until, GPUS, gpu + 1)
    for place, (name, pipeline) in enumerate(history.pipelines.items(), 1):
        yield from _named("thread_name", PIPELINES, place, name)
        yield from _slices(pipeline.lane, history.until, PIPELINES, place)
    yield from _counters(history)
    for mark in history.marks:
        text = one_line(f"{mark.about + ': ' if mark.about else ''}{mark.text}", 300)
        yield {"ph": "i", "s": "g", "pid": PIPELINES, "tid": 0, "ts": _us(mark.at), "name": text, "cat": f"{mark.kind},{mark.level}"}


def _named(what: str, process: int, thread: int, name: str) -> Iterator[Event]:
    yield {"ph": "M", "pid": process, "tid": thread, "name": what, "args": {"name": name}}
    if what == "thread_name":
        yield {"ph": "M", "pid": process, "tid": thread, "name": "thread_sort_index", "args": {"sort_index": thread}}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _slices(lane: Lane, until: float, process: int, thread: int) -> Iterator[Event]:
    """Yield a lane's slices. Begin and end are rounded, not the length: two slices that touch do so in the trace, too."""
    for begin, end, doing in lane.slices(until):
        if doing.kind in _SILENT:
            continue
        start = _us(begin)
        event: Event = {
            "ph": "X",
            "pid": process,
            "tid": thread,
            "ts": start,
            "dur": _us(end) - start,
            "name": _name(doing),
            "cat": doing.kind,
        }
        args = {key: one_line(value, 300) for key, value in (("who", doing.who), ("why", doing.what)) if value}
        if args:
            event["args"] = args
        yield event


def _name(doing: Doing) -> str:
    if doing.kind in _WAIT_WORDS:
        return _WAIT_WORDS[doing.kind]
    if doing.who and doing.kind not in ("rollout", "train"):
        return f"{doing.who} {doing.what or doing.kind}"
    return f"{doing.who} {doing.kind}" if doing.who else doing.kind


def _counters(history: History) -> Iterator[Event]:
    for name, pipeline in history.pipelines.items():
        counts = pipeline.counts
        for place, at in enumerate(counts.times):
            base = {"ph": "C", "pid": PIPELINES, "ts": _us(at)}
            yield base | {"name": f"{name} samples", "args": {"waiting": counts.waiting[place], "in flight": counts.in_flight[place]}}
            yield base | {"name": f"{name} tokens", "args": {"tokens": counts.tokens[place]}}
        for figure, series in pipeline.figures.items():
            for at, value in zip(series.times, series.values, strict=True):
                yield {"ph": "C", "pid": PIPELINES, "ts": _us(at), "name": f"{name} {figure}", "args": {figure: value}}
        for at, version in pipeline.versions:
            yield {"ph": "C", "pid": PIPELINES, "ts": _us(at), "name": f"{name} weight version", "args": {"version": version}}

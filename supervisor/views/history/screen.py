"""`top`: one screen of text that says who has which GPU, what each pipeline does or waits for, and what happened last.

It is made of a history alone, and has at most as many lines and columns as it is told. What there is no room for gives way in this order: the
last events, the lanes' length, a line a GPU (two GPUs share one). Every GPU, every pipeline and every wait is always named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from supervisor.history import totals
from supervisor.history.fold import History
from supervisor.history.lanes import Doing, Lane
from supervisor.history.records import PipelineHistory, Wait
from supervisor.observe.sanitize import one_line

HUES: Final = ("bright_blue", "green", "magenta", "bright_red", "cyan", "yellow", "bright_magenta", "white")
"""Of the pipelines, in their order."""
_CELLS: Final = {
    "train": "█", "rollout": "▓", "weights": "▒", "ready": "░", "switch": "╱", "start": "·", "failed": "!", "withheld": "×", "free": " ", "off": " ",
}  # fmt: skip
_NOW: Final = {
    "train": "trains", "rollout": "generates", "weights": "new weights", "ready": "nothing to do", "free": "free", "withheld": "withheld", "off": "-",
}  # fmt: skip
_STATES: Final = {
    "train": "trains", "generate": "generates", "lease": "waits", "engine": "has no engine", "own": "its own work", "start": "starts",
    "failed": "restarts", "ended": "ended", "off": "off",
}  # fmt: skip
_BARS: Final = "▁▂▃▄▅▆▇█"
_LANE_S: Final = 60.0
"""Seconds that the lanes of GPUs show."""
_EVENTS: Final = 6
_WIDEST_LANE: Final = 60


@dataclass(frozen=True, slots=True)
class Screen:
    """How large a screen is, which pipeline is chosen, and what its keys do (nothing, without a person)."""

    width: int = 80
    height: int = 24
    chosen: str = ""
    keys: str = ""
    said: str = ""


def screen(history: History, run: str, size: Screen) -> list[Text]:
    """Return the lines of a screen, each at most as wide as it, and at most as many as it has."""
    hues = {name: HUES[place % len(HUES)] for place, name in enumerate(history.pipelines)}
    pipelines = [line for name in history.pipelines for line in _pipeline(history, name, hues, size)]
    foot = [Text(size.said or size.keys, style="dim")] if size.said or size.keys else []
    room = size.height - 2 - len(pipelines) - len(foot)  # the head, and a line between
    gpus = _gpus(history, hues, size.width, max(1, room))
    room -= len(gpus)
    events = list(_events(history, min(_EVENTS, room - 1))) if room > 1 else []
    between = [Text()] if events else []
    lines = [_head(history, run, size.width), *gpus, Text(), *pipelines, *between, *events, *foot]
    return [_cut(line, size.width) for line in lines[: size.height]]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line


def _head(history: History, run: str, width: int) -> Text:
    split = totals.together(totals.of_gpus(history).values())
    work, switch, idle = (f"{100 * split.share(*kinds):.0f} %" for kinds in (totals.WORK, totals.LOST_TO_SHARING, totals.IDLE))
    state = history.lives[-1].how if history.lives else "runs"
    word = {"runs": ("running", "bold green"), "ended": ("ended", "bold"), "killed": ("killed", "bold red")}[state]
    right = f"work {work}  switch {switch}  idle {idle}"
    left = Text.assemble((one_line(run, 60), "bold"), "  ", word, f" {_span(history.until)}")
    return Text.assemble(left, " " * max(2, width - left.cell_len - len(right)), (right, "dim"))


# -- GPUs


def _gpus(history: History, hues: dict[str, str], width: int, room: int) -> list[Text]:
    """Return a line for each GPU, or as many GPUs a line as it takes."""
    gpus = list(history.gpus)
    abreast = max(1, -(-len(gpus) // max(1, room - 2))) if len(gpus) > room - 2 else 1
    high = -(-len(gpus) // abreast)
    wide = (width - 2 * (abreast - 1)) // abreast
    lines = []
    for row in range(high):
        parts: list[Text] = []
        for column in range(abreast):
            place = column * high + row
            if place < len(gpus):
                part = _gpu(history, gpus[place], hues, wide)
                part.append(" " * max(0, wide - part.cell_len) if column + 1 < abreast else "")
                parts.append(part)
        lines.append(Text("  ").join(parts))
    return lines


def _gpu(history: History, gpu: int, hues: dict[str, str], width: int) -> Text:
    lane = history.gpus[gpu]
    doing = lane.doing
    owner = _owner(history, doing)
    label = f"GPU {gpu:<2} "
    now = f"{one_line(doing.who, 40)} {_NOW.get(doing.kind, one_line(doing.what, 30) or doing.kind)}".strip()
    since = "" if doing.kind == "off" else _span(max(0.0, history.until - lane.since))
    words = set_cell_size(now, min(max(10, width - len(label) - len(since) - 2), max(26, width // 2 - 8)))
    length = min(_WIDEST_LANE, width - len(label) - cell_len(words) - len(since) - 3)
    text = Text(label, style="bold")
    if length >= 4:
        text.append_text(_lane(history, lane, hues, length))
        text.append(" ")
    text.append(words, style=hues.get(owner, "dim"))
    text.append(f" {since}", style="dim")
    return text


def _lane(history: History, lane: Lane, hues: dict[str, str], length: int) -> Text:
    """Return what a GPU did in the last minute, a cell for each part of it: what it did most."""
    begin, part = history.until - _LANE_S, _LANE_S / length
    cells: list[dict[Doing, float]] = [{} for _ in range(length)]
    for place in range(len(lane.times) - 1, -1, -1):
        first = lane.times[place]
        last = lane.times[place + 1] if place + 1 < len(lane.times) else history.until
        if last <= begin:
            break
        for cell in range(max(0, int((first - begin) / part)), min(length, int((last - begin) / part) + 1)):
            start = begin + cell * part
            seconds = min(last, start + part) - max(first, start)
            if seconds > 0:
                cells[cell][lane.doings[place]] = cells[cell].get(lane.doings[place], 0.0) + seconds
    text = Text()
    for found in cells:
        doing = max(found, key=lambda doing: found[doing]) if found else Doing("off")
        text.append(
            _CELLS.get(doing.kind, " "), style=hues.get(_owner(history, doing), "red" if doing.kind in ("failed", "withheld") else "dim")
        )
    return text


def _owner(history: History, doing: Doing) -> str:
    """Return the pipeline whose group has a GPU."""
    return next((name for name in history.pipelines if doing.who.startswith(f"{name}/")), "")


# -- pipelines


def _pipeline(history: History, name: str, hues: dict[str, str], size: Screen) -> Iterator[Text]:
    """Yield two lines: how it stands, and its engines and what it waits for."""
    one = history.pipelines[name]
    doing, counts = one.lane.doing, one.counts
    waits = _wait(history, name)
    state = f"waits {_span(history.until - waits.begin)}" if waits is not None else _STATES.get(doing.kind, doing.kind)
    if doing.kind == "off" and len(one.lane.doings) > 1:
        state = _STATES.get(one.lane.doings[-2].kind, "") if one.lane.doings[-2].kind == "ended" else "off"
    at = max(one.step, one.steps_done)
    step = f"step {min(at, one.of.steps)}/{one.of.steps}" if one.of.steps else f"step {at}"
    samples = (
        f"{counts.done[-1]}/{counts.target[-1]}" if counts.times and counts.target[-1] else f"{counts.samples[-1] if counts.times else 0}"
    )
    chosen = name == size.chosen
    head = Text("▸" if chosen else " ", style="bold")
    head.append(f"{name:<8.32} ", style=f"bold {hues[name]}")
    head.append(f"{step:<12} {state:<14}", style="" if waits is None else "yellow")
    head.append(f" {samples:>9} samples  v{one.versions[-1][1] if one.versions else 0}")
    reward = one.figures.get("reward")
    if reward is not None:
        head.append(f"  reward {reward.values[-1]:.3g} ")
        head.append(_spark(reward.values[-_spark_room(size.width, head) :]), style=hues[name])
    yield head
    yield _engines(one, waits)


def _wait(history: History, name: str) -> Wait | None:
    return history.open_waits.get((name, "lease")) or history.open_waits.get((name, "rollout"))


def _engines(one: PipelineHistory, waits: Wait | None) -> Text:
    """Return how many of its engines are in which state, and what its trainer waits for."""
    states: dict[str, int] = {}
    for engine in one.engines.values():
        states[engine.state] = states.get(engine.state, 0) + 1
    text = Text(" " * 10 + "engines: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())), style="dim")
    if waits is not None:
        whom = ", ".join(map(str, waits.whom))
        why = f"GPUs to train on: {whom}" if waits.what == "lease" and whom else one_line(waits.why, 200)
        text = Text(f"          waits for {why}", style="yellow")
    elif one.lane.doing.kind == "engine":
        text.append("; samples wait for an engine", style="yellow")
    return text


def _spark_room(width: int, line: Text) -> int:
    return max(1, min(20, width - line.cell_len))


def _spark(values: Sequence[float]) -> str:
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[int((value - low) * scale)] for value in finite)


# -- the rest


def _events(history: History, most: int) -> Iterator[Text]:
    """Yield the last events that somebody should see, the newest last."""
    worth = [mark for mark in history.marks if mark.level != "info" or mark.kind in ("recovered", "life")]
    styles = {"error": "red", "warning": "yellow"}
    for mark in worth[-most:] if most > 0 else []:
        about = f"{one_line(mark.about, 60)} " if mark.about else ""
        style = styles.get(mark.level, "green" if mark.kind == "recovered" else "")
        yield Text.assemble(
            (f"{_span(max(0.0, history.until - mark.at)):>12} ago ", "dim"), (about, "bold"), (one_line(mark.text, 300), style)
        )


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"

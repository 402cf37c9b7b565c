"""A lane of a very long run, in fewer slices: within each bucket of time, equal things are put together. What each took in it stays exact."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from supervisor.history.lanes import Doing, Lane, Slice

WIDTHS: Final = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds of a bucket that are tried; 0: every slice as it was."""


def width_for(lanes: Iterable[Lane], most: int) -> float:
    """Return the least width of buckets with which the lanes have about `most` slices together, or fewer; the greatest when none is enough."""
    numbered = [_numbered(lane) for lane in lanes]
    place = bisect_left(WIDTHS, -most, hi=len(WIDTHS) - 1, key=lambda width: -sum(_count(lane, width) for lane in numbered))
    return WIDTHS[place]


_Numbered = list[tuple[float, int]]


def _numbered(lane: Lane) -> _Numbered:
    """Return when each slice begins, with a number for what is done."""
    numbers: dict[Doing, int] = {}
    return [(at, numbers.setdefault(doing, len(numbers))) for at, doing in zip(lane.times, lane.doings, strict=True)]


def _count(lane: _Numbered, width: float) -> int:
    return len({(int(at / width), number) for at, number in lane}) if width else len(lane)


def thinned(lane: Lane, until: float, width: float) -> Iterator[Slice]:
    """Yield the slices of a lane; with a width, those of each bucket in the order in which they first come in it, each thing once.

    What lasts longer than a bucket stays one slice, and begins and ends within a bucket of where it did.
    """
    if not width:
        yield from lane.slices(until)
        return
    last: Slice | None = None
    for piece in _pieces(lane, until, width):
        if last is not None and last.doing == piece.doing:
            last = Slice(last.begin, piece.end, piece.doing)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _pieces(lane: Lane, until: float, width: float) -> Iterator[Slice]:
    number, at, found = 0, 0.0, dict[Doing, float]()
    for begin, end, doing in lane.slices(until):
        first, final = int(begin / width), int(end / width)
        if first != number:
            yield from _laid_out(at, found)
            number, at, found = first, begin, {}
        if first == final:
            found[doing] = found.get(doing, 0.0) + end - begin
            continue
        edge, far = (first + 1) * width, final * width
        found[doing] = found.get(doing, 0.0) + edge - begin
        yield from _laid_out(at, found)
        if far > edge:
            yield Slice(edge, far, doing)
        number, at, found = final, far, {doing: end - far} if end > far else {}
    yield from _laid_out(at, found)


def _laid_out(at: float, found: dict[Doing, float]) -> Iterator[Slice]:
    for doing, seconds in found.items():
        yield Slice(at, at + seconds, doing)
        at += seconds

"""A lane says what one GPU or one pipeline did from moment to moment. It is a step function: no gaps, no overlaps, by construction.

Times are seconds since the history began.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple


class Doing(NamedTuple):
    """What a lane does: its `kind` (of `GPU_KINDS` or `PIPELINE_KINDS`), `who` has the GPU or is waited for, and `what` it is in words."""

    kind: str
    who: str = ""
    what: str = ""


GPU_KINDS: Final = {
    "train": "a trainer works on it",
    "rollout": "an engine generates on it",
    "ready": "an engine is awake on it and has nothing to do",
    "weights": "an engine loads new weights",
    "switch": "it passes from one holder to the next: drain, pause, wake, offload, measure",
    "start": "an engine or a trainer starts on it",
    "failed": "what failed on it is being ended",
    "withheld": "it is lent to nobody: fenced, or held by what cannot be ended",
    "free": "nobody has it",
    "off": "no supervisor runs",
}
"""What a GPU does, in the order in which splits are shown."""

PIPELINE_KINDS: Final = {
    "train": "it trains",
    "generate": "its engines generate",
    "lease": "it waits for GPUs to train on",
    "engine": "it waits for an engine",
    "own": "its trainer does what is its own: rewards, weights, checkpoints",
    "start": "its trainer starts",
    "failed": "its trainer has failed and is being restarted",
    "ended": "it has ended",
    "off": "no supervisor runs",
}
"""What a pipeline does. One that trains or generates while it waits for something else does not lose that time: the first that fits counts."""

OFF: Final = Doing("off")


class Slice(NamedTuple):
    begin: float
    end: float
    doing: Doing


class Lane:
    """What is done, from each of `times` on, is the one of `doings` at the same place. The lane is open: `until` ends the last slice."""

    __slots__ = ("doings", "times")

    def __init__(self, at: float, doing: Doing = OFF) -> None:
        self.times: list[float] = [at]
        self.doings: list[Doing] = [doing]

    @property
    def doing(self) -> Doing:
        """Return what it does now."""
        return self.doings[-1]

    @property
    def since(self) -> float:
        return self.times[-1]

    def set(self, at: float, doing: Doing) -> None:
        """It does this from now on. `at` never goes backwards; what lasted no time at all leaves no slice."""
        doings, times = self.doings, self.times
        if doings[-1] == doing:
            return
        if at > times[-1]:
            times.append(at)
            doings.append(doing)
        elif len(doings) > 1 and doings[-2] == doing:
            times.pop()
            doings.pop()
        else:
            doings[-1] = doing

    def slices(self, until: float) -> Iterator[Slice]:
        """Yield the slices up to `until`, oldest first."""
        times, doings = self.times, self.doings
        for place, doing in enumerate(doings):
            begin = times[place]
            end = times[place + 1] if place + 1 < len(times) else until
            if begin >= until:
                return
            yield Slice(begin, min(end, until), doing)

    def seconds(self, until: float) -> dict[Doing, float]:
        """Return how long it did each thing. The values sum up to the time from the lane's begin to `until`."""
        found: dict[Doing, float] = {}
        for begin, end, doing in self.slices(until):
            found[doing] = found.get(doing, 0.0) + end - begin
        return found

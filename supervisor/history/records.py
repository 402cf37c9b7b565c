"""Records of a history: waits, marks, lives, figures and counts over time, and what is known of one pipeline. Times are seconds since it began."""

from dataclasses import dataclass, field

from .facts import Demand, Party, PipelineOf, WaitKind
from .lanes import Lane


@dataclass(slots=True)
class Wait:
    """A trainer waited for a lease or an engine. `end` is None while it waits; `got`: it had what it waited for, and the summary counts it."""

    pipeline: str
    what: WaitKind
    begin: float
    why: str
    whom: tuple[Party, ...]
    end: float | None = None
    got: bool = False


@dataclass(slots=True)
class Mark:
    """A moment that an operator should see. `kind`: failed, recovered, note, asked, stop, life, checkpoint; `level`: info, warning or error."""

    at: float
    kind: str
    level: str
    about: str
    text: str


@dataclass(slots=True)
class Life:
    """One supervisor's life. `how`: "runs" or "killed" (nobody said that it ended), "ended"; `why` it ended, in words."""

    begin: float
    end: float
    how: str = "runs"
    why: str = ""


@dataclass(slots=True)
class Figure:
    """A figure that a trainer reports, step by step."""

    times: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """Counts of a pipeline over time, at the same places of the lists. `done` and `target` are of the open rollouts; `samples` and `tokens` of all lives."""

    times: list[float] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


@dataclass(slots=True)
class EngineNow:
    """An engine as it stands."""

    state: str = "cold"
    since: float = 0.0
    incarnation: int = 1
    version: int | None = None
    busy: bool = False


@dataclass(slots=True)
class PipelineHistory:
    """What is known of one pipeline: how it is configured, its lane, its figures, and how it stands."""

    of: PipelineOf
    lane: Lane
    engines: dict[int, EngineNow] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    versions: list[tuple[float, int]] = field(default_factory=list)
    trainer: str = "cold"
    trainer_since: float = 0.0
    gateway: str = "cold"
    demand: Demand | None = None
    step: int = 0
    steps_done: int = 0
    work: float = 0.0  # sample seconds, of all lives
    before: tuple[int, float, int] = (0, 0.0, 0)  # tokens, work and samples of the lives before this one
    failures: int = 0

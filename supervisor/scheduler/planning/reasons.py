"""Reasons say why a pipeline has the engines that it has, and why it was not given more. The planner and its view name them as they decide.

A reason is an enum and the parties that it is about; sentences are made elsewhere (`supervisor.observe`).
"""

from dataclasses import dataclass, field
from enum import Enum

from trainers.protocol.ids import EngineId, GpuId, GroupId, PipelineId

Party = GroupId | PipelineId


class Given(Enum):
    """The rule by which the plan gives an engine its GPUs."""

    FIRST_ENGINE = "first engine"  # every pipeline has one before any has two
    KEPT = "kept"  # it is awake, and no earlier bid needs its GPUs
    FREE = "free"  # nobody uses its GPUs
    TAKEN = "taken"  # a later bid gives its GPUs up
    LEFTOVER = "leftover"  # its GPUs were free when all bids had been served


class Denied(Enum):
    """The rule that keeps an engine out of the plan."""

    # The pipeline asks for nothing.
    NOTHING_UNFINISHED = "nothing unfinished"
    PIPELINE_ENDED = "pipeline ended"
    PIPELINE_PAUSED = "pipeline paused"  # by an operator
    NOT_RESTORED = "not restored"  # its trainer has not published what it restored
    # The engine cannot be started or woken.
    HELD = "held"  # an operator has paused or drained it
    RETIRED = "retired"
    ENDING = "ending"  # it is being killed, stopped or confirmed to have exited
    BACK_OFF = "back-off"  # it failed, and its next start is not due yet
    # One of its GPUs is lent to no engine. `by` says to whom it belongs.
    TRAINING = "training"
    RESERVED = "reserved"  # for a trainer whose request is next
    FENCED = "fenced"
    WITHHELD = "withheld"  # by engines that are not confirmed to have exited
    LEAVING = "leaving"  # an engine that is ending still has it
    # The plan prefers others. `by` are the pipelines that have its GPUs.
    CAP = "cap"  # the unfinished samples fill no further engine
    OTHERS_FIRST_ENGINE = "first engine of another"
    EARLIER_BID = "earlier bid"
    MINIMUM_HOLD = "minimum hold"  # the engine that has its GPUs was woken too recently
    MOVE_COST = "move cost"  # less work awaits it than its GPUs lose by the move
    LITTLE_WORK = "little work"  # too few samples for it to take GPUs from others
    LONGEST_SAMPLE = "longest sample"  # the rollout ends no sooner by it
    FAIR_SHARE = "fair share"  # the pipeline has its share and takes no more from others
    SOON_TRAINING = "soon training"  # a trainer that just left its GPUs will want them for engines in a moment
    CHANGING = "changing"  # what kept it away has just changed; the next event decides


class Wait(Enum):
    """What an engine of the plan that is not awake yet waits for."""

    GPUS = "gpus"  # `by` has them, and leaves or is measured
    PAUSING = "pausing"  # it must have given its own memory back first
    STARTING_LIMIT = "starting limit"  # as many engines start as may start at once
    MODEL = "model"  # its model is being made
    BACK_OFF = "back-off"
    CHANGING = "changing"  # nothing any more; the next event starts or wakes it


@dataclass(slots=True)
class Trace:
    """What the planner fills in when it is asked for reasons: for each engine of the view one rule, and whom that is about."""

    given: dict[EngineId, Given] = field(default_factory=dict)
    denied: dict[EngineId, tuple[Denied, tuple[PipelineId, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineReason:
    """Why one engine is, or is not, in the plan: either `given` or `denied` is set.

    `awake`: it holds its GPUs for work or is on the way there; also without a place in the plan, as long as nobody needs the GPUs.
    `waits`: the plan gives it its GPUs, and it is not awake yet. `by` are the parties that `denied` or `waits` is about.
    """

    engine: EngineId
    gpus: tuple[GpuId, ...]
    awake: bool
    given: Given | None = None
    denied: Denied | None = None
    waits: Wait | None = None
    by: tuple[Party, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a pipeline has what it has. `cap` is the number of engines that its `unfinished` samples can fill."""

    pipeline: PipelineId
    unfinished: int
    cap: int
    engines: tuple[EngineReason, ...]

    @property
    def held(self) -> int:
        """Engines awake."""
        return sum(engine.awake for engine in self.engines)

    @property
    def given(self) -> int:
        """Engines that the plan gives the pipeline."""
        return sum(engine.given is not None for engine in self.engines)

    @property
    def gap(self) -> int:
        """Engines that the pipeline could fill and was not given."""
        return max(0, self.cap - self.given)

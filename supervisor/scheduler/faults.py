"""A fault is the record of a failure of an engine group: what caused it, which members went with it, and when each step of its recovery was done."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from trainers.protocol.ids import EngineId, Incarnation

KEPT = 10_000
"""Ended faults that are remembered for figures."""
BY_OPERATOR = "restarted by the operator"
"""The reason of an end that was asked for."""

Outcome = Literal["failed again", "routed", "asleep", "stopped", "stuck", "retired"]
"""How a fault ended: well again (routed, asleep), a further attempt, or for good."""


class Cause(Enum):
    EXIT = "exit"  # of a member, or of a process of its tree
    PROBE = "probe"
    ACTION = "action"  # failed, or did not end in time
    MEMORY = "memory"  # said to be given back, and measured held
    PEER = "peer"
    INTRUDER = "intruder"  # holds memory on a GPU that it has no lease of
    OPERATOR = "operator"  # asked for: no failure, and not counted as one


@dataclass(slots=True)
class Fault:
    """`steps` are the times (on the clock of the events) of: failed, unrouted, gone, empty, started, ready, loaded, then routed or asleep.

    `member` is the one that caused it, `collateral` the members that were healthy and are restarted with it. `attempt` counts the
    failures since the group was last well, this one included; `began` is when the first of these happened.
    """

    engine: EngineId
    incarnation: Incarnation
    cause: Cause
    reason: str
    began: float
    attempt: int = 1
    member: int | None = None
    collateral: tuple[int, ...] = ()
    silent: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)
    outcome: str = ""

    def mark(self, step: str, now: float) -> None:
        self.steps.setdefault(step, now)

    @property
    def seconds(self) -> dict[str, float]:
        """Return each step in seconds since the failure of this attempt."""
        failed = self.steps.get("failed", self.began)
        return {step: round(at - failed, 4) for step, at in self.steps.items() if step != "failed"}

"""A failure of an engine group is opened, its steps are marked, and it is closed when the group is well again, or never will be.

Each of the two is told in `desk.turns`, for the log and for the metrics.
"""

from supervisor.scheduler.context import Desk
from supervisor.scheduler.records import Engine

from .faults import Cause, Fault


def begin(desk: Desk, engine: Engine, cause: Cause, reason: str, member: int | None, silent: float) -> None:
    """One that happens before the last one is over is a further attempt of the same."""
    before = engine.fault
    members = desk.fleet.pipelines[engine.id.pipeline].spec.engine.members  # as it is declared: in a start-up no pid is known yet
    collateral = tuple(index for index in range(members) if index != member)
    fault = Fault(engine.id, engine.incarnation, cause, reason, desk.now, 1, member, collateral, silent)
    if before is not None:
        fault.began, fault.attempt = before.began, before.attempt + 1
        close(desk, engine, "failed again")
    fault.mark("failed", desk.now)
    engine.fault = fault
    desk.turns.append(("failed", fault))


def mark(desk: Desk, engine: Engine, step: str) -> None:
    if engine.fault is not None:
        engine.fault.mark(step, desk.now)


def close(desk: Desk, engine: Engine, outcome: str) -> None:
    if engine.fault is not None:
        engine.fault.outcome = outcome
        desk.faults.append(engine.fault)
        desk.turns.append((outcome, engine.fault))
        engine.fault = None

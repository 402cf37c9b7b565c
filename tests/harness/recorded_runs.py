"""Runs of the simulation (faults and all), recorded as a real run is: what the tests of histories and of their views read."""

from collections.abc import Callable
from pathlib import Path

from supervisor.attempt.recording import FOLDER, RecordedScheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import Event
from supervisor.scheduler.spec import BoxSpec
from supervisor.simulate.faults.simulation import Simulation
from supervisor.simulate.faults.world import Faults
from tests.harness.boxes import BOXES, FAULTS

EPOCH = 1_700_000_000.0
"""When a simulated run begins, in seconds since the epoch."""

Look = Callable[[Simulation, RecordedScheduler], None]


def record(
    attempt: Path,
    *,
    box: Callable[[], BoxSpec] = BOXES["three"],
    seed: int = 5,
    steps: int = 3,
    segment: int = 1 << 20,
    kept: int = 1 << 30,
    faults: Faults | None = FAULTS,
    look: Look | None = None,
    close: bool = True,
) -> Simulation:
    """Run a simulation to its end and record it under `attempt`. `look` is called after every event; without `close` it ends as if killed."""
    attempt.mkdir(parents=True, exist_ok=True)
    world = Simulation(box(), seed, steps=steps, faults=faults)
    recorded = RecordedScheduler(world.scheduler, 0.0, attempt / FOLDER, segment=segment, kept=kept, wall=lambda: EPOCH + world.now)

    def handle(event: Event, now: float) -> list[Action]:
        actions = recorded.handle(event, now)
        if look is not None:
            look(world, recorded)
        return actions

    world.handle = handle
    world.run()
    if close:
        recorded.close()
        assert recorded.lost == 0
    return world

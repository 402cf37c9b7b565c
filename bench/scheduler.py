"""How long one decision takes, from 2 pipelines x 4 GPUs to 64 x 256: `PYTHONPATH=. .venv/bin/python bench/scheduler.py`.

Idle-fill: every pipeline opens a rollout on an idle box. All-donate: the first holds every GPU when all the others open theirs.
`plan` is the pure planner on that view; `handle` a whole call of the scheduler with invariants, for a report of progress.
"""

import statistics
import sys
import time
from collections.abc import Callable

from engines.lifecycle.state import EngineState
from supervisor.scheduler import Scheduler
from supervisor.scheduler import events as ev
from supervisor.scheduler.planning.planner import plan
from supervisor.scheduler.spec import BoxSpec, EngineSpec, PipelineSpec, TrainerSpec
from tests.harness.checked_scheduler import well
from tests.harness.defaults import default_limits, default_rules
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import Progress, RolloutProgress
from trainers.protocol.ids import GpuId, Incarnation, PipelineId

SIZES = ((2, 4), (2, 8), (4, 8), (8, 8), (4, 16), (16, 16), (8, 64), (16, 128), (32, 256), (64, 256))
SAMPLES = 1_000_000
FIRST = Incarnation(1)


def warm(pipelines: int, gpus: int) -> Scheduler:
    """Every trainer and gateway runs, every engine sleeps."""
    every = tuple(GpuId(gpu) for gpu in range(gpus))
    specs = []
    for number in range(pipelines):
        train = tuple(every[(number * 2 + place) % gpus] for place in range(min(2, gpus)))
        specs.append(
            PipelineSpec(PipelineId(f"p{number}"), EngineSpec(every, 1, 8), TrainerSpec({"init": train, "train": train}, 1, 7200.0))
        )
    scheduler = Scheduler(BoxSpec(every, tuple(specs), default_limits(), default_rules(minimum_hold=0.0)), 0.0)
    feed(scheduler, ev.Tick(), 0.0)
    for engine in scheduler.engines:
        engine.state = EngineState.PAUSED
    return scheduler


def feed(scheduler: Scheduler, event: ev.Event, now: float) -> None:
    """Hand it in and answer at once whatever comes of it."""
    events = [event]
    while events:
        events += [well(action) for action in scheduler.handle(events.pop(0), now)]


def opened(scheduler: Scheduler, number: int, now: float) -> None:
    scheduler.handle(_open(number), now)


def _open(number: int) -> ev.Event:
    message = say.OpenRollout(rollout=0, target=SAMPLES)
    return ev.TrainerSaid(pipeline=PipelineId(f"p{number}"), incarnation=FIRST, rank=0, message=message)


def progress(number: int, done: int) -> ev.Event:
    report = RolloutProgress(0, SAMPLES - done - 8, 8, done)
    return ev.GatewaySaid(pipeline=PipelineId(f"p{number}"), incarnation=FIRST, progress=Progress((report,)))


def timed(what: Callable[[int], object], least: int, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or (time.perf_counter() < end and len(taken) < 2000):
        before = time.thread_time()  # of this process alone: the machine may be busy
        what(len(taken))
        taken.append((time.thread_time() - before) * 1e3)
    taken.sort()
    return statistics.median(taken), taken[int(len(taken) * 0.99)]


def measure(pipelines: int, gpus: int, donate: bool) -> tuple[float, ...]:
    scheduler = warm(pipelines, gpus)
    if donate:
        feed(scheduler, _open(0), 1.0)
    for number in range(1 if donate else 0, pipelines):
        opened(scheduler, number, 2.0)  # their engines are on the way and stay there: nothing more is answered
    scheduler.handle(ev.Tick(), 3.0)
    current = scheduler.view
    planned = timed(lambda _: plan(current), 3, 0.3)
    handled = timed(lambda turn: scheduler.handle(progress(0, turn), 3.0), 3, 0.3)
    return (*planned, *handled)


def main() -> int:
    sys.stdout.write("pipelines x GPUs | idle-fill: plan ms (p99)   handle ms (p99) | all-donate: plan ms (p99)   handle ms (p99)\n")
    for pipelines, gpus in SIZES:
        cells = [f"{pipelines:>7} x {gpus:<6}"]
        for donate in (False, True):
            plan_ms, plan_99, handle_ms, handle_99 = measure(pipelines, gpus, donate)
            cells.append(f"{plan_ms:10.3f} ({plan_99:8.3f}) {handle_ms:10.3f} ({handle_99:8.3f})   ")
        sys.stdout.write(" | ".join(cells) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a run costs and how fast it answers: start-up, memory and idle load of the supervisor, wall time, and from open rollout to routable.

    .venv/bin/python -P bench/run.py [RUNS]        (PYTHONPATH=checkout; `bin/bench run` does both)

Wall times are medians of RUNS (default 3) quickstarts. "ours" is the share of the time from `OpenRollout` to
`RolloutOpened` in which no engine that had to be waited for was at work.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from supervisor.attempt.recording import FOLDER, Decided, Heard, read, segments
from tests.harness.supervised_run import Run, configuration

CHECKOUT = Path(__file__).resolve().parents[1]

IDLE = "import time\nfrom trainshed import connect\nconnect()\ntime.sleep(30)\n"


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        quick = [quickstart(Path(folder) / str(index)) for index in range(runs)]
        latencies = [latency for run in quick for latency in latencies_of(run)]
        rows = [
            ("quickstart, wall", median(run_seconds(run) for run in quick), "s"),
            ("warm start to first trainer spawned", median(since_start(run, "trainer is running") for run in quick), "s"),
            ("warm start to first engine spawned", median(since_start(run, "engine is starting") for run in quick), "s"),
            *(
                (f"{what}, p{percent}", percentile([getattr(latency, name) for latency in latencies], percent) * 1e3, "ms")
                for what, name in (
                    ("open rollout to routable", "total"),
                    ("  of it measuring memory", "measuring"),
                    ("  of it ours, measuring included", "ours"),
                )
                for percent in (50, 99)
            ),
            *idle(Path(folder) / "idle"),
        ]
    for what, value, unit in rows:
        print(f"{what:42} {value:10.2f} {unit}")
    print(f"({len(latencies)} rollouts of {runs} quickstarts)")


def quickstart(cwd: Path) -> Run:
    cwd.mkdir()
    run = Run(cwd, CHECKOUT / "examples" / "quickstart.toml")
    assert run.end() == 0, run.tail()
    return run


def run_seconds(run: Run) -> float:
    return float(json.loads((run.directory / "summary.json").read_text())["wall_s"])


def since_start(run: Run, event: str) -> float:
    def when(record: dict[str, object]) -> float:
        return datetime.fromisoformat(str(record["timestamp"])).timestamp()

    log = run.log()
    began = (run.directory / "run_id").stat().st_mtime  # the attempt's directory is the first thing made
    return when(next(record for record in log if str(record["event"]) == event)) - began


@dataclass(frozen=True)
class Latency:
    """Seconds from open to routable; of them those spent measuring memory; and all that are ours (measuring included).

    What is not ours is what the engine that became routable first had to wait for: its own steps, and those of whoever had its GPU
    before it. (In the quickstart engine r lives on GPU r.)
    """

    total: float
    measuring: float
    ours: float


def decisions(run: Run) -> Iterator[tuple[float, dict[str, Any], list[dict[str, Any]]]]:
    """When, what was heard, and the actions it led to."""
    for segment in segments(run.directory / FOLDER):
        heard: tuple[float, dict[str, Any]] = (0.0, {"event": ""})
        for _, line in read(segment):
            match line:
                case Heard(at=at, event=event):
                    heard = at, msgspec.to_builtins(event)
                    yield *heard, []
                case Decided(actions=actions):
                    yield *heard, json.loads(bytes(actions))


def latencies_of(run: Run) -> list[Latency]:
    """Of every rollout, from the run's recording."""
    opened: dict[tuple[str, int], float] = {}
    steps: list[Step] = []
    begun: dict[int, Step] = {}
    found: list[Latency] = []
    for at, event, actions in decisions(run):
        if event.get("id") in begun:
            step = begun.pop(event["id"])
            steps.append(Step(step.what, step.pipeline, step.gpus, step.begin, at))
        if event["event"] == "TrainerSaid" and event["message"]["type"] == "open_rollout":
            opened[event["pipeline"], event["message"]["rollout"]] = at
        for action in actions:
            begun[action["id"]] = step_of(action, at)
            if action["do"] == "TellTrainer" and action["message"]["type"] == "rollout_opened":
                start = opened.pop((action["pipeline"], action["message"]["rollout"]))
                waited, measured = needed(steps, action["pipeline"], start)
                with_engines = covered(waited, start, at)
                found.append(Latency(at - start, covered([*waited, *measured], start, at) - with_engines, at - start - with_engines))
    return found


@dataclass(frozen=True)
class Step:
    """One action, from its decision to its answer."""

    what: str
    pipeline: str
    gpus: frozenset[int]
    begin: float
    end: float = float("inf")


def step_of(action: dict[str, Any], at: float) -> Step:
    engine = action.get("engine") or action.get("group") or action.get("holder") or {}
    gpus = action.get("gpus") or ([engine["rank"]] if "rank" in engine else [])
    return Step(action["do"], engine.get("pipeline") or action.get("pipeline") or "", frozenset(gpus), at)


def needed(steps: list[Step], pipeline: str, start: float) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """What the first routable engine of the pipeline had to wait for after `start`: steps of engines and gateway, and measurements of memory."""
    after = [step for step in steps if step.end >= start]
    routes = [step for step in after if step.what == "Route" and step.pipeline == pipeline]
    gpus = min(routes, key=lambda step: step.end).gpus if routes else frozenset[int]()
    mine = [step for step in after if step.gpus & gpus or (step.what == "OpenAtGateway" and step.pipeline == pipeline)]
    measured = [(step.begin, step.end) for step in mine if step.what == "Measure"]
    return [(step.begin, step.end) for step in mine if step.what != "Measure"], measured


def covered(spans: list[tuple[float, float]], start: float, end: float) -> float:
    """Seconds of [start, end] that some span covers."""
    total, reached = 0.0, start
    for begin, finish in sorted(spans):
        first, last = max(begin, reached), min(finish, end)
        if last > first:
            total += last - first
            reached = last
    return total


def idle(cwd: Path) -> list[tuple[str, float, str]]:
    cwd.mkdir()
    (cwd / "idle.py").write_text(IDLE)
    file = (
        configuration(cwd / "idle.toml", entry="placeholder:main")
        .read_text()
        .replace('entry = "placeholder:main"', f'command = ["{sys.executable}", "idle.py"]')
    )
    (cwd / "idle.toml").write_text(file.split('[[pipeline]]\nname = "p2"')[0])
    run = Run(cwd, cwd / "idle.toml")
    run.when("p1", lambda view: view.trainer.state == "running", "the idle trainer")
    time.sleep(5.0)  # what start-up still does is over
    pid = run.supervisor_pid()
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(10.0)
    load = (cpu_seconds(pid) - before) / (time.monotonic() - began)
    rss = next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    run.stop()
    return [("supervisor, resident memory", rss / 1024, "MiB"), ("supervisor, idle CPU", load * 100, "% of a core")]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def median(values: object) -> float:
    return statistics.median(list(values))  # type: ignore[call-overload, no-any-return]


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)

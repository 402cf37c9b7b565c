"""This module runs one scenario under one policy and works out what to say about it."""

from dataclasses import dataclass, replace

from supervisor.config import limits
from supervisor.config.schema.tables import SchedulerTable
from supervisor.scheduler.spec import Rules

from .alone import alone, halves, in_turn
from .box import Box, Outcome
from .incumbent import Incumbent
from .production import Production
from .scenario import Scenario

OURS = ("oldest-first", "proportional")
POLICIES = (*OURS, "incumbent", "static", "serial", "solo")


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one simulation. `slowdowns`: each pipeline's time in the box over its time alone; `jain`: of pipelines alike, the worst."""

    name: str
    policy: str
    outcome: Outcome
    lower_bound: float
    gpus: int
    slowdowns: tuple[float, ...]
    jain: float

    @property
    def ratio(self) -> float:
        return self.outcome.makespan / self.lower_bound

    @property
    def busy_share(self) -> float:
        return self.outcome.busy / (self.gpus * self.outcome.makespan)


def run(scenario: Scenario, policy: str, hints: bool, rules: Rules | None = None) -> Outcome:
    """Run a scenario in virtual time. `rules` are further settings of the production scheduler."""
    match policy:
        case "incumbent":
            box = Box(scenario, hints)
            return box.run(Incumbent(box))
        case "serial":
            return in_turn(scenario, scenario.pipelines, hints, wait=False)
        case "static":
            return halves(scenario, hints)
        case "solo":
            each = [alone(scenario, load, hints) for load in scenario.pipelines]
            ends = tuple(outcome.makespan for outcome in each)
            return Outcome(max(ends), sum(o.resizes for o in each), sum(o.busy for o in each), ends)
        case _:
            given = rules or limits.rules(SchedulerTable())
            box = Box(scenario, hints)
            return box.run(Production(box, replace(given, targets=policy)))


def figures(scenario: Scenario, policy: str, hints: bool, rules: Rules | None = None) -> Figures:
    """Run a scenario under a policy, and compare each pipeline with its time alone."""
    outcome = run(scenario, policy, hints, rules)
    arrivals = [0.0 if policy in ("solo", "serial") else load.arrival_s for load in scenario.pipelines]
    solo = [alone(scenario, load, False).makespan for load in scenario.pipelines]
    slowdowns = tuple((end - arrival) / own for end, arrival, own in zip(outcome.ends, arrivals, solo, strict=True))
    kinds: dict[tuple[object, ...], list[float]] = {}
    for load, slowdown in zip(scenario.pipelines, slowdowns, strict=True):
        kinds.setdefault(load.kind, []).append(slowdown)
    worst = min(jain(alike) for alike in kinds.values())
    return Figures(scenario.name, policy, outcome, scenario.lower_bound, scenario.gpus, slowdowns, worst)


def jain(values: list[float]) -> float:
    """Return Jain's index: 1 when all are equal, 1/n when one has everything. `values` are not empty."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))

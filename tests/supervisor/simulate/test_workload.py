"""The production scheduler in virtual time: it reproduces plain arithmetic, and beats what it must beat."""

import json
from pathlib import Path

import msgspec
import pytest

from supervisor.errors import UsageError
from supervisor.simulate.workloads.box import Box, Outcome
from supervisor.simulate.workloads.compare import POLICIES, figures, jain, run
from supervisor.simulate.workloads.production import Production
from supervisor.simulate.workloads.scenario import Scenario, read
from tests.harness.defaults import default_rules

FILE = Path(__file__).parents[2] / "data" / "scenarios.json"
SCENARIOS = {scenario.name: scenario for scenario in read(FILE.read_bytes())}
REFERENCE = {entry["name"]: entry["reference"] for entry in json.loads(FILE.read_text())}
LARGE = ("six-slow-wake", "eight", "sixteen-gpus-six")
QUICK = [name for name in SCENARIOS if name not in LARGE]


@pytest.mark.parametrize("name", SCENARIOS)
def test_plain_arithmetic(name: str) -> None:
    scenario, reference = SCENARIOS[name], REFERENCE[name]
    assert scenario.lower_bound == pytest.approx(reference["lower_bound_s"], rel=1e-4)
    assert run(scenario, "serial", False).makespan == pytest.approx(reference["serial_s"], rel=1e-3)
    assert run(scenario, "solo", False).ends == pytest.approx(reference["solo_s"], rel=1e-3)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_incumbent_is_the_incumbent(name: str) -> None:
    """Our re-implementation of its rules ends when its own scheduler did, within 2 %."""
    assert run(SCENARIOS[name], "incumbent", False).makespan == pytest.approx(
        REFERENCE[name]["gap_ratio_incumbent"]["makespan_s"], rel=0.02
    )


def _judge(names: list[str], hints: bool) -> tuple[float, float, float]:
    """Mean and worst ratio to the bound, mean resizes; what must hold for each scenario is asserted."""
    found = {name: figures(SCENARIOS[name], "oldest-first", hints) for name in names}
    for name, each in found.items():
        assert each.outcome.makespan <= 1.03 * REFERENCE[name]["gap_ratio_incumbent"]["makespan_s"], name
        assert each.jain >= 0.99, f"{name}: {each.slowdowns}"
        assert each.ratio >= 1.0, f"{name} beats the bound: something peeks or books twice"
    ratios = [each.ratio for each in found.values()]
    return sum(ratios) / len(ratios), max(ratios), sum(each.outcome.resizes for each in found.values()) / len(ratios)


@pytest.mark.slow
@pytest.mark.parametrize(("hints", "mean", "worst", "resizes"), [(False, 1.25, 1.42, 165), (True, 1.09, 1.18, 165)])
def test_targets_on_the_quick_ones(hints: bool, mean: float, worst: float, resizes: float) -> None:
    got = _judge(QUICK, hints)
    assert got[0] <= mean
    assert got[1] <= worst
    assert got[2] <= resizes


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("hints", "mean", "worst", "resizes"), [(False, 1.24, 1.42, 200), (True, 1.09, 1.18, 200)])
def test_targets_on_all(hints: bool, mean: float, worst: float, resizes: float) -> None:
    got = _judge(list(SCENARIOS), hints)
    assert got[0] <= mean
    assert got[1] <= worst
    assert got[2] <= resizes


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_ends_every_pipeline(policy: str) -> None:
    got = figures(SCENARIOS["mixed-tp"], policy, hints=True)
    assert len(got.outcome.ends) == 3
    assert all(end > 0 for end in got.outcome.ends)
    assert 0 < got.busy_share <= 1 or policy == "solo"


def test_it_is_deterministic() -> None:
    scenario = SCENARIOS["seed-4gpu-2ppl"]

    def once() -> Outcome:
        box = Box(scenario, hints=True)
        return box.run(Production(box, default_rules()))

    assert once() == once()


def test_a_policy_cannot_book_a_gpu_twice() -> None:
    box = Box(SCENARIOS["two-halves"])
    box.wake(box.jobs[0].units[0])
    with pytest.raises(AssertionError, match="booked twice"):
        box.wake(box.jobs[1].units[0])


def test_jain() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tp": 3}, "tp must divide"),
        ({"train_gpus": [99]}, "GPUs are 0 to 7"),
        ({"trajectories": [[]]}, "trajectories"),
        ({"hints": [[1.0]]}, "shape"),
        ({"slots_per_rank": 0}, "slots_per_rank"),
    ],
)
def test_a_wrong_scenario_is_named(change: dict[str, object], words: str) -> None:
    raw = msgspec.to_builtins(SCENARIOS["solo"])
    raw["pipelines"][0].update(change)
    with pytest.raises(UsageError, match=words):
        read(json.dumps([raw]).encode())


def test_one_scenario_needs_no_list() -> None:
    assert read(msgspec.json.encode(SCENARIOS["solo"])) == [SCENARIOS["solo"]]
    assert isinstance(SCENARIOS["solo"], Scenario)

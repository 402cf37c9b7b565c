"""The 600 planner cases: no double booking, nothing usable idle, nobody starved who could be served, nothing wasted, few moves."""

from pathlib import Path

import msgspec
import pytest

from supervisor.errors import UsageError
from supervisor.simulate.planner_cases import Case, CasePipeline, answer, answers

CASES = Path(__file__).parents[2] / "data" / "plans.jsonl"
INCUMBENT_LOST = 520


class Known(Case, frozen=True):
    max_served: int = 0


def after(case: Case) -> tuple[dict[str, set[int]], int]:
    """Who is awake then, and how many engines with work left were paused for it."""
    found = answer(case)
    active = {pipeline.id: set(pipeline.active) for pipeline in case.pipelines}
    wants = {pipeline.id for pipeline in case.pipelines if pipeline.wants}
    for name, ranks in found.shrink.items():
        assert active[name].issuperset(ranks)
        active[name] -= set(ranks)
    for name, ranks in found.expand.items():
        assert active[name].isdisjoint(ranks)
        active[name] |= set(ranks)
    held = [gpu for p in case.pipelines for rank in active[p.id] for gpu in p.bundle(rank)] + list(case.reserved)
    assert len(held) == len(set(held)), "a GPU is booked twice"
    assert found.idle == sorted(set(range(case.gpus)) - set(held))
    return active, sum(len(ranks) for name, ranks in found.shrink.items() if name in wants)


def test_all_of_them() -> None:
    lost = 0
    lines = CASES.read_bytes().splitlines()
    assert len(lines) == 600
    for line in lines:
        case = msgspec.json.decode(line, type=Known)
        active, moved = after(case)
        lost += moved
        held = {gpu for p in case.pipelines for rank in active[p.id] for gpu in p.bundle(rank)} | set(case.reserved)
        wanting = [p for p in case.pipelines if p.wants]
        assert not any(held.isdisjoint(p.bundle(rank)) for p in wanting for rank in p.ranks), f"usable and idle: {line!r}"
        assert sum(bool(active[p.id]) for p in wanting) == case.max_served, f"starved: {line!r}"
        assert not wanting or not any(active[p.id] for p in case.pipelines if not p.wants), f"wasted: {line!r}"
    assert lost <= 410 < INCUMBENT_LOST


def test_engines_that_nobody_wants_stay_awake() -> None:
    assert answer(Case(2, (CasePipeline("a", 1, (0, 1), 0, active=(0,), open=False),))).shrink == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 2"),
        (b'{"gpus": 2, "pipelines": [{"id": "a", "tp": 2, "mapping": [0], "remaining": 1}]}', "multiple of tp"),
        (b'{"gpus": 2, "pipelines": [{"id": "a", "tp": 1, "mapping": [5], "remaining": 1}]}', "GPUs are 0 to 1"),
        (
            b'{"gpus": 2, "reserved": [0], "pipelines": [{"id": "a", "tp": 1, "mapping": [0], "remaining": 1, "active": [0]}]}',
            "somebody else",
        ),
    ],
)
def test_a_wrong_case_is_named(line: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        list(answers([b'{"gpus": 1, "pipelines": []}', line]))

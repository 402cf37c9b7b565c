"""Every reason of the planner has a sentence, and names whom it is about."""

import pytest

from supervisor.observe.explanation import DENIED, GIVEN, WAIT, explained
from supervisor.scheduler.planning.reasons import Denied, EngineReason, Explanation, Given, Wait
from supervisor.views.status import why_lines
from trainers.protocol.ids import EngineId, GpuId, PipelineId, TrainerId

P1, P2 = PipelineId("p1"), PipelineId("p2")


def of(*reasons: EngineReason, unfinished: int = 20) -> Explanation:
    return Explanation(P1, unfinished, 2, reasons)


def reason(
    rank: int = 0, *, awake: bool = False, given: Given | None = None, denied: Denied | None = None, waits: Wait | None = None
) -> EngineReason:
    return EngineReason(EngineId(P1, rank), (GpuId(rank),), awake, given=given, denied=denied, waits=waits, by=(TrainerId(P2),))


def test_every_rule_has_a_sentence() -> None:
    assert (set(GIVEN), set(DENIED), set(WAIT)) == (set(Given), set(Denied), set(Wait))


@pytest.mark.parametrize("rule", list(Denied))
def test_a_denied_engine(rule: Denied) -> None:
    (engine,) = explained(of(reason(denied=rule))).engines
    assert (engine.planned, engine.awake, engine.rule, engine.by) == (False, False, rule.value, ("p2/trainer",))
    assert ("p2/trainer" in engine.text) == ("{by}" in DENIED[rule])
    assert "{" not in engine.text


def test_an_engine_that_waits_says_for_whom() -> None:
    (engine,) = explained(of(reason(given=Given.TAKEN, waits=Wait.GPUS))).engines
    assert (engine.planned, engine.rule) == (True, "gpus")
    assert engine.text == "waits until p2/trainer has left its GPUs and they measure empty"


def test_an_engine_that_nobody_disturbs_is_awake_without_a_place_in_the_plan() -> None:
    (engine,) = explained(of(reason(awake=True, denied=Denied.NOTHING_UNFINISHED), unfinished=0)).engines
    assert engine.text == "nobody needs its GPUs, so it stays awake (the pipeline has no unfinished samples)"


def test_the_page_has_a_row_for_each_engine() -> None:
    found = explained(of(reason(awake=True, given=Given.KEPT), reason(1, denied=Denied.TRAINING)))
    head, _, *table = [line.plain for line in why_lines(found, None)]
    assert head == "p1 has 20 unfinished samples, which can fill 2 of its 2 engines. The plan gives it 1; awake are 1."
    assert table[-1].split() == ["p1/engine/1", "1", "no", "no", "p2/trainer", "has", "its", "GPUs"]

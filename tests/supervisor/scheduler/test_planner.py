"""The planner on small random boxes, against what must hold for every plan and against brute force."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.scheduler.planning.packing import Claim, count_best, serve
from supervisor.scheduler.planning.planner import Bundle, Plan, Share, View, plan
from tests.harness.planner_views import share, view, views
from trainers.protocol.ids import EngineId, GpuId, PipelineId


def chosen(given_view: View, wanted: Plan) -> dict[PipelineId, list[Bundle]]:
    return {s.pipeline: [b for b in s.bundles if EngineId(s.pipeline, b.rank) in wanted] for s in given_view.shares}


@settings(max_examples=400, deadline=None)
@given(views())
def test_every_plan_keeps_the_promises(box: View) -> None:
    wanted = plan(box)
    assert wanted == plan(View(box.gpus, tuple(reversed(box.shares)), box.targets)), "it depends on the order of the shares"
    of = chosen(box, wanted)
    assert sum(map(len, of.values())) == len(wanted)
    used = [gpu for bundles in of.values() for bundle in bundles for gpu in bundle.gpus]
    assert len(used) == len(set(used)), "a GPU is planned for two"
    assert set(used) <= box.gpus
    for each in box.shares:
        assert len(of[each.pipeline]) <= each.cap, "more engines than samples can fill"
        free = [b for b in each.bundles if b.gpus <= box.gpus - set(used)]
        assert len(of[each.pipeline]) == each.cap or not free, "a whole free bundle stays unused"
    assert sum(bool(bundles) for bundles in of.values()) == most_served(box)


def most_served(box: View) -> int:
    """By trying everything."""
    options = [[None, *(b.gpus for b in s.bundles if b.gpus <= box.gpus)] for s in box.shares if s.unfinished > 0]
    best = 0
    for pick in product(*options):
        gpus = [gpu for bundle in pick if bundle is not None for gpu in bundle]
        if len(gpus) == len(set(gpus)):
            best = max(best, sum(bundle is not None for bundle in pick))
    return best


@settings(max_examples=300, deadline=None)
@given(views())
def test_first_engines_cost_as_few_moves_as_possible(box: View) -> None:
    """All of one age: nothing but first engines may displace anybody."""
    shares = tuple(
        Share(s.pipeline, 999, 1, 0.0, tuple(b for b in s.bundles if b.gpus <= box.gpus), 1.0, s.home)
        for s in box.shares
        if any(b.gpus <= box.gpus for b in s.bundles)
    )
    level = View(box.gpus, shares)
    wanted = plan(level)
    lost = sum(b.awake and EngineId(s.pipeline, b.rank) not in wanted for s in shares for b in s.bundles)
    assert lost == fewest_lost(level)


def fewest_lost(box: View) -> int:
    served = most_served(box)
    options = [[None, *s.bundles] for s in box.shares]
    best = 99
    for pick in product(*options):
        gpus = [gpu for bundle in pick if bundle is not None for gpu in bundle.gpus]
        if len(gpus) == len(set(gpus)) and sum(b is not None for b in pick) == served:
            lost = sum(
                b.awake and b is not p and not b.gpus.isdisjoint(gpus) for s, p in zip(box.shares, pick, strict=True) for b in s.bundles
            )
            best = min(best, lost)
    return best


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(1, 63), min_size=1, max_size=4, unique=True), min_size=1, max_size=5))
def test_the_exact_count_is_exact(claims: list[list[int]]) -> None:
    found = count_best(claims)
    assert sum((a or 0) & (b or 0) for i, a in enumerate(found) for b in found[:i]) == 0
    best = 0
    for pick in product(*([None, *masks] for masks in claims)):
        masks = [mask for mask in pick if mask is not None]
        if sum(masks).bit_count() == sum(map(int.bit_count, masks)) and all(a & b == 0 for i, a in enumerate(masks) for b in masks[:i]):
            best = max(best, len(masks))
    assert sum(mask is not None for mask in found) == best
    served = serve([Claim(tuple(masks), ()) for masks in claims])
    assert sum(mask is not None for mask in served) == best


def test_a_chain_of_moves_gives_everybody_an_engine() -> None:
    """c can only have GPU 0, which a holds; a can only go to GPU 1, which b holds; b can go to GPU 2."""
    box = view(3, share("a", [0, 1], awake=(0,), unfinished=8), share("b", [1, 2], awake=(0,), unfinished=8), share("c", [0], unfinished=8))
    assert plan(box) == {EngineId(PipelineId("a"), 1), EngineId(PipelineId("b"), 1), EngineId(PipelineId("c"), 0)}


def test_an_older_rollout_takes_up_to_its_fair_share_and_no_more() -> None:
    young = share("young", list(range(8)), awake=tuple(range(8)), opened=5)
    old = share("old", list(range(8)), opened=1)
    wanted = chosen(view(8, young, old), plan(view(8, young, old)))
    assert [len(wanted[PipelineId(name)]) for name in ("old", "young")] == [4, 4]
    double = share("old", list(range(8)), opened=1, weight=3.0)
    wanted = chosen(view(8, young, double), plan(view(8, young, double)))
    assert [len(wanted[PipelineId(name)]) for name in ("old", "young")] == [6, 2]


def test_a_younger_rollout_takes_a_first_engine_only() -> None:
    old = share("old", list(range(8)), awake=tuple(range(8)), opened=1)
    young = share("young", list(range(8)), opened=5)
    wanted = chosen(view(8, old, young), plan(view(8, old, young)))
    assert [len(wanted[PipelineId(name)]) for name in ("old", "young")] == [7, 1]


def test_what_is_fresh_is_only_given_up_for_a_first_engine() -> None:
    fresh = Share(PipelineId("a"), 64, 8, 5.0, tuple(Bundle(r, frozenset([GpuId(r)]), awake=True, fresh=True) for r in range(8)))
    old = share("old", list(range(8)), opened=1)
    wanted = chosen(view(8, fresh, old), plan(view(8, fresh, old)))
    assert [len(wanted[PipelineId(name)]) for name in ("old", "a")] == [1, 7]


def test_a_tail_gives_its_engines_to_others() -> None:
    tail = share("tail", list(range(8)), awake=tuple(range(8)), unfinished=9, opened=1)
    next_one = share("next", list(range(8)), opened=5)
    wanted = chosen(view(8, tail, next_one), plan(view(8, tail, next_one)))
    assert [len(wanted[PipelineId(name)]) for name in ("tail", "next")] == [2, 6], "no more than the tail can fill"
    crowd = [share(f"c{i}", list(range(8)), opened=5) for i in range(6)]
    wanted = chosen(view(8, tail, *crowd), plan(view(8, tail, *crowd)))
    assert len(wanted[PipelineId("tail")]) == 1, "an eighth of an engine is not worth one while others lack their share"


def test_proportional_targets_follow_unfinished_samples() -> None:
    every = list(range(8))
    box = view(8, share("a", every, unfinished=300), share("b", every, unfinished=100), targets="proportional")
    wanted = chosen(box, plan(box))
    assert [len(wanted[PipelineId(name)]) for name in ("a", "b")] == [6, 2]


def test_expected_work_bounds_what_is_taken_from_others() -> None:
    """Two engines end the rollout as soon as eight: its longest sample takes that long alone."""
    young = share("young", list(range(8)), awake=tuple(range(8)), opened=5)
    known = share("known", list(range(8)), opened=1, unfinished=64, expected=1600.0, longest=100.0)
    wanted = chosen(view(8, young, known), plan(view(8, young, known)))
    assert [len(wanted[PipelineId(name)]) for name in ("known", "young")] == [3, 5]


@pytest.mark.parametrize(("pipelines", "gpus"), [(64, 256), (40, 40)])
def test_no_size_raises(pipelines: int, gpus: int) -> None:
    every = list(range(gpus))
    shares = [share(f"p{i:02}", every, tp=1 + i % 2, opened=i, awake=tuple(range(gpus)) if i == 0 else ()) for i in range(pipelines)]
    served = chosen(view(gpus, *shares), plan(view(gpus, *shares)))
    assert sum(bool(bundles) for bundles in served.values()) >= pipelines * 0.6


def test_gpus_that_are_wanted_in_a_moment_are_not_woken_for_little() -> None:
    """Nobody else is there yet: an engine that could not be taken from others waits for the moment to be over."""
    every = list(range(8))
    old = share("old", every, awake=(0, 1, 2, 3), unfinished=59, opened=1)
    soon = frozenset(map(GpuId, (4, 5, 6, 7)))
    rich = View(frozenset(map(GpuId, every)), (old,), "oldest-first", soon)
    assert len(plan(rich)) == 7, "less than half an engine of work can wait"
    other = share("other", [0, 1, 2, 3], unfinished=60, opened=2)
    both = View(frozenset(map(GpuId, every)), (old, other), "oldest-first", soon)
    assert len(chosen(both, plan(both))[PipelineId("old")]) == 4, "beyond its fair share it waits"
    assert len(plan(View(both.gpus, both.shares))) == 8


def test_an_engine_that_is_soon_superfluous_is_not_woken_when_others_want_the_gpu() -> None:
    """60 unfinished, 8 at once on an engine: the eighth would be of use for 4 s and costs 11."""
    every = list(range(8))
    costly = share("old", every, awake=(0, 1, 2, 3), unfinished=60, opened=1, pace=27.0, weight=4.0)
    costly = replace(costly, bundles=tuple(replace(bundle, cost=11.0) for bundle in costly.bundles))
    young = share("young", every, opened=2)
    wanted = chosen(view(8, costly, young), plan(view(8, costly, young)))
    assert [len(wanted[PipelineId(name)]) for name in ("old", "young")] == [6, 2]
    assert len(plan(view(8, costly))) == 8, "nobody else wants them: they may as well work"

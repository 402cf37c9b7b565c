"""What groups are seen to keep, under caps of their own; where the driver says whose memory it is, and where it does not."""

import pytest

from supervisor.host.gpus.emptiness import MIB, Usage
from supervisor.host.gpus.residuals import CONTEXT_BYTES, Growth, Residuals, Rules, first_cap
from trainers.protocol.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation, PipelineId, TrainerId

GPU = GpuId(0)
A: GroupId = EngineId(PipelineId("p1"), 0)
B: GroupId = EngineId(PipelineId("p2"), 0)
T: GroupId = TrainerId(PipelineId("p1"))
ONE, TWO = Incarnation(1), Incarnation(2)
RULES = Rules(512 * MIB, {(A, GPU): 4096 * MIB, (B, GPU): 4096 * MIB, (T, GPU): 8192 * MIB}, {GPU: frozenset({T})})


def seen(by: dict[GroupId, int], others: int = 0, *, attributed: bool = True) -> Usage:
    """MiB by group."""
    total = sum(by.values()) + others
    if not attributed:
        return Usage({GPU: total * MIB}, {GPU: {}}, {GPU: {}}, frozenset({GPU}))
    return Usage({GPU: total * MIB}, {GPU: {group: held * MIB for group, held in by.items()}}, {GPU: {}})


def leave(residuals: Residuals, usage: Usage, holder: GroupId, lives: dict[GroupId, Incarnation]) -> list[Growth] | None:
    """What was learned, or None where the GPU is not empty."""
    return residuals.learn(GPU, usage, holder, lives) if residuals.judge(GPU, usage, holder, lives).empty else None


@pytest.mark.parametrize("attributed", [True, False])
def test_each_group_is_learned_at_its_first_leave_and_allowed_that_afterwards(attributed: bool) -> None:
    residuals = Residuals(RULES)
    lives: dict[GroupId, Incarnation] = {A: ONE, B: ONE, T: ONE}
    assert leave(residuals, seen({A: 1600}, attributed=attributed), A, lives) == [Growth(GPU, A, None, 1600 * MIB)]
    assert leave(residuals, seen({A: 1600, B: 2700}, attributed=attributed), B, lives) == [Growth(GPU, B, None, 2700 * MIB)]
    assert leave(residuals, seen({A: 1600, B: 2700, T: 7900}, attributed=attributed), T, lives) == [Growth(GPU, T, None, 7900 * MIB)]
    assert residuals.kept(GPU, lives) == {A: 1600 * MIB, B: 2700 * MIB, T: 7900 * MIB}
    assert leave(residuals, seen({A: 1600, B: 2700, T: 7900}, attributed=attributed), A, lives) == []
    assert leave(residuals, seen({A: 1650, B: 2700, T: 7900}, attributed=attributed), A, lives) == []
    assert leave(residuals, seen({A: 1800, B: 2700, T: 7900}, attributed=attributed), A, lives) == [Growth(GPU, A, 1600 * MIB, 1800 * MIB)]
    assert leave(residuals, seen({A: 2200, B: 2700, T: 7900}, attributed=attributed), A, lives) is None


@pytest.mark.parametrize("attributed", [True, False])
def test_who_has_left_less_once_may_leave_as_much_as_at_first_again(attributed: bool) -> None:
    """A trainer's allocator keeps now more, now less."""
    residuals = Residuals(RULES)
    for mib in (3000, 800, 3000):
        assert leave(residuals, seen({T: mib}, attributed=attributed), T, {T: ONE}) is not None


@pytest.mark.parametrize("attributed", [True, False])
def test_the_first_leave_has_a_cap(attributed: bool) -> None:
    usage = seen({A: 4096 + 513}, attributed=attributed)
    assert leave(Residuals(RULES), usage, A, {A: ONE}) is None


def test_the_cap_of_one_is_nobody_elses() -> None:
    """A stranger's memory is not hidden below what an engine may be seen to keep, and neither is another engine's."""
    residuals = Residuals(RULES)
    verdict = residuals.judge(GPU, seen({A: 1000}, others=3000), A, {A: ONE})
    assert not verdict.empty
    assert verdict.unaccounted == 3000 * MIB
    assert verdict.offenders == ()
    assert residuals.judge(GPU, seen({A: 1000, B: 3000}), A, {A: ONE, B: ONE}).offenders == (B,)


def test_a_new_life_is_learned_anew_and_a_dead_one_keeps_nothing() -> None:
    residuals = Residuals(RULES)
    leave(residuals, seen({A: 1600}), A, {A: ONE})
    assert residuals.kept(GPU, {}) == {}
    assert residuals.judge(GPU, seen({A: 1600}), None, {}).allowed == 512 * MIB
    assert leave(residuals, seen({A: 3000}), A, {A: TWO}) == [Growth(GPU, A, None, 3000 * MIB)]


def test_a_trainer_may_make_its_context_before_its_first_lease() -> None:
    """And is nobody's intruder for it; it is known from then on by what it was seen to have."""
    residuals = Residuals(RULES)
    lives = {A: ONE, T: ONE}
    assert residuals.judge(GPU, seen({A: 1100, T: 560}), A, lives).offenders == ()
    assert leave(residuals, seen({A: 1100, T: 560}), A, lives) == [Growth(GPU, T, None, 560 * MIB), Growth(GPU, A, None, 1100 * MIB)]
    assert Residuals(RULES).judge(GPU, seen({A: 1100, T: 2000}), A, lives).offenders == (T,)


def test_what_was_taken_for_a_dead_engines_goes_to_the_trainer_that_has_it() -> None:
    residuals = Residuals(RULES)
    lives = {A: ONE, T: ONE}
    assert leave(residuals, seen({A: 1100, T: 900}, attributed=False), A, lives) == [Growth(GPU, A, None, 2000 * MIB)]
    assert leave(residuals, seen({A: 1100, T: 932}, attributed=False), T, lives) == [Growth(GPU, T, None, 32 * MIB)]
    without_a = {T: ONE}
    assert leave(residuals, seen({T: 932}, attributed=False), A, without_a) == [Growth(GPU, T, None, 932 * MIB)]
    assert leave(residuals, seen({T: 932, A: 1100}, attributed=False), A, {T: ONE, A: TWO}) == [Growth(GPU, A, None, 1100 * MIB)]


def test_more_than_a_context_that_stays_after_a_death_is_not_empty() -> None:
    residuals = Residuals(RULES)
    leave(residuals, seen({A: 3500}, attributed=False), A, {A: ONE, T: ONE})
    assert leave(residuals, seen({A: 3500}, attributed=False), A, {T: ONE}) is None


def test_on_a_virtual_gpu_nothing_may_be_kept() -> None:
    residuals = Residuals(Rules(0, {}, {}))
    assert leave(residuals, seen({A: 1}), A, {A: ONE}) is None
    assert leave(residuals, seen({}), A, {A: ONE}) is not None


def test_who_has_no_business_on_a_gpu_is_not_learned() -> None:
    gateway: GroupId = GatewayId(PipelineId("p1"))
    assert not Residuals(RULES).is_first_leave(GPU, gateway, {gateway: ONE})


def test_caps_are_the_configurations_or_a_quarter_of_a_small_card() -> None:
    assert first_cap(None, 8192, 80 << 30) == 8192 * MIB
    assert first_cap(None, 8192, 24 << 30) == 6 << 30
    assert first_cap(12000, 8192, 24 << 30) == 12000 * MIB
    assert CONTEXT_BYTES == 1024 * MIB

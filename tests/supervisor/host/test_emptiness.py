"""Empty means: no more than the sleepers' residuals and the allowance."""

from supervisor.host.gpus.emptiness import MIB, Usage, judge
from trainers.protocol.ids import EngineId, GpuId, GroupId, PipelineId, TrainerId

GPU = GpuId(2)
A: GroupId = EngineId(PipelineId("p1"), 0)
B: GroupId = EngineId(PipelineId("p2"), 0)
T: GroupId = TrainerId(PipelineId("p1"))


def usage(total: int, **_: int) -> Usage:
    return Usage({GPU: total * MIB}, {}, {})


def test_within_residuals_and_allowance_is_empty() -> None:
    assert judge(GPU, usage(0), {}, 0).empty
    assert judge(GPU, usage(512), {}, 512 * MIB).empty
    assert not judge(GPU, usage(513), {}, 512 * MIB).empty
    assert judge(GPU, usage(1500), {A: 600 * MIB, B: 400 * MIB}, 512 * MIB).empty


def test_holders_are_named_the_largest_first() -> None:
    held: dict[GroupId, int] = {A: 600 * MIB, B: 300 * MIB, T: 2000 * MIB}
    verdict = judge(GPU, Usage({GPU: 3000 * MIB}, {GPU: held}, {}), {A: 600 * MIB}, 0)
    assert verdict.holders == ((T, 2000 * MIB), (B, 300 * MIB))
    assert verdict.unaccounted == 100 * MIB
    assert str(verdict) == (
        "GPU 2 holds 3000.0 MiB, 600.0 MiB are allowed: p1/trainer 2000.0 MiB, p2/engine/0 300.0 MiB, 100.0 MiB not of our groups"
    )


def test_a_driver_that_counts_less_in_all_than_by_process_is_no_negative_rest() -> None:
    assert judge(GPU, Usage({GPU: 5}, {GPU: {A: 9}}, {}), {}, 10).unaccounted == 0


def test_who_alone_holds_more_than_all_may_keep_is_an_offender() -> None:
    held: dict[GroupId, int] = {A: 600 * MIB, B: 300 * MIB, T: 2000 * MIB}
    verdict = judge(GPU, Usage({GPU: 2900 * MIB}, {GPU: held}, {}), {A: 600 * MIB}, 500 * MIB)
    assert verdict.offenders == (T,)
    assert judge(GPU, Usage({GPU: 2900 * MIB}, {GPU: held}, {}), {A: 600 * MIB}, 0).offenders == (T, B)

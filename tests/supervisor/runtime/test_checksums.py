"""Engines of one pipeline agree on the bytes of a version, or one of them is not believed."""

from supervisor.runtime.kinds.sglang import VERIFY_EVERY, Checksums
from trainers.protocol.ids import EngineId, Incarnation, PipelineId, Version

P1, P2 = PipelineId("p1"), PipelineId("p2")
ONE, TWO, OTHER = EngineId(P1, 0), EngineId(P1, 1), EngineId(P2, 0)


def test_the_first_sync_of_each_life_is_verified_and_some_later_ones() -> None:
    checks = Checksums()
    first = [checks.due(ONE, Incarnation(1)) for _ in range(2 * VERIFY_EVERY)]
    assert first == ([True] + [False] * (VERIFY_EVERY - 1)) * 2
    assert checks.due(ONE, Incarnation(2))
    assert not checks.due(ONE, Incarnation(2))
    assert checks.due(TWO, Incarnation(1))


def test_who_agrees_is_believed() -> None:
    checks = Checksums()
    assert checks.disagreement(ONE, Version(3), "aa") is None
    assert checks.disagreement(TWO, Version(3), "aa") is None
    assert checks.disagreement(ONE, Version(4), "bb") is None
    assert checks.disagreement(OTHER, Version(3), "cc") is None  # another pipeline


def test_who_disagrees_is_not_and_neither_is_the_first_from_then_on() -> None:
    checks = Checksums()
    assert checks.disagreement(ONE, Version(3), "aa") is None
    complaint = checks.disagreement(TWO, Version(3), "bb")
    assert complaint is not None
    assert "p1/engine/0" in complaint
    assert checks.disagreement(TWO, Version(3), "bb") is None  # nobody to compare with


def test_old_versions_are_forgotten() -> None:
    checks = Checksums()
    for version in range(1000):
        assert checks.disagreement(ONE, Version(version), str(version)) is None
    assert checks.disagreement(TWO, Version(5), "x") is None
    assert len(checks._seen[P1]) <= 3

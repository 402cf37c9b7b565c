"""Who belongs to a group, decided from a table of processes."""

import pytest

from supervisor.host.processes.lineage import Lineage, Sign, lineage, mark_of_tag
from supervisor.host.processes.proc import Identity, Stat


def box(*stats: tuple[int, int, int, int], dead: tuple[int, ...] = ()) -> dict[int, Stat]:
    """Rows of (pid, parent, session, start)."""
    return {pid: Stat(pid, "Z" if pid in dead else "S", parent, session, 1, start) for pid, parent, session, start in stats}


TAGS: dict[int, str] = {}
MARKS: dict[int, int] = {}


@pytest.fixture(autouse=True)
def tags() -> dict[int, str]:
    TAGS.clear()
    MARKS.clear()
    return TAGS


GROUP = Lineage(frozenset({Identity(10, 100)}), "t:1")


def pids(of: Lineage, processes: dict[int, Stat]) -> set[int]:
    return {identity.pid for identity in lineage(of, processes, lambda pid: Sign(MARKS.get(pid, 0), TAGS.get(pid)))}


def test_session_descendants_and_tag(tags: dict[int, str]) -> None:
    tags |= {14: "t:1", 15: "t:2"}
    processes = box(
        (1, 0, 1, 1), (10, 1, 10, 100), (11, 10, 10, 101), (12, 1, 10, 102), (13, 11, 13, 103), (14, 1, 14, 104), (15, 1, 15, 105)
    )
    assert pids(GROUP, processes) == {10, 11, 12, 13, 14}


def test_a_number_used_again_is_somebody_else(tags: dict[int, str]) -> None:
    assert pids(GROUP, box((10, 1, 10, 999), (11, 10, 10, 1000))) == set()
    seen = GROUP._replace(seen=frozenset({Identity(20, 110)}))
    assert pids(seen, box((20, 1, 20, 111))) == set()
    assert pids(seen, box((20, 1, 20, 110), (21, 20, 20, 112))) == {20, 21}


def test_an_older_process_with_our_tag_is_not_ours(tags: dict[int, str]) -> None:
    tags[14] = "t:1"
    assert pids(GROUP, box((10, 1, 10, 100), (14, 1, 14, 99))) == {10}


def test_zombies_are_gone_unless_threads_outlive_the_first() -> None:
    processes = box((10, 1, 10, 100), (11, 10, 10, 101), dead=(10, 11))
    assert pids(GROUP, processes) == set()
    processes[11] = processes[11]._replace(threads=3)
    assert pids(GROUP, processes) == {11}


def test_who_left_everything_behind_is_known_by_the_mark_and_nobody_by_two(tags: dict[int, str]) -> None:
    """The mark tells more than the tag: a child of the pool shows the pool's tag, and has its own group's mark."""
    tags |= {15: "t:1"}
    MARKS.update({14: mark_of_tag("t:1"), 15: mark_of_tag("t:2"), 16: mark_of_tag("t:1")})
    processes = box((10, 1, 10, 100), (14, 1, 14, 104), (15, 1, 15, 105), (16, 1, 16, 99))
    assert pids(GROUP, processes) == {10, 14}
    assert not Sign(0, None).is_of("")
    assert mark_of_tag("") == 0
    assert 0 < mark_of_tag("t:1") < 1 << 62

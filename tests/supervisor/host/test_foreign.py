"""Only who certainly is none of ours is a stranger."""

import os

import pytest

from supervisor.host.foreign import all_foreign_to, is_foreign
from supervisor.host.ports import Listeners
from supervisor.host.processes.proc import Identity, Lineage, Stat

US = os.getpid()
GROUP = Lineage(frozenset({Identity(9_000_001, 500)}), "a tag that nobody bears")
"""Its member has ended."""
INIT, SHELL, CHILD, ORPHAN, LATE, EARLY, LOST = 1, 9_000_010, 9_000_011, 9_000_012, 9_000_013, 9_000_014, 9_000_015
PROCESSES = {
    stat.pid: stat
    for stat in (
        Stat(INIT, "S", 0, 1, 1, 1),
        Stat(SHELL, "S", INIT, SHELL, 1, 100),
        Stat(US, "S", SHELL, SHELL, 1, 200),
        Stat(CHILD, "S", US, CHILD, 1, 600),
        Stat(ORPHAN, "S", CHILD, ORPHAN, 1, 601),
        Stat(LATE, "S", SHELL, LATE, 1, 700),
        Stat(EARLY, "S", US, EARLY, 1, 300),
        Stat(LOST, "S", 9_999_999, LOST, 1, 700),
    )
}


@pytest.mark.parametrize(
    ("pid", "is_"),
    [(LATE, True), (SHELL, True), (CHILD, False), (ORPHAN, False), (US, False), (LOST, False), (77, False)],
    ids=["late", "shell", "child", "orphan", "us", "lost", "nobody"],
)
def test_outside_is_who_lives_and_is_not_below_us(pid: int, is_: bool) -> None:
    assert is_foreign(pid, PROCESSES) is is_


@pytest.mark.parametrize(
    ("pids", "unseen", "others", "is_"),
    [
        ({LATE}, False, (), True),
        ({LATE}, True, (), False),  # somebody whom we cannot see has it, too
        (set(), True, (), False),
        (set(), False, (), False),
        ({LATE, ORPHAN}, False, (), False),
        ({ORPHAN}, False, (), False),  # it may have left its session, its parent and its environment
        ({ORPHAN}, False, (ORPHAN,), True),  # another group's
        ({EARLY}, False, (), True),  # older than the group
        ({LOST}, False, (), False),
        ({77}, False, (), False),  # it has ended by now
    ],
)
def test_a_port_is_a_strangers_when_everybody_who_has_it_is(pids: set[int], unseen: bool, others: tuple[int, ...], is_: bool) -> None:
    assert all_foreign_to(GROUP, Listeners(frozenset(pids), unseen), PROCESSES, others) is is_


def test_who_was_seen_in_the_group_is_of_the_group_wherever_it_lives_now() -> None:
    group = GROUP._replace(seen=frozenset({Identity(LATE, 700)}))
    assert not all_foreign_to(group, Listeners(frozenset({LATE}), unseen=False), PROCESSES, ())

"""This module tells which processes belong to a group: its members, their sessions and descendants, those seen before, and who bears its sign.

A sign is the group's *mark*, a number that all its processes inherit, or the tag in the environment where the mark is missing. The mark stands
in the soft RLIMIT_LOCKS, which no Linux since 2.4.25 looks at (getrlimit(2)), which fork and exec keep, and which nobody sets: so it tells
whose a process is that has left session, parent, environment and descriptors behind. A cgroup would tell the same, where one may be made;
this asks for no rights. The number is made from the tag: whoever knows the tag (a journal) knows the mark.
"""

import hashlib
import resource
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from supervisor.host.processes.bootstrap import RLIMIT_LOCKS
from supervisor.host.processes.proc import Identity, Stat, below, tag_of

KTHREADD: Final = 2


class Sign(NamedTuple):
    """What a process bears: the mark of its group, or, where it has none, the tag in its environment."""

    mark: int
    tag: str | None

    def is_of(self, tag: str) -> bool:
        """Return whether this is a sign of the group with that tag."""
        return self.mark == mark_of_tag(tag) if self.mark else self.tag == tag


@lru_cache(1024)
def mark_of_tag(tag: str) -> int:
    """Return the mark of the group with this tag: 62 bits, 0 for no tag."""
    return int.from_bytes(hashlib.blake2b(tag.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 2 | 1 if tag else 0


def sign_of(pid: int) -> Sign:
    """Read what a process bears; nothing of one that has ended, or that we may not look into."""
    mark = _mark(pid)
    return Sign(mark, None if mark else tag_of(pid))


def _mark(pid: int) -> int:
    try:
        soft, _ = resource.prlimit(pid, RLIMIT_LOCKS)
    except PermissionError:  # it has changed its user
        soft = _from_proc(pid)
    except (OSError, ValueError):
        return 0
    return max(0, soft)  # -1: no limit


def _from_proc(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii") as limits:
            soft = next((line.split()[3] for line in limits if line.startswith("Max file locks")), "")
    except OSError:
        return 0
    return int(soft) if soft.isdigit() else 0


class Lineage(NamedTuple):
    """A lineage identifies the processes of one group: its members (each leads a session), their tag, and everyone seen before."""

    members: frozenset[Identity]
    tag: str
    seen: frozenset[Identity] = frozenset()


def lineage(of: Lineage, processes: Mapping[int, Stat], sign: Callable[[int], Sign] = sign_of) -> frozenset[Identity]:
    """Return the living processes of a group: members, their sessions and descendants, bearers of its sign, those seen before and theirs.

    `sign` reads what a process bears; for several groups at once, one that remembers saves most of the work.

    A descendant that left the session, lost its parent, replaced its environment *and* set its limits anew before it was first seen is not
    found here. It becomes the supervisor's own child, which belongs to no group: `Processes` ends it.
    """
    known = {identity.pid for identity in of.members | of.seen if _same(processes.get(identity.pid), identity)}
    # while anyone is in a session its number cannot be given to a new process; another start time means it all ended
    sessions = {m.pid for m in of.members if m.pid not in processes or processes[m.pid].start == m.start}
    known |= {stat.pid for stat in processes.values() if stat.session in sessions}
    born = min((member.start for member in of.members), default=0)
    for stat in processes.values():
        if stat.pid not in known and stat.start >= born and stat.parent != KTHREADD and sign(stat.pid).is_of(of.tag):
            known.add(stat.pid)
    known |= below(processes, known)
    return frozenset(processes[pid].identity for pid in known if pid in processes and processes[pid].alive)


def _same(stat: Stat | None, identity: Identity) -> bool:
    return stat is not None and stat.start == identity.start

"""This module tells which processes we certainly did not start. A port or memory that a foreign process holds is no sign that a group still lives.

We are the nearest subreaper of all that we start: a process that leaves its parent, its session and its environment becomes a child of
ours, with nothing else to know it by. So only a process outside of our tree is certainly foreign.
"""

import os
from collections.abc import Collection, Mapping

from supervisor.host.ports import Listeners
from supervisor.host.processes.lineage import Lineage, lineage
from supervisor.host.processes.proc import Stat


def is_foreign(pid: int, processes: Mapping[int, Stat]) -> bool:
    """Return whether a process lives, and neither is this process nor descends from it."""
    while (stat := processes.get(pid)) is not None and pid != os.getpid():
        if stat.parent == 0:
            return True
        pid = stat.parent
    return False  # it is below us, or somebody on the way ended while we looked


def all_foreign_to(group: Lineage, found: Listeners, processes: Mapping[int, Stat], others: Collection[int]) -> bool:
    """Return whether a port has listeners, and none of them is a process of this group for certain. `others` are the pids of our other groups."""
    if found.unseen or not found.pids:
        return False
    own = {identity.pid for identity in lineage(group, processes)}
    born = min((member.start for member in group.members), default=0)

    def foreign(pid: int) -> bool:
        older = pid in processes and processes[pid].start < born
        return pid not in own and (older or pid in others or is_foreign(pid, processes))

    return all(foreign(pid) for pid in found.pids)

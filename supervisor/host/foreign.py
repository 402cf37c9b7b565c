"""Whom we certainly did not start. What is in the way of a group's end and is a stranger's is no sign that something of the group lives.

We are the nearest subreaper of all that we start: whoever of it leaves its parent, its session and its environment is a child of ours
then, with nothing else to know it by. So only who lives outside of our tree is certainly a stranger.
"""

import os
from collections.abc import Collection, Mapping

from supervisor.host.ports import Listeners
from supervisor.host.processes.proc import Lineage, Stat, lineage


def outside(pid: int, processes: Mapping[int, Stat]) -> bool:
    """Whether it lives, and neither is nor descends from this process."""
    while (stat := processes.get(pid)) is not None and pid != os.getpid():
        if stat.parent == 0:
            return True
        pid = stat.parent
    return False  # it is below us, or somebody on the way ended while we looked


def none_of(group: Lineage, found: Listeners, processes: Mapping[int, Stat], others: Collection[int]) -> bool:
    """Whether all of them, and there are some, are certainly no processes of this group. `others` are the pids of our other groups."""
    if found.unseen or not found.pids:
        return False
    own = {identity.pid for identity in lineage(group, processes)}
    born = min((member.start for member in group.members), default=0)

    def stranger(pid: int) -> bool:
        older = pid in processes and processes[pid].start < born
        return pid not in own and (older or pid in others or outside(pid, processes))

    return all(stranger(pid) for pid in found.pids)

"""This module checks whether we may have as many open files and as many processes as a file asks for.

What is too little shows late and far from its cause: a trainer that is retired with "Too many open files" after half a minute, a gateway that
aborts without a word. Counted is what a run holds at least, so that a finding is certain.
"""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from supervisor.config.machine.port_windows import sizes
from supervisor.config.schema.findings import Finding
from supervisor.config.schema.rules import Draft

FILES: Final = 48
"""Descriptors of the supervisor itself: loop, logs, records, guardian, control socket, memory of virtual GPUs."""
FILES_A_PROCESS: Final = 4
"""A pidfd, a log, a channel, and one at its start."""
PROCESSES: Final = 6
"""Guardian, supervisor with its threads, prewarmed pool."""
TASKS_A_PROCESS: Final = 3
"""A process and two threads of it: the least that a rank, an engine or a gateway was seen to have."""
_CGROUPS: Final = Path("/sys/fs/cgroup")


def findings(draft: Draft, files: int | None = None, tasks: int | None = None) -> Iterator[Finding]:
    """Yields what is too little. `files` and `tasks`: so many are allowed (as the kernel says)."""
    children = _children(draft)
    if not children:
        return
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if files is None else files
    wanted = FILES + FILES_A_PROCESS * children + sum(sizes(draft))
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        problem = f"this file needs {wanted} open files (a port that is reserved counts as one), and we may have {allowed}"
        yield Finding("pipeline", len(draft.pipelines), problem, f"Raise the limit: `ulimit -Hn {2 * wanted}`, LimitNOFILE of a unit.")
    left = tasks_left() if tasks is None else tasks
    needed = PROCESSES + TASKS_A_PROCESS * children
    if left is not None and left < needed:
        problem = f"this file needs {needed} processes and threads at least, and we may start {left} more"
        yield Finding(
            "pipeline", len(draft.pipelines), problem, "Raise pids.max of our cgroup: `--pids-limit` of a container, TasksMax of a unit."
        )


def _children(draft: Draft) -> int:
    ranks = sum(len(pipeline.trainer.gpus) for pipeline in draft.pipelines if pipeline.trainer is not None)
    engines = sum(len(pipeline.engine.gpus) // pipeline.engine.tp for pipeline in draft.pipelines if pipeline.engine is not None)
    return ranks + engines + len(draft.pipelines)


def tasks_left(groups: str | None = None, root: Path = _CGROUPS) -> int | None:
    """Returns how many tasks our cgroup may still have, None where nothing limits them. `groups` is the text of /proc/self/cgroup."""
    try:
        text = Path("/proc/self/cgroup").read_text() if groups is None else groups
        ours = next((line.split(":", 2)[2] for line in text.splitlines() if line.startswith("0::") or ":pids:" in line), None)
    except (OSError, ValueError):
        return None
    if ours is None:
        return None
    left: list[int] = []
    for base in (root, root / "pids"):
        place = Path(os.path.normpath(f"{base}/{ours}"))
        while place != base.parent and place.is_relative_to(base):
            most, now = _number(place / "pids.max"), _number(place / "pids.current")
            if most is not None and now is not None:
                left.append(max(0, most - now))
            place = place.parent
    return min(left, default=None)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max"
        return None

"""What a process of ours is called in `ps -e`, `top` and `pstree`: `p1/engine/0`, `p1/trainer/1`, `p1/gateway`. For eyes only.

Children of the prewarmed pool would else all look like the pool. Standard library only; imported by every child of ours.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Final

from trainers.protocol.child_env import TAG

LONGEST: Final = 15
"""Bytes that the kernel keeps."""


def short_name(environ: Mapping[str, str], part: str = "") -> str:
    """From the tag and the rank that the supervisor gave this process; empty without a tag. `part` stands in for what the tag says.

    Of a name that is too long the pipeline's is cut: what it is, and which, must be seen.
    """
    _, _, tagged = environ.get(TAG, "").partition(":")
    group = tagged.rpartition(":")[0]
    pipeline, slash, rest = group.partition("/")
    if not slash:
        return ""
    rest = part or (f"{rest}/{environ['RANK']}" if rest == "trainer" and environ.get("RANK") else rest)
    end = f"/{rest}"[:LONGEST]
    return pipeline[: LONGEST - len(end)] + end


def name_this_process(part: str = "") -> None:
    """Nothing depends on it: where /proc cannot be written, the process keeps its name."""
    if name := short_name(os.environ, part):
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as comm:
            comm.write(name)

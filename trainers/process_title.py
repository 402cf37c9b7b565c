"""Names a process of ours for `ps -e`, `top` and `pstree`: `p1/engine/0`, `p1/gateway`. Nothing depends on the name.

Children of the prewarmed pool would else all look like the pool. Engines and gateways name themselves here; ranks and recipes, which
run a user's code and do not have this package, do it in `trainshed.launch`.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Final

from trainers.protocol.child_env import TAG

LONGEST: Final = 15
"""Bytes that the kernel keeps."""


def short_name(environ: Mapping[str, str]) -> str:
    """Returns the name that the tag of the supervisor gives this process; empty without a tag.

    Of a name that is too long the pipeline's part is cut: the kind of the process and its number must be seen.
    """
    _, _, tagged = environ.get(TAG, "").partition(":")
    group = tagged.rpartition(":")[0]
    pipeline, slash, rest = group.partition("/")
    if not slash:
        return ""
    end = f"/{rest}"[:LONGEST]
    return pipeline[: LONGEST - len(end)] + end


def name_this_process() -> None:
    """Names this process; where /proc cannot be written, the process keeps its name."""
    if name := short_name(os.environ):
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as comm:
            comm.write(name)

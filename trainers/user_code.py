"""The environment in which a user's code runs: its path, what it must not see of ours, and torchrun's variables.

A user's code gets the folder of the client (`import trainshed`) and its own folders. Our checkout is on the path only where a name in
the TOML file is built in. So a user's packages that are named as ours (`trainers`, `engines`, `tests`) neither hide ours nor are hidden.
"""

import os
import sys
from collections.abc import Collection
from typing import Final

from trainers.protocol.child_env import CLIENT, OUR_PATH

BUILT_IN: Final = frozenset({"trainers.grpo:main", "trainers.grpo.tiny:make", "trainers.grpo.tasks:reward"})
"""Every `module:function` that is ours. Any other name, `trainers.mine:main` too, is the user's."""


def python_path(entry: str | None, *folders: str | None) -> str:
    """Returns PYTHONPATH of a child that runs `entry` (None: a command), with the user's folders after ours."""
    return os.pathsep.join(filter(None, [OUR_PATH if entry in BUILT_IN else str(CLIENT), *folders]))


def forget(folders: Collection[str]) -> None:
    """Makes this process one that never had these folders on its path: they leave it, and so do the modules that came from them.

    A process that was forked or spawned from one of ours calls it before it imports a user's code.
    """
    sys.path[:] = [folder for folder in sys.path if folder not in folders]
    found = {name for name, module in list(sys.modules.items()) if "." not in name and _lies_in(module, folders)}
    for name in list(sys.modules):
        if name.partition(".")[0] in found:
            del sys.modules[name]


def _lies_in(module: object, folders: Collection[str]) -> bool:
    """Tells whether a top-level module was found in one of the folders itself (an environment may lie deeper in one)."""
    places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None)]
    return any(os.path.dirname(place) in folders for place in places if place is not None)


def launcher_variables(world_size: int, port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """Returns variables for a program that makes so many ranks by itself: where their rank 0 shall listen, and torchrun's defaults (`PET_…`).

    Two trainers on a box would both take torchrun's usual port. Facts: torch/distributed/argparse_util.py; a flag of the command wins.
    """
    return {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": str(port),
        "PET_NPROC_PER_NODE": str(world_size),
    }


def torchrun_variables(rank: int, world_size: int, port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """Returns torchrun's variables for one rank of a group on this host, whose rank 0 listens on `port`. Raises ValueError."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }

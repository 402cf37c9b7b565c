"""Runs code that a TOML file names: a rank (`module:function`), or a model recipe (`--make module:function DIR JSON`).

Ranks that are started fresh run this module; prewarmed ones call `run` in a forked child. It imports nothing heavy by itself.
"""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from trainers.process_title import name_this_process

USAGE: Final = "usage: python -P -m trainers.launch module:function | --make module:function DIR JSON"


class LaunchError(Exception):
    """What the operator named cannot be run; the message is for them."""


def environment(rank: int, world_size: int, port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """torchrun's variables for one rank of a group on this host, whose rank 0 listens on `port`."""
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


def resolve(entry: str) -> Callable[..., Any]:
    """The function that `module:function` names. Raises LaunchError; an import that fails by itself raises what it raises."""
    module_name, _, function_name = entry.partition(":")
    parts = [*module_name.split("."), function_name]
    if not all(part.isidentifier() for part in parts):
        raise LaunchError(f"{entry!r} is not of the form module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.split(".")[: error.name.count(".") + 1] == error.name.split("."):
            raise LaunchError(f"{entry!r}: there is no module {error.name!r} on the path {sys.path}") from error
        raise
    function = getattr(module, function_name, None)
    if not callable(function):
        raise LaunchError(f"{entry!r}: {module.__file__} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def run(entry: str) -> None:
    """Runs a rank to its end."""
    function = resolve(entry)
    torch = sys.modules.get("torch")
    if torch is not None and os.environ.get("TRAINSHED_GPUS", "virtual:").startswith("virtual:"):
        torch.set_num_threads(1)  # more threads give other last bits, and cores that others compute on
    function()


def make(entry: str, directory: Path, options: dict[str, Any]) -> None:
    """Calls `function(directory, **options)` so that `directory` appears whole or not at all. Raises LaunchError when it exists and is not empty."""
    function = resolve(entry)
    if directory.is_symlink() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
        raise LaunchError(f"{directory} exists already")
    unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        function(unfinished, **options)
        os.rename(unfinished, directory)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def main(arguments: list[str]) -> int:
    name_this_process("model" if arguments[:1] == ["--make"] else "")
    try:
        match arguments:
            case ["--make", entry, directory, text]:
                options = json.loads(text)
                if not isinstance(options, dict):
                    raise LaunchError(f"the options of {entry} are a JSON object, not {text[:100]}")
                make(entry, Path(directory), options)
            case [entry] if not entry.startswith("-"):
                run(entry)
            case _:
                sys.stderr.write(USAGE + "\n")
                return 2
    except LaunchError as error:
        sys.stderr.write(f"trainers.launch: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

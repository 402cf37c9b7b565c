"""Runs code that a TOML file names: a rank (`module:function`) or a model recipe (`--make module:function DIR JSON`).

The supervisor starts it as `python -P -m trainshed.launch`, in its own Python. What the module may import is on PYTHONPATH
(`trainers.user_code.python_path`): this package and the user's folders; our checkout only where the name is built in. So a
user's own packages `trainers`, `engines` or `tests` are theirs.

A wrong name is the operator's mistake: one line on stderr and exit code 2. What the code itself raises ends the process as in any script.
"""

import contextlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

USAGE: Final = "usage: python -P -m trainshed.launch module:function | --make module:function DIR JSON"
_LONGEST_TITLE: Final = 15  # bytes that the kernel keeps of a process's name


class LaunchError(Exception):
    """The name in the TOML file cannot be run; the message is for the operator."""


def resolve(entry: str) -> Callable[..., Any]:
    """Imports the function that `module:function` names. Raises LaunchError; an import that fails by itself raises what it raises."""
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
    """Calls a rank's function, which returns when the rank is done. Raises LaunchError, and what the function raises."""
    function = resolve(entry)
    torch = sys.modules.get("torch")
    if torch is not None and os.environ.get("TRAINSHED_GPUS", "virtual:").startswith("virtual:"):
        torch.set_num_threads(1)  # more threads give other last bits, and cores that others compute on
    function()


def make(entry: str, directory: Path, options: dict[str, Any]) -> None:
    """Calls `function(directory, **options)`; `directory` appears complete or not at all. Raises LaunchError when it exists and is not empty."""
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


def _name_this_process(part: str) -> None:
    """Names this process `p1/trainer/0` or `p1/model` for `ps`, `top` and `pstree`. Nothing depends on the name.

    Of a name that is too long the pipeline's part is cut.
    """
    _, _, tagged = os.environ.get("TRAINSHED_TAG", "").partition(":")
    pipeline, slash, _ = tagged.partition("/")
    if slash:
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as comm:
            comm.write(f"{pipeline[: _LONGEST_TITLE - 1 - len(part)]}/{part}")


def main(arguments: list[str]) -> int:
    """Does what the command line says and returns the exit code: 0, or 2 for a mistake of the operator's."""
    try:
        match arguments:
            case ["--make", entry, directory, text]:
                _name_this_process("model")
                options = json.loads(text)
                if not isinstance(options, dict):
                    raise LaunchError(f"the options of {entry} are a JSON object, not {text[:100]}")
                make(entry, Path(directory), options)
            case [entry] if not entry.startswith("-"):
                _name_this_process(f"trainer/{os.environ.get('RANK', '0')}")
                run(entry)
            case _:
                sys.stderr.write(USAGE + "\n")
                return 2
    except LaunchError as error:
        sys.stderr.write(f"trainshed.launch: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""This module finds what a `command` means: its program, and the script that it is given. It looks, and starts nothing."""

import ast
import difflib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from supervisor.config.schema.findings import Finding

_PYTHON: Final = re.compile(r"(python|pypy)[0-9.]*\Z")
_SHELL: Final = re.compile(r"(ba|da|z|k)?sh\Z")
_SCRIPT_LIMIT: Final = 4 << 20
"""Bytes of a script that are read; nobody writes more by hand."""
_USUAL: Final = ("python", "python3", "bash", "sh", "torchrun", "accelerate", "uv")


def at(base: Path, path: str) -> Path:
    """Returns a path of the file, which counts from `base`, as an absolute one."""
    return Path(os.path.normpath(base / os.path.expanduser(path)))


def search_path(env: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """Returns the PATH of a child: what its table says, else that of the shell that started us."""
    return env.get("PATH") or environ.get("PATH") or os.defpath


def resolve(program: str, cwd: Path, path: str) -> str | None:
    """Returns the file that is run, absolute (links as they are: an environment's `python` is one). None when there is none on the PATH."""
    if "/" in program or program.startswith("~"):
        return str(at(cwd, program))
    found = shutil.which(program, path=path)
    return None if found is None else os.path.abspath(found)


def findings(program: str, key: str, cwd: Path, path: str, remedy: str) -> Iterator[Finding]:
    """Yields what is wrong if the program is not there, or may not be run."""
    file = resolve(program, cwd, path)
    if file is None:
        others = [name for name in _USUAL if name != program and shutil.which(name, path=path)]
        close = difflib.get_close_matches(program[:64], others, n=1, cutoff=0.6)
        hint = f'Write "{close[0]}" ({shutil.which(close[0], path=path)}), or give a path.' if close else remedy
        yield Finding(key, program, "is not on the PATH", hint)
    elif not os.path.isfile(file):
        yield Finding(key, program, f"there is no file {file}", remedy)
    elif not os.access(file, os.X_OK):
        yield Finding(key, program, f"{file} is not executable", f"Change its permissions, or {remedy[0].lower()}{remedy[1:]}")


def script_findings(command: Sequence[str], key: str, cwd: Path) -> Iterator[Finding]:
    """Yields what is wrong if the script is not there that a Python or a shell is given."""
    name = script(command)
    if name is None or os.path.exists(cwd / name):
        return
    beside = [entry for entry in _names(cwd) if entry.endswith(os.path.splitext(name)[1])]
    close = difflib.get_close_matches(name[:64], beside, n=1)
    remedy = f'Did you mean "{close[0]}"?' if close else "Give its path, absolute or relative to `cwd` (by default this file's folder)."
    yield Finding(key, list(command), f"there is no file {os.path.normpath(cwd / name)}", remedy)


def script(command: Sequence[str]) -> str | None:
    """Returns the script that an interpreter runs; None for other programs, and for code that is given in another way (-c, -m, standard input)."""
    name = os.path.basename(command[0])
    if not (python := _PYTHON.match(name)) and not _SHELL.match(name):
        return None
    no_script, takes_value = ("cm", "WX") if python else ("cs", "oO")
    words = iter(command[1:])
    for word in words:
        if word == "--":
            return next(words, None)
        if not word.startswith("-"):
            return word
        if word == "-":
            return None
        for position, letter in enumerate("" if word.startswith("--") else word):
            if letter in no_script:
                return None
            if letter in takes_value:
                if position == len(word) - 1:
                    next(words, None)
                break
    return None


def old_client_findings(command: Sequence[str], key: str, cwd: Path, env: Mapping[str, str]) -> Iterator[Finding]:
    """Yields what is wrong if a Python script of the command imports `trainers.client`, the old name of `trainshed`: a rank would fail there.

    A package `trainers` of the user's own, where the script finds it, is none of our business.
    """
    script = next((cwd / word for word in command if word.endswith(".py") and os.path.isfile(cwd / word)), None)
    if script is None or (line := _imports_old_client(script)) is None:
        return
    places = [script.parent, cwd, *map(Path, filter(None, env.get("PYTHONPATH", "").split(os.pathsep)))]
    if any(os.path.exists(place / "trainers" / name) for place in places for name in ("client.py", "client/__init__.py")):
        return
    problem = f"{os.path.normpath(script)}, line {line}: `trainers.client` is called `trainshed` now"
    yield Finding(key, list(command), problem, "Write `import trainshed`, or `from trainshed import connect`, there.")


def _imports_old_client(script: Path) -> int | None:
    """Returns the line of the import; None when there is none, or when this Python cannot read the script."""
    try:
        descriptor = os.open(script, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            tree = ast.parse(file.read(_SCRIPT_LIMIT))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return next((node.lineno for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and _is_old_client(node)), None)


def _is_old_client(node: ast.Import | ast.ImportFrom) -> bool:
    names = {alias.name for alias in node.names}
    if isinstance(node, ast.Import):
        return any(f"{name}.".startswith("trainers.client.") for name in names)
    if node.level:
        return False
    return f"{node.module}.".startswith("trainers.client.") or (node.module == "trainers" and "client" in names)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)][:2000]
    except OSError:
        return []

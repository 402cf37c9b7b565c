"""This module asks an interpreter, in a process of its own, which version of a package it has. No code of the operator's is run."""

import subprocess
from collections.abc import Mapping
from typing import Final

CHECK_S: Final = 10.0
"""Seconds that a check waits for the answer; a run has more patience with a cold disk."""


class NotInstalled(Exception):
    """The interpreter does not have the package, or is none."""


class Unanswered(NotInstalled):
    """The interpreter has not answered in time."""


def installed_version(python: str, package: str, called: str, environ: Mapping[str, str], limit: float) -> str:
    """Returns the version of `package`, which people know as `called`. Raises NotInstalled; Unanswered after `limit` seconds."""
    ask = [python, "-I", "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]
    try:
        done = subprocess.run(ask, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"does not say which {called} it has within {limit:.0f} s") from error
    except OSError as error:
        raise NotInstalled(f"does not say which {called} it has: {error}") from error
    answer = done.stdout[:200].decode("ascii", "replace").strip()
    if done.returncode != 0 or not answer:
        last = done.stderr[-500:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        why = "" if "PackageNotFoundError" in last else f" ({last or f'it ends with {done.returncode}'})"
        raise NotInstalled(f"has no {called}{why}")
    return answer

"""Which SGLang an interpreter has: it is asked, in a process of its own. No code of the configuration's is run."""

import subprocess
from collections.abc import Iterator, Mapping
from typing import Final

from engines.sglang.versions import UnknownVersion, profile
from supervisor.config.schema.findings import Finding

CHECK_S: Final = 10.0
"""Seconds that a check waits for the answer; a run has more patience with a cold disk."""


class NoSglang(Exception):
    """It has none, or is no interpreter."""


class Unanswered(NoSglang):
    """It has not said in time."""


def sglang_version(python: str, environ: Mapping[str, str], limit: float) -> str:
    """Raises NoSglang; Unanswered after `limit` seconds."""
    ask = [python, "-I", "-c", "import importlib.metadata as m; print(m.version('sglang'))"]
    try:
        done = subprocess.run(ask, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"does not say which SGLang it has within {limit:.0f} s") from error
    except OSError as error:
        raise NoSglang(f"does not say which SGLang it has: {error}") from error
    said = done.stdout[:200].decode("ascii", "replace").strip()
    if done.returncode != 0 or not said:
        last = done.stderr[-500:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        why = "" if "PackageNotFoundError" in last else f" ({last or f'it ends with {done.returncode}'})"
        raise NoSglang(f"has no SGLang{why}")
    return said


def findings(python: str, value: str, key: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether an engine could start with it. One that takes too long to answer is believed."""
    try:
        profile(sglang_version(python, environ, CHECK_S))
    except Unanswered:
        return
    except NoSglang as error:
        yield Finding(key, value, str(error), "Name the interpreter of an environment that has it: `pip install sglang` there.")
    except UnknownVersion as error:
        yield Finding(key, value, error.problem, f"{error.remedy[0].upper()}{error.remedy[1:]}.")

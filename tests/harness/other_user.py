"""Commands of ours as another user of this machine runs them (nobody, uid 65534). Only root can become somebody else: the tests skip otherwise."""

import functools
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
NOBODY = 65534


@functools.cache
def interpreter() -> list[str]:
    """A Python that nobody may execute, with our libraries: ours, or the system's of the same version. Skips the test when there is none."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3"):
        try:
            if _as_nobody([python, "-P", "-c", "import supervisor.cli.main, msgspec, rich"], Path("/")).returncode == 0:
                return [python, "-P"]
        except OSError:  # it lies where nobody may look
            continue
    pytest.skip("no Python here that another user may execute")


def _as_nobody(command: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "trainers" / "client"), sysconfig.get_path("purelib")))
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, user=NOBODY, group=NOBODY, extra_groups=[],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def python_as_nobody(code: str, *arguments: str, cwd: Path = Path("/")) -> "subprocess.CompletedProcess[str]":
    return _as_nobody([*interpreter(), "-c", code, *arguments], cwd)


def supervise_as_nobody(cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`supervise …`. `cwd` must be open to nobody."""
    return _as_nobody([*interpreter(), "-m", "supervisor", *arguments], cwd)

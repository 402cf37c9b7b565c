"""A bug put in by hand, in a copy of the checkout, and the tests that must then fail."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_NOWHERE = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")
_NOT_AT_THE_TOP = {"runs", ".sglang-cpu", ".stacks-cpu"}


@dataclass(frozen=True)
class Mutant:
    """In `file` the text `old` (there once) becomes `new`; then a test of `tests` (a file or folder, and pytest's `-k`) must fail.

    `why` says what is broken.
    """

    file: str
    old: str
    new: str
    tests: str
    chosen: str = ""
    why: str = ""

    def mutated(self) -> str:
        """The text of the file with the bug. Raises LookupError when the code has changed and the mutant must be looked at again."""
        text = (CHECKOUT / self.file).read_text()
        if text.count(self.old) != 1:
            raise LookupError(f"{self.file} has {text.count(self.old)} times {self.old!r}")
        extra = "\n\nasync def _nobody() -> frozenset[object]:\n    return frozenset()\n" if "_nobody" in self.new else ""
        return text.replace(self.old, self.new) + extra


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Return what is not copied: results of runs lie in the checkout's `runs`, tests of runs in `tests/runs`."""
    return _NOWHERE(folder, names) | (_NOT_AT_THE_TOP & set(names) if Path(folder) == CHECKOUT else set())


class Survived(Exception):
    """The mutant broke no test."""


def plant(mutant: Mutant, folder: Path) -> Path:
    """A copy of the checkout with the bug in it."""
    copy = folder / "checkout"
    shutil.copytree(CHECKOUT, copy, ignore=_left_out)
    (copy / mutant.file).write_text(mutant.mutated())
    return copy


def environment(copy: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{copy}:{copy}/trainers/client", "PYTHONDONTWRITEBYTECODE": "1"}


def killer(mutant: Mutant, seconds: float = 300.0) -> str:
    """The test that fails. Raises Survived when none does, or when pytest found none to run."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = plant(mutant, Path(folder))
        chosen = ["-k", mutant.chosen] if mutant.chosen else []
        command = [sys.executable, "-m", "pytest", mutant.tests, "-q", "-x", "-p", "no:cacheprovider", "--timeout", "90", *chosen]
        try:
            done = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return "a test that did not end"
    if done.returncode != 1:
        raise Survived(f"pytest ended with {done.returncode}; the mutant survives\n{done.stdout[-1500:]}")
    failed = [line.split(" - ")[0].removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0] if failed else "?"

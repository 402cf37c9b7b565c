"""This module is the supervisor's end of the pipe to `guardian.py`."""

import os
import signal
from pathlib import Path
from typing import Final

from supervisor.host.processes import bootstrap
from supervisor.host.processes.guardian import GUARDIAN, GUARDIAN_FD, SWEPT_PREFIX

LONGEST: Final = 2000
"""Characters of the text for the one who waits for a detached run."""


class Guard:
    """The guard stands for the guardian above us. Without a guardian (in a test, under a debugger) registrations go nowhere."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def sweep(self, path: Path) -> None:
        """Have `path` removed (recursively) when we end, however we end. Raises ValueError for a path that is not ours to remove."""
        if not path.is_absolute() or not path.name.startswith(SWEPT_PREFIX):
            raise ValueError(f"only an absolute path whose last part starts with {SWEPT_PREFIX!r} can be swept, not {path}")
        self._write(f"sweep {path}")

    def ready(self, code: int = 0, text: str = "") -> None:
        """Let the command of `run --detach` print `text` (one line) and return with `code`; the run goes on."""
        self._write(f"ready {code} {text[:LONGEST]}")

    def leave_terminal(self) -> None:
        """Replace the standard streams, so that nothing of ours reads from the terminal, writes to it or keeps it open."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)

    def _write(self, line: str) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, line.encode("utf-8", "surrogateescape") + b"\n")
        except BrokenPipeError:  # the guardian was killed; its signal is on the way and says so
            self._descriptor = None


def enter() -> Guard:
    """Arm "SIGTERM when the guardian dies" and make us a subreaper. The supervisor's main thread calls it once, first.

    Raises SystemExit when the guardian has ended already: nobody would clean up after us.
    """
    bootstrap.become_subreaper()
    guardian, descriptor = os.environ.pop(GUARDIAN, None), os.environ.pop(GUARDIAN_FD, None)
    if guardian is None or descriptor is None:
        return Guard(None)
    if not bootstrap.die_with_parent(signal.SIGTERM, int(guardian)):
        raise SystemExit("the guardian ended before the supervisor began")
    os.set_inheritable(int(descriptor), False)
    return Guard(int(descriptor))

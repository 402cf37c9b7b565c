"""This module is the supervisor's end of the pipe to `guardian.py`."""

import contextlib
import os
import resource
import signal
from pathlib import Path
from typing import Final

from supervisor.host.processes import bootstrap
from supervisor.host.processes.deadman import Deadman
from supervisor.host.processes.guardian import GUARDIAN, GUARDIAN_FD, SWEPT_PREFIX

LONGEST: Final = 2000
"""Characters of the text for the one who waits for a detached run."""
LATER_S: Final = 3.0
"""How much later than the guardian the kernel acts, at least."""


class Guard:
    """The guard stands for the guardian above us. Without a guardian (in a test, under a debugger) registrations go nowhere."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._deadman: Deadman | None = None

    def sweep(self, path: Path) -> None:
        """Have `path` removed (recursively) when we end, however we end. Raises ValueError for a path that is not ours to remove."""
        if not path.is_absolute() or not path.name.startswith(SWEPT_PREFIX):
            raise ValueError(f"only an absolute path whose last part starts with {SWEPT_PREFIX!r} can be swept, not {path}")
        self._write(f"sweep {path}")

    def ready(self, code: int = 0, text: str = "") -> None:
        """Let the command of `run --detach` print `text` (one line) and return with `code`; the run goes on."""
        self._write(f"ready {code} {text[:LONGEST]}")

    def log(self, run: str, path: Path) -> None:
        """Say where our log is: the guardian writes there what it has to say of us."""
        self._write(f"log {run} {path}")

    def watch(self, limit_s: float, grace_s: float) -> None:
        """Have everything ended when `beat` is not called for `limit_s`; our children get `grace_s` then.

        The guardian does it; should it have been killed meanwhile, the kernel kills us somewhat later. Without a guardian nobody watches.
        """
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):  # this kernel has no such timer
            self._deadman = Deadman(1.5 * limit_s + grace_s + LATER_S)
        self._write(f"watchdog {limit_s} {grace_s}")

    def beat(self) -> None:
        """Say that our loop runs."""
        if self._deadman is not None:
            self._deadman.put_off()
        self._write("alive")

    def unwatch(self) -> None:
        """Say that our loop ends, and need not be watched any longer."""
        if self._deadman is not None:
            self._deadman.close()
            self._deadman = None
        self._write("watchdog 0 0")

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
        except BlockingIOError:  # the guardian has been stopped for hours: the pipe is full, and we go on
            pass


def enter() -> Guard:
    """Arm "SIGTERM when the guardian dies" and make us a subreaper. The supervisor's main thread calls it once, first.

    Raises SystemExit when the guardian has ended already: nobody would clean up after us.
    """
    bootstrap.become_subreaper()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # our memory has keys
    guardian, descriptor = os.environ.pop(GUARDIAN, None), os.environ.pop(GUARDIAN_FD, None)
    if guardian is None or descriptor is None:
        return Guard(None)
    if not bootstrap.die_with_parent(signal.SIGTERM, int(guardian)):
        raise SystemExit("the guardian ended before the supervisor began")
    os.set_inheritable(int(descriptor), False)
    os.set_blocking(int(descriptor), False)
    return Guard(int(descriptor))

"""The heartbeat tells the guardian every second that our loop turns, and looks whether the guardian itself is stopped.

A loop that hangs, or a supervisor that is stopped, says nothing: the guardian warns after 5 s and ends the run after `[health] watchdog_s`.
"""

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import structlog

from supervisor.config.schema.tables import HealthTable
from supervisor.host.processes.guardian_link import Guard
from supervisor.host.processes.proc import read_stat
from supervisor.host.regular_file import open_regular

BEAT_S: Final = 1.0


async def keep_beating(guard: Guard, health: HealthTable, log: "structlog.typing.FilteringBoundLogger") -> None:
    """Beat until cancelled. A run whose guardian is stopped goes on: nobody passes signals on to it meanwhile, and that is said once."""
    stopped = False
    guard.watch(health.watchdog_s, health.grace_s)
    try:
        while True:
            guard.beat()
            guardian = read_stat(os.getppid())
            if (now := guardian is not None and guardian.state == "T") and not stopped:
                log.warning("the guardian is stopped: signals do not reach the run, and nothing cleans up after it", pid=os.getppid())
            stopped = now
            await anyio.sleep(min(BEAT_S, health.watchdog_s / 4))
    finally:
        guard.unwatch()


@contextlib.contextmanager
def stack_on_crash(path: Path) -> Iterator[None]:
    """Have our stack written to `path` when we hang (the guardian sends SIGABRT) or crash; a file that stays empty is removed."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    faulthandler.enable(file=descriptor)
    try:
        yield
    finally:
        faulthandler.disable()
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_size == 0:
                path.unlink()
        os.close(descriptor)

"""This module sends signals through a pidfd whose process has been compared with its start time, never to a bare number."""

import contextlib
import os
import signal
from collections.abc import Iterable

import anyio

from supervisor.host.processes.proc import Identity, read_stat


def open_verified(identity: Identity) -> int | None:
    """Open a pidfd of exactly this process. Return None when it has ended (its number may name another by now)."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    stat = read_stat(identity.pid)
    if stat is not None and stat.identity == identity:
        return pidfd
    os.close(pidfd)
    return None


def send(identity: Identity, *numbers: signal.Signals) -> None:
    """Send signals, in order; nothing happens when the process has ended."""
    pidfd = open_verified(identity)
    if pidfd is None:
        return
    try:
        for number in numbers:
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


async def kill_all(identities: Iterable[Identity]) -> None:
    """KILL each process and wait until all have ended."""
    with contextlib.ExitStack() as stack:
        pidfds = []
        for identity in identities:
            if (pidfd := open_verified(identity)) is not None:
                stack.callback(os.close, pidfd)
                pidfds.append(pidfd)
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # one that changed its user is waited for, up to the deadline
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            await anyio.wait_readable(pidfd)

"""What happens inside a child of the prewarmed pool, from the fork to the first line of its module.

It gives the child what an executed child would have got: own session, log, descriptors, environment, working directory, signals.
Standard library only (and the pool itself), because it is imported into the pool. It does not name the supervisor's other modules.
"""

import atexit
import contextlib
import fcntl
import os
import runpy
import signal
import sys
from dataclasses import dataclass

from multiprocess import forkserver, resource_tracker

F_SETSIG = 10
LIBRARY_PATHS = "PYTHONPATH"


@dataclass(frozen=True)
class Order:
    """What to run. `pass_fds` are the numbers that the inherited descriptors shall have, in their order after the first three
    (handshake, log, lifeline)."""

    module: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    pass_fds: tuple[int, ...]


def run(order: Order) -> None:
    """The body of a pool child; what it raises ends the child, as in any Python program."""
    handshake = enter(order)
    if not os.read(handshake, 1):
        os._exit(127)  # the supervisor ended before it released us
    os.close(handshake)
    try:
        runpy.run_module(order.module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # the pool's children end by _exit


def enter(order: Order) -> int:
    """Become a child like any other; returns the handshake's descriptor."""
    os.setsid()
    handshake, lifeline = take_descriptors(order.pass_fds)
    die_with(lifeline)
    reset_signals()
    os.environ.clear()
    os.environ.update(order.env)
    os.chdir(order.cwd)
    sys.argv = [order.module, *order.argv]
    sys.path += [path for path in order.env.get(LIBRARY_PATHS, "").split(os.pathsep) if path and path not in sys.path]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for good; the pool's had a descriptor of its own
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through="PYTHONUNBUFFERED" in order.env)  # type: ignore[union-attr]
    # a tracker of its own, should it need one, in its own session: the pool has none
    resource_tracker._resource_tracker._fd = resource_tracker._resource_tracker._pid = None
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # else every child would inherit one state
    return handshake


def take_descriptors(wanted: tuple[int, ...]) -> tuple[int, int]:
    """Give the inherited descriptors the wanted numbers and close everything else, as exec would.

    Returns the handshake and the lifeline, at numbers of no meaning.
    """
    above = max((*wanted, 2)) + 1
    inherited = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in forkserver.get_inherited_fds()]  # type: ignore[no-untyped-call]
    handshake, log, lifeline, *passed = inherited
    os.dup2(log, 1)
    os.dup2(log, 2)
    keep = {0, 1, 2, handshake, lifeline, *passed}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
                os.close(int(name))
    for number, descriptor in zip(wanted, passed, strict=True):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)
    return handshake, lifeline


def die_with(lifeline: int) -> None:
    """Be killed when the supervisor is gone, that is when nobody holds the other end of the lifeline any more.

    The kernel's "die with the parent" would name the pool's server, which may die alone without harm. Opened anew, because the
    owner and signal belong to an open file, which all children would share.
    """
    own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(lifeline)
    fcntl.fcntl(own, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    try:
        if not os.read(own, 1):
            os._exit(127)  # gone already
    except BlockingIOError:
        pass


def reset_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

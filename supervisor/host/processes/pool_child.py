"""This module runs in the prewarmed pool: its server, and in each forked child what makes it what an executed child would be.

The child gets its own session, log, descriptors, environment, working directory, signals and path. What the pool has imported from its
own PYTHONPATH (this module too) is forgotten: a user's code that runs in the child must not find our packages, and ours are imported
again in a moment. What costs seconds (torch, transformers) comes from the environment's folders and stays.

Standard library only (and `multiprocess` itself), because this module is imported into the pool.
"""

import atexit
import contextlib
import fcntl
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multiprocess import forkserver, resource_tracker

from trainers.user_code import forget

F_SETSIG = 10
PING = signal.SIGUSR1
"""What asks the server whether it is there."""
PATH_VARIABLE = "PYTHONPATH"


@dataclass(frozen=True)
class Order:
    """The child to be. `pass_fds` are the numbers that the inherited descriptors shall have, in their order after the first three
    (handshake, log, lifeline)."""

    module: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    pass_fds: tuple[int, ...]


def serve(listener: int, alive: int, answering: int, modules: Sequence[str]) -> None:
    """Runs the pool's server: imports, says so, and forks children until nobody holds the other end of `alive`. It answers pings with a byte."""
    for name in modules:
        with contextlib.suppress(ImportError):
            __import__(name)
    signal.signal(PING, lambda *_: os.write(answering, b"."))
    os.write(answering, b".")
    forkserver.main(listener, alive, [])  # type: ignore[no-untyped-call]


def run(order: Order) -> None:
    """Runs the child's module to its end; what it raises ends the child, as in any Python program."""
    handshake = enter(order)
    if not os.read(handshake, 1):
        os._exit(127)  # the supervisor ended before it released us
    os.close(handshake)
    try:
        runpy.run_module(order.module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # the pool's children end by _exit


def enter(order: Order) -> int:
    """Makes this process a child like any other, held before its module; returns the handshake's descriptor."""
    os.setsid()
    handshake, lifeline = take_descriptors(order.pass_fds)
    die_with(lifeline)
    reset_signals()
    forget(_folders(os.environ))
    os.environ.clear()
    os.environ.update(order.env)
    os.chdir(order.cwd)
    sys.argv = [order.module, *order.argv]
    sys.path[:0] = _folders(order.env)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for good; the pool's had a descriptor of its own
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through="PYTHONUNBUFFERED" in order.env)  # type: ignore[union-attr]
    # a tracker of its own, should it need one, in its own session: the pool has none
    resource_tracker._resource_tracker._fd = resource_tracker._resource_tracker._pid = None
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # else every child would inherit one state
    return handshake


def _folders(environ: Mapping[str, str]) -> list[str]:
    """Returns the folders of PYTHONPATH."""
    return [folder for folder in environ.get(PATH_VARIABLE, "").split(os.pathsep) if folder]


def take_descriptors(wanted: tuple[int, ...]) -> tuple[int, int]:
    """Gives the inherited descriptors the wanted numbers and closes all others, as exec would.

    Returns the descriptors of the handshake and of the lifeline, whose numbers mean nothing.
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
    """Has the kernel kill this process when the supervisor has ended, that is when no process holds the other end of the lifeline.

    PR_SET_PDEATHSIG would follow the pool's server, which may die alone without harm. The pipe is opened anew, because owner and
    signal belong to an open file, which all children would share.
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
    """Gives signals the handling that Python starts with."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, PING):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

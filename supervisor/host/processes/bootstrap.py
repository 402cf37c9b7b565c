"""This program is the first thing that every child runs: it arms what must hold before the real program, then becomes it.

It uses the standard library only and stands alone in its file, because it is executed as `python -I -S -E bootstrap.py --parent PID
--handshake FD --nice N --mark M -- argv` (about 10 ms). A `preexec_fn` would be unsafe beside threads and force a slow fork of a big parent.

The handshake: the supervisor writes one byte once it has written the child's pid down (release); end of file before that means
that the supervisor has ended. The descriptor closes on exec, so the supervisor sees end of file when the real program runs, or one
line `<errno> <text>` when it could not be executed.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
RLIMIT_LOCKS = 10
"""A limit that no kernel of today looks at; `lineage.py` says what it is good for."""
OOM_SCORE = 500
NOT_EXECUTED = 127


def prctl(option: int, value: int) -> None:
    """Set an option of this process. Raises OSError when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")


def die_with_parent(number: int, parent: int) -> bool:
    """Have the kernel send us `number` when `parent` ends; False when it has ended already.

    The kernel ties this to the *thread* that created us: sound only where that is the parent's main thread.
    """
    prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def become_subreaper() -> None:
    """Make orphaned descendants our children, however they left their session."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def harden() -> None:
    """Give this process what any child of ours gets: private files, no core dumps, first in line when memory runs out."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as score:
            if int(score.read()) < OOM_SCORE:
                score.seek(0)
                score.write(str(OOM_SCORE))
    except OSError:  # a container may forbid it; nothing depends on it
        pass


def bear(mark: int) -> None:
    """Have this process, and whatever comes of it, bear the mark of its group (0: none)."""
    if mark:
        try:  # noqa: SIM105 - one import less in every child
            resource.setrlimit(RLIMIT_LOCKS, (mark, resource.getrlimit(RLIMIT_LOCKS)[1]))
        except (OSError, ValueError):  # somebody has limited even this; tag, session and ancestry remain
            pass


def reset_signals() -> None:
    """Reset what is inherited through exec: ignored signals (Python itself ignores SIGPIPE) and the mask."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except OSError:  # numbers that libc keeps for itself
            continue
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main(arguments: list[str]) -> int:
    options, argv = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    parent, handshake, niceness, mark = (int(options[index]) for index in (1, 3, 5, 7))
    os.set_inheritable(handshake, False)
    if not die_with_parent(signal.SIGKILL, parent):
        return NOT_EXECUTED
    harden()
    bear(mark)
    reset_signals()
    os.nice(niceness)
    if not os.read(handshake, 1):
        return NOT_EXECUTED
    try:
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        os.write(handshake, f"{error.errno} {error.strerror}".encode())
    return NOT_EXECUTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

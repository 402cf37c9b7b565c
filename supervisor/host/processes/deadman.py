"""A deadman has the kernel kill this process when it is not put off in time: also one that is stopped, or hangs in a call.

It is a POSIX timer whose signal is SIGKILL. No other process is needed for it, so it works when the guardian is dead, too. Timers are not
inherited by children.
"""

import ctypes
import os
import signal
import time

SIGEV_SIGNAL = 0
LIBC = ctypes.CDLL(None, use_errno=True)


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux: 64 bytes."""

    _fields_ = (("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("rest", ctypes.c_char * 48))


class _Timer(ctypes.Structure):
    """`struct itimerspec`: interval and value, each in seconds and nanoseconds."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "value_s", "value_ns"))


class Deadman:
    """A deadman that strikes `seconds` after it was made, or put off last. Time in which the machine is suspended does not count."""

    def __init__(self, seconds: float) -> None:
        """Raises OSError where the kernel has no such timers."""
        self._seconds = seconds
        self._timer = ctypes.c_void_p()
        event = _Event(None, signal.SIGKILL, SIGEV_SIGNAL, b"")
        _checked(LIBC.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)))
        self.put_off()

    def put_off(self) -> None:
        whole = int(self._seconds)
        _checked(LIBC.timer_settime(self._timer, 0, ctypes.byref(_Timer(0, 0, whole, int((self._seconds - whole) * 1e9))), None))

    def close(self) -> None:
        LIBC.timer_delete(self._timer)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

"""This module holds the process of a pool's server: what leads to it, whether it answers, and its end.

A server is asked by a signal, which it answers with a byte. One that is stopped, or hangs in a call, does not.
"""

import contextlib
import os
import signal
from dataclasses import dataclass, field
from typing import Final

import anyio

from supervisor.host.processes.child import PlainChild
from supervisor.host.processes.pidfd import open_verified
from supervisor.host.processes.pool_child import PING
from supervisor.host.processes.proc import read_stat

END_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0
IMPORT_SECONDS: Final = 120.0
"""How long its imports may take, in which it cannot answer."""


@dataclass
class PoolServer:
    child: PlainChild
    address: int  # O_PATH descriptor of its listening socket
    alive: int  # its only reason to live: it ends when this is closed
    answers: int  # it writes a byte when its imports are done, and one for each ping
    began: float = field(default_factory=anyio.current_time)
    ready: bool = False

    def close(self) -> None:
        for descriptor in (self.address, self.alive, self.answers):
            os.close(descriptor)

    async def fails_to_answer(self) -> str:
        """Ask whether it is there. Return what is wrong, "" when nothing is."""
        own = os.dup(self.answers)
        try:
            self.ready = self._heard(own) or self.ready
            if self.ready:
                signal.pidfd_send_signal(self.child.pidfd, PING)
            with anyio.move_on_after(ANSWER_SECONDS):
                await anyio.wait_readable(own)
            if self._heard(own):
                self.ready = True
                return ""
        except ProcessLookupError:
            return "it has ended"
        finally:
            os.close(own)
        stat = read_stat(self.child.identity.pid)
        if stat is not None and stat.state == "T":
            return "it is stopped"
        if self.ready:
            return f"it has not answered for {ANSWER_SECONDS:g} s"
        return f"its imports take longer than {IMPORT_SECONDS:g} s" if anyio.current_time() - self.began > IMPORT_SECONDS else ""

    @staticmethod
    def _heard(answers: int) -> bool:
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(answers, 4096))
        return False


async def end_server(server: PlainChild) -> None:
    """Kill a server that does not serve, and wait until it has ended: then the kernel has given its children to us."""
    pidfd = open_verified(server.identity)  # its own may be closed meanwhile, by whoever replaces it
    if pidfd is None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with anyio.move_on_after(END_SECONDS, shield=True):
            await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)

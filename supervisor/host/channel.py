"""A channel is the supervisor's end of a child's socket pair: frames in, frames out, and nothing that the peer does can block or grow us.

A peer fails alone and once: by end of file, by a frame that is none, by a frame that begins and does not end, by not reading.
One that says more than anybody needs to is read more slowly: its own writes wait, and nobody else does.
"""

import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

import anyio
import msgspec

from trainers.protocol.framing import FrameError, FrameReader, encode

PARTIAL_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 10.0
OUTBOX_BYTES: Final = 8 << 20
CHUNK: Final = 1 << 16
AT_ONCE: Final = 8
"""So many messages of one peer are handed on in one go; then others have their turn."""
BURST: Final = 1000
RATE: Final = 250.0
"""A peer may send so many messages at a time, and so many a second for longer. A trainer's step is ten, a gateway reports 20 times a second."""

Message = TypeVar("Message")


class FailureKind(Enum):
    CLOSED = "closed its end"
    MALFORMED = "sent something that is not a frame"
    TRUNCATED = "began a frame and did not end it"
    NOT_READING = "does not read"


@dataclass(frozen=True)
class ChannelFailure:
    """Why a channel has ended."""

    kind: FailureKind
    detail: str = ""

    def __str__(self) -> str:
        return f"the peer {self.kind.value}" + (f": {self.detail}" if self.detail else "")


@dataclass(slots=True)
class _Pace:
    """What a peer may still send now."""

    room: float = BURST
    seen: float = 0.0

    def lateness(self, now: float) -> float:
        """Count a message. Return the seconds until the next may come; 0.0 unless it is one too many."""
        self.room = min(BURST, self.room + (now - self.seen) * RATE) - 1.0
        self.seen = now
        return AT_ONCE / RATE if self.room < 0 else 0.0


class Channel(Generic[Message]):
    """Carries messages over one socket pair. Start `run` as a task: it ends when the peer has failed (`on_failure` is called once) or after `close`.

    `union` is the tagged union of what the peer may send. `on_message` is called in order, in the loop, and must not block;
    what it raises is a bug of ours and is not caught.
    """

    def __init__(
        self,
        sock: socket.socket,
        union: Any,
        on_message: Callable[[Message], None],
        on_failure: Callable[[ChannelFailure], None],
        *,
        partial_s: float = PARTIAL_SECONDS,
        stalled_s: float = STALLED_SECONDS,
        outbox_bytes: int = OUTBOX_BYTES,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._frames: FrameReader[Message] = FrameReader(union)
        self._on_message, self._on_failure = on_message, on_failure
        self._partial_s, self._stalled_s, self._outbox_limit = partial_s, stalled_s, outbox_bytes
        self._pace = _Pace()
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._reply_at_once = False  # the peer has sent something since we last wrote at once
        self._outbox_changed = anyio.Event()
        self._ended = anyio.Event()
        self.failure: ChannelFailure | None = None

    @property
    def open(self) -> bool:
        return not self._ended.is_set()

    def send(self, message: msgspec.Struct) -> bool:
        """Queue one message without waiting. Return False when the channel has ended, or has just failed because the queue is full.

        Raises FrameError for a message over the limit: our bug, not the peer's.
        """
        if not self.open:
            return False
        frame = encode(message)
        if self._outbox_bytes + len(frame) > self._outbox_limit:
            self._fail(FailureKind.NOT_READING, f"{self._outbox_bytes} bytes wait for it")
            return False
        if self._reply_at_once and not self._outbox_bytes:  # an answer goes at once, and no task has to be woken; a burst is gathered
            self._reply_at_once = False
            frame = frame[self._send_some(frame) :]
        if frame:
            self._outbox.append(frame)
            self._outbox_bytes += len(frame)
            self._outbox_changed.set()
        return self.open

    def _send_some(self, frame: bytes) -> int:
        """Return how many bytes of it the kernel took."""
        try:
            return self._sock.send(frame)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail(FailureKind.CLOSED, str(error.strerror))
            return len(frame)

    def close(self) -> None:
        """End without a failure; what was not written yet is dropped."""
        self._ended.set()

    async def run(self) -> None:
        """Read and write until the channel ends, then close the socket."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                tasks.start_soon(self._write)
                await self._ended.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._ended.set()
            self._sock.close()

    async def _read(self) -> None:
        began: float | None = None
        while self.open:
            deadline = float("inf") if began is None else began + self._partial_s
            with anyio.move_on_at(deadline) as waiting:
                await anyio.wait_readable(self._sock)
            if waiting.cancelled_caught:
                self._fail(FailureKind.TRUNCATED, f"its rest did not come within {self._partial_s:g} s")
                return
            try:
                data = self._sock.recv(CHUNK)
            except BlockingIOError:
                continue
            except OSError as error:
                self._fail(FailureKind.CLOSED, str(error.strerror))
                return
            if not data:
                self._fail(FailureKind.TRUNCATED if self._frames.partial else FailureKind.CLOSED)
                return
            complete = await self._take(data)
            if not self._frames.partial:
                began = None
            elif complete or began is None:
                began = anyio.current_time()

    async def _take(self, data: bytes) -> bool:
        """Hand on every message that is complete with this data, not faster than it may come; return whether one was."""
        taken = 0
        messages = self._frames.feed(data)
        while self.open:
            try:
                message = next(messages, None)
            except FrameError as error:
                self._fail(FailureKind.MALFORMED, str(error))
                break
            if message is None:
                break
            self._reply_at_once = True
            self._on_message(message)
            taken += 1
            if (late := self._pace.lateness(anyio.current_time())) > 0 or taken % AT_ONCE == 0:
                await anyio.sleep(late)
        return taken > 0

    async def _write(self) -> None:
        while self.open:
            if not self._outbox:
                self._outbox_changed = anyio.Event()
                await self._outbox_changed.wait()
                continue
            rest = memoryview(self._gather())
            while rest:
                try:
                    sent = self._sock.send(rest)
                except BlockingIOError:
                    with anyio.move_on_after(self._stalled_s) as waiting:
                        await anyio.wait_writable(self._sock)
                    if waiting.cancelled_caught:
                        self._fail(FailureKind.NOT_READING, f"for {self._stalled_s:g} s")
                        return
                    continue
                except OSError as error:
                    self._fail(FailureKind.CLOSED, str(error.strerror))
                    return
                rest = rest[sent:]
                self._outbox_bytes -= sent

    def _gather(self) -> bytes:
        """Join waiting frames up to a chunk: the kernel charges a small write nearly a KiB of the peer's buffer."""
        frames = [self._outbox.popleft()]
        size = len(frames[0])
        while self._outbox and size + len(self._outbox[0]) <= CHUNK:
            frames.append(self._outbox.popleft())
            size += len(frames[-1])
        return b"".join(frames)

    def _fail(self, kind: FailureKind, detail: str = "") -> None:
        if self.open:
            self.failure = ChannelFailure(kind, detail)
            self._ended.set()
            self._on_failure(self.failure)

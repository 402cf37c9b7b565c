"""This module frames messages on an inherited socket pair.

A frame is a length (4 bytes, unsigned, big-endian) and then so many bytes of UTF-8 JSON, 1 MiB at most (128 KiB from a trainer): one object
whose `type` says which message it is. The shortest is

    00 00 00 10  {"type":"ready"}

Frames follow each other without anything between. The two directions of a socket pair carry different unions of messages
(`trainer_messages`, `gateway_messages`). `trainshed` speaks the same frames in standard library only, because it must work alone.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

HEADER: Final = struct.Struct(">I")
MAX_FRAME: Final = 1 << 20
"""A frame's body has at most so many bytes; that is checked before anything is allocated for it."""


T = TypeVar("T")


class FrameError(Exception):
    """The peer has sent something that is not a frame of ours; the peer has failed, nobody else has."""


def encode(message: msgspec.Struct) -> bytes:
    """Return `message` as one frame. Raises FrameError when the message is larger than MAX_FRAME."""
    body = msgspec.json.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a {type(message).__name__} of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return HEADER.pack(len(body)) + body


class FrameReader(Generic[T]):
    """A reader cuts a byte stream into messages of one tagged union."""

    def __init__(self, union: Any, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(union)
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended: its rest must come before a deadline."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[T]:
        """Yield the messages that `data` completes. Raises FrameError on an oversize or malformed frame; the stream is then unusable."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            if length > self._max_frame:
                raise FrameError(f"a frame announces {length} bytes; the limit is {self._max_frame}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            try:
                yield self._decoder.decode(body)
            # Not all of it is a MsgspecError: bad UTF-8 is a UnicodeDecodeError, and a field that is skipped may be nested too deeply.
            except (ValueError, RecursionError, MemoryError, OverflowError) as error:
                raise FrameError(f"a frame does not decode: {error}") from error

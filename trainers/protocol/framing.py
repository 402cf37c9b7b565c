"""Frames on an inherited socket pair: u32 big-endian length, then that many bytes of JSON (one tagged message).

PURE. `trainshed` speaks the same frames in standard library only, because it must work alone.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

HEADER: Final = struct.Struct(">I")
MAX_FRAME: Final = 1 << 20
"""Bytes of one frame's body; checked before anything is allocated for it."""


T = TypeVar("T")


class FrameError(Exception):
    """The peer sent something that is not a frame of ours; the peer has failed, nobody else has."""


def encode(message: msgspec.Struct) -> bytes:
    """One frame. Raises FrameError when the message is larger than MAX_FRAME."""
    body = msgspec.json.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a {type(message).__name__} of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return HEADER.pack(len(body)) + body


class FrameReader(Generic[T]):
    """Cuts a byte stream into messages of one tagged union.

    `feed(data)` yields what became whole. Raises FrameError on an oversize or malformed frame; the stream is then unusable.
    """

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(union)
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended: its rest must come before a deadline."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[T]:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise FrameError(f"a frame announces {length} bytes; the limit is {MAX_FRAME}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            try:
                yield self._decoder.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # bad UTF-8 is not a MsgspecError
                raise FrameError(f"a frame does not decode: {error}") from error

"""This module reads the body of a request within limits, and decodes a large one beside the loop, so that no body of anybody's delays others.

A decoder holds the interpreter's lock until it is done, in whatever thread it runs: 64 MiB of `[3],[3],…` take 6 s. So what a body holds is
counted first, in pieces of a millisecond each, and one that holds too much is refused before anything is made of it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from aiohttp import web

from engines.gateway.routes.errors import RequestError

MAX_BODY: Final = 64 << 20
"""Bytes of one body."""
MAX_VALUES: Final = 1 << 22
"""Values in one body: token ids, for the most part. A decoder makes so many within 0.2 s."""
MAX_CONTAINERS: Final = 1 << 16
"""Lists and objects in one body: 4,096 samples with their parameters are 12,290."""
MAX_STRINGS: Final = 1 << 18
"""Strings in one body, names of fields among them: 4,096 samples with 20 parameters each are 100,000."""
MAX_READING: Final = 256 << 20
"""Bytes of all bodies that are being read or decoded."""
BODY_S: Final = 60.0
"""Seconds for a body to come, from the end of its headers."""
SMALL: Final = 1 << 15
"""A body of so many bytes is decoded within a few milliseconds, and an answer of so many is encoded within them."""
_PIECE: Final = 1 << 18
_THREADS: Final = ThreadPoolExecutor(2, "bodies")
P = ParamSpec("P")
T = TypeVar("T")


async def off_the_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `work(…)` on something of `size` bytes: done at once if that is little, else in a thread, so that others are served meanwhile."""
    if size <= SMALL:
        return work(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(work, *args, **kwargs))


class BodyReader:
    """All bodies of one gateway are read here: what they hold in memory together is limited."""

    def __init__(self, within: float = BODY_S) -> None:
        self._within = within
        self._reading = 0

    async def decoded(self, request: web.Request, work: Callable[[bytearray], T]) -> T:
        """Return `work(body)`. Raises RequestError for a body that is too large, too late or one too many, and what `work` raises."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._within):
                async for data in request.content.iter_any():
                    body += data
                    self._reading += len(data)
                    if len(body) > MAX_BODY:
                        raise RequestError(413, "too_large", f"a body has at most {MAX_BODY} bytes: send fewer samples at a time")
                    if self._reading > MAX_READING:
                        raise RequestError(503, "full", f"{MAX_READING} bytes of bodies are being read already; ask again in a moment")
        except TimeoutError:
            self._reading -= len(body)
            raise RequestError(408, "too_late", f"the body did not come within {self._within:g} s") from None
        except BaseException:
            self._reading -= len(body)
            raise
        job = asyncio.ensure_future(off_the_loop(len(body), _decoded, work, body))
        job.add_done_callback(partial(self._ended, len(body)))
        return await asyncio.shield(job)  # a client that hangs up does not take its body out of the queue

    def _ended(self, size: int, job: "asyncio.Future[object]") -> None:
        self._reading -= size
        if not job.cancelled():
            job.exception()  # told to who waits, if somebody does


def _decoded(work: Callable[[bytearray], T], body: bytearray) -> T:
    if len(body) > SMALL:
        refuse_crowded(body)
    return work(body)


def refuse_crowded(body: bytes | bytearray) -> None:
    """Raise RequestError(413) for JSON that holds more than a decoder should be given at once. Other threads run after each piece of it."""
    values = containers = strings = 0
    inside = False  # a string, at the beginning of the piece
    begin = 0
    while begin < len(body):
        piece = body[begin : begin + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # a backslash and what it escapes stay together
            piece += body[begin + _PIECE : begin + _PIECE + 1]
        begin += len(piece)
        parts = piece.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
        outside = b"".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0  # an odd number of quotes
        strings += len(parts) - 1
        values += outside.count(b",")
        containers += outside.count(b"[") + outside.count(b"{")
        if values > MAX_VALUES or containers > MAX_CONTAINERS or strings > 2 * MAX_STRINGS:
            raise RequestError(
                413,
                "too_large",
                f"a body holds at most {MAX_VALUES} values (token ids), {MAX_CONTAINERS} lists and objects, and {MAX_STRINGS} strings:"
                " send fewer samples at a time",
            )

"""This module is how routes ask the core: whom a request is for by its headers, and waiting for its answers or their pieces."""

import asyncio
import re
from collections.abc import AsyncIterator, Container, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from engines.gateway.core.events import Deliver, Grew
from engines.gateway.core.samples import MAX_TOKEN, Answer, Failure, Request
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.responses import KEEP_ALIVE_S
from engines.gateway.shell import Inbox, Shell

AT_ONCE: Final = 64
"""So many samples are asked in one go; then others are served, before the next."""
ROLLOUT: Final = "X-Trainshed-Rollout"
SAMPLE: Final = "X-Trainshed-Sample"
EXPECTED: Final = "X-Trainshed-Expected-Tokens"
SESSION: Final = "X-Trainshed-Session"
_NUMBER: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
_TOKEN: Final = re.compile(r"[!-~]{1,200}", re.ASCII)


def identity(headers: "web.BaseRequest") -> tuple[int | None, str | None]:
    """Return rollout and sample of a request by its headers. Raises RequestError(400) for what is neither."""
    rollout, sample = headers.headers.get(ROLLOUT), headers.headers.get(SAMPLE)
    if sample is not None and not _TOKEN.fullmatch(sample):
        raise RequestError(400, "bad_request", f"{SAMPLE} must be 1 to 200 printable characters without blanks")
    return (None if rollout is None else number(rollout, ROLLOUT)), sample


def hinted(headers: "web.BaseRequest", requests: Sequence[Request]) -> list[Request]:
    """Return the requests with what the headers say of length and session, where the body says nothing. Raises RequestError(400)."""
    length, session = headers.headers.get(EXPECTED), headers.headers.get(SESSION, "")
    if session and not _TOKEN.fullmatch(session):
        raise RequestError(400, "bad_request", f"{SESSION} must be 1 to 200 printable characters without blanks")
    expected = None if length is None else min(number(length, EXPECTED), MAX_TOKEN)
    if expected is None and not session:
        return list(requests)
    return [
        replace(one, expected_tokens=expected if one.expected_tokens is None else one.expected_tokens, session=one.session or session)
        for one in requests
    ]


def number(text: str, name: str) -> int:
    """Return the number that `text` is. Raises RequestError(400), which calls it `name`."""
    if not _NUMBER.fullmatch(text):
        raise RequestError(400, "bad_request", f"{name} must be a number of at most 15 digits, not {text[:40]!r}")
    return int(text)


def sample_names(token: str | None, count: int) -> list[str | None]:
    """Return the names of the samples where one request makes `count` of them."""
    return [token] if count == 1 else [None if token is None else f"{token}.{index}" for index in range(count)]


class Asking:
    """`async with`: these requests are asked; what is still open at the end of the block is given up, also when the client has hung up."""

    def __init__(
        self, shell: Shell, requests: Sequence[Request], rollout: int | None, tokens: Sequence[str | None], *, streams: bool = False
    ) -> None:
        self._shell, self._inbox = shell, Inbox()
        self._asked = list(zip(requests, tokens, strict=True))
        self._rollout, self._streams = rollout, streams
        self._index: dict[int, int] = {}
        self._open = len(self._asked)

    async def __aenter__(self) -> Self:
        try:
            for index, (request, token) in enumerate(self._asked):
                if index and not index % AT_ONCE:
                    await asyncio.sleep(0)
                asker = self._shell.ask(self._inbox, request, rollout=self._rollout, token=token, streams=self._streams)
                self._index[asker] = index
        except BaseException:
            self._shell.leave(self._inbox.open)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._shell.leave(self._inbox.open)

    async def all(self) -> list[Answer]:
        """Wait for every answer; returns them in order. Raises RequestError for the first failure."""
        answers: dict[int, Answer] = {}
        async for item in self.arrivals():
            if item is not None and isinstance(outcome := item[1], Deliver):
                if isinstance(outcome.outcome, Failure):
                    raise RequestError.of(outcome.outcome)
                answers[item[0]] = outcome.outcome
        return [answers[index] for index in range(len(self._asked))]

    async def begin(self, fatal: Container[str] | None = None) -> list[tuple[int, Grew | Deliver]]:
        """Wait for what comes first, at most for `KEEP_ALIVE_S`; returns it.

        Raises RequestError if that is one failure for every request (of a code in `fatal`, if that is given).
        """
        first = await self._inbox.get(KEEP_ALIVE_S)
        items = [] if first is None else [self._item(first), *(self._item(more) for more in self._inbox.arrived())]
        failures = [item.outcome for _, item in items if isinstance(item, Deliver) and isinstance(item.outcome, Failure)]
        same = len(failures) == len(self._asked) and len({failure.code for failure in failures}) == 1
        if same and (fatal is None or failures[0].code in fatal):
            raise RequestError.of(failures[0])
        return items

    async def arrivals(self) -> AsyncIterator[tuple[int, Grew | Deliver] | None]:
        """Yield what comes, with the index of its request, until all is there; None: nothing for `KEEP_ALIVE_S`."""
        while self._open:
            effect = await self._inbox.get(KEEP_ALIVE_S)
            yield None if effect is None else self._item(effect)

    def _item(self, effect: Grew | Deliver) -> tuple[int, Grew | Deliver]:
        self._open -= isinstance(effect, Deliver)
        return self._index[effect.asker], effect
